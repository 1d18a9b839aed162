"""Window attention module: the projections, the scale, and the position bias around one of the backends."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from swinv2_train.models.attention.backends import NOT_COMPILED, backend_of
from swinv2_train.models.attention.contract import AttentionOptions
from swinv2_train.models.attention.position_bias import BIAS_RANGE, bias_network, network_bias, table_bias
from swinv2_train.models.attention.reference import attention_weights
from swinv2_train.models.geometry import Window
from swinv2_train.models.init import draw_normal
from swinv2_train.models.precision import at_least_float32, without_autocast

LOG_SCALE = math.log(10.0)
"""Initial logit scale: a temperature of 0.1."""
MAX_LOG_SCALE = math.log(100.0)
"""Minimum temperature of the cosine, 0.01 (paper section 3.2)."""


class WindowAttention(nn.Module):
    """Window attention over a token map, for any window: only a bias table has a window-dependent size.

    Keys have no bias: it would shift all dot products of a query equally, which softmax ignores.

    Args:
        dim: channels C.
        num_heads: attention heads h.
        pretrained_window: window the weights were trained with, and the size of a bias table; its length is the number
            of axes of the maps. Without a table, a side of 0 means that of the window in use.
        backend: a name that `backend_of` knows.
        chunk_mib: memory bound of the sequential backend.
        similarity: cosine or dot.
        position_bias: log-cpb, linear-cpb, or table.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        pretrained_window: Window,
        *,
        backend: str,
        chunk_mib: float,
        similarity: str = "cosine",
        position_bias: str = "log-cpb",
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.pretrained_window = pretrained_window
        self.use_backend(backend)
        self.position_bias = position_bias
        from_table = position_bias == "table"
        self.options = AttentionOptions(bias_center=0.0 if from_table else BIAS_RANGE / 2, chunk_mib=chunk_mib)
        self.logit_scale = nn.Parameter(torch.empty(num_heads, 1, 1)) if similarity == "cosine" else None
        self.q_bias = nn.Parameter(torch.empty(dim))
        self.v_bias = nn.Parameter(torch.empty(dim))
        if from_table:
            offsets = math.prod(2 * side - 1 for side in pretrained_window)
            self.relative_position_bias_table = nn.Parameter(torch.empty(offsets, num_heads))
        else:
            self.cpb_mlp = bias_network(len(pretrained_window), num_heads)
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.proj = nn.Linear(dim, dim)

    def use_backend(self, name: str, *, compiled: bool = False) -> None:
        """Attend with a backend by its name, in a module that `torch.compile` is about to compile or not."""
        self.backend = name
        attend = backend_of(name)
        # Only for a compiled module: this call imports the compiler, 3 s in every process.
        self._attend = torch.compiler.disable(attend) if compiled and name in NOT_COMPILED else attend

    def init_parameters(self, generator: torch.Generator | None) -> None:
        """Set the initial values, see `init_weights`."""
        if self.logit_scale is not None:
            self.logit_scale.fill_(LOG_SCALE)
        self.q_bias.zero_()
        self.v_bias.zero_()
        if self.position_bias == "table":
            draw_normal(self.relative_position_bias_table, generator)

    def forward(self, x: Tensor, window: Window, shift: Window, time_padding: int = 0) -> Tensor:
        """(B, *padded, C) -> (B, *padded, C), for a map of whole windows that is already rolled by `shift`.

        Args:
            time_padding: see `AttentionOptions`.
        """
        qkv = self._projected(x)
        with without_autocast(x):
            options = self._padded(time_padding)
            out = self._attend(qkv, self.scale(), self.position_table(window), window, shift, options)
        return self.proj(out)

    def weights(self, x: Tensor, window: Window, shift: Window, time_padding: int = 0) -> Tensor:
        """Return the attention between the tokens of each window, (B, nW, h, N, N): a distribution for each query.

        Arguments as for `forward`. The backends never keep it; it is computed as the reference does.
        """
        qkv = self._projected(x)
        with without_autocast(x):
            options = self._padded(time_padding)
            return attention_weights(qkv, self.scale(), self.position_table(window), window, shift, options)

    def _padded(self, time_padding: int) -> AttentionOptions:
        return replace(self.options, time_padding=time_padding) if time_padding else self.options

    def _projected(self, x: Tensor) -> Tensor:
        bias = torch.cat((self.q_bias, torch.zeros_like(self.q_bias), self.v_bias))  # keys have no bias
        return F.linear(x, self.qkv.weight, bias)

    def scale(self) -> Tensor | None:
        """Return the factor of the cosine per head, (h,), in at least float32: the inverse temperature, at most 100.

        None for the dot product.
        """
        if self.logit_scale is None:
            return None
        log_scale = self.logit_scale.flatten().to(at_least_float32(self.logit_scale.dtype))
        return log_scale.clamp(max=MAX_LOG_SCALE).exp()

    def position_table(self, window: Window) -> Tensor:
        """Return the position bias per head and offset, (h, *offsets), in at least float32.

        A network's bias is between 0 and 16; a table's can have any value.
        """
        if self.position_bias == "table":
            return table_bias(self.relative_position_bias_table, window, self.pretrained_window)
        logarithmic = self.position_bias == "log-cpb"
        return network_bias(self.cpb_mlp, window, self.pretrained_window, logarithmic=logarithmic)
