"""Activation amplitudes by block: the numbers of a signal propagation plot (paper, figure 2).

The amplitude of a token map (B, *sides, C) is its average channel variance (arXiv 2101.08692, section 3): for each
channel, the variance over all tokens of all images of one forward pass (divided by their number), then the mean over
the channels. It is computed in at least float32, whatever the dtype of the activations.

- `main`: amplitude of the main branch at the end of a block, after its extra norm if it has one.
- `branch`: the larger amplitude of the two residual branches as they are added to the main branch: after a norm at the
  end of the branch, before stochastic depth.

Under post-norm, every block norms the main branch, so its amplitude says little; use that of the branches.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from swinv2_train.models.backbone import SwinTransformerV2, backbone_of
from swinv2_train.models.block import SwinBlock
from swinv2_train.models.precision import at_least_float32


@dataclass(frozen=True)
class BlockActivations:
    """Amplitudes of one block."""

    name: str
    """Name, such as layers.2.blocks.5."""
    main: float
    branch: float


class ActivationStatistics:
    """Statistics that `record_activations` collects: two numbers per block and forward pass, on the device."""

    def __init__(self, names: list[str]) -> None:
        self.names = names
        self.passes = 0
        self._sum: Tensor | None = None

    @property
    def blocks(self) -> list[BlockActivations]:
        """Return the blocks from first to last, averaged over the forward passes so far; empty before the first.

        Waits for the device.
        """
        if self._sum is None:
            return []
        rows = (self._sum / self.passes).tolist()
        return [BlockActivations(name, main, branch) for name, (main, branch) in zip(self.names, rows, strict=True)]

    def _add(self, rows: list[tuple[Tensor, Tensor]]) -> None:
        values = torch.stack([torch.stack(row) for row in rows])
        self._sum = values if self._sum is None else self._sum + values
        self.passes += 1


def amplitude(x: Tensor) -> Tensor:
    """Return the average channel variance of a (B, *sides, C) map: a scalar in at least float32, on its device."""
    x = x.detach().to(at_least_float32(x.dtype))
    return x.var(dim=tuple(range(x.ndim - 1)), correction=0).mean()


class _Recorder:
    """Hooks of one backbone. They record only during its forward pass, so blocks that are recomputed in the backward
    pass (activation checkpointing) do not count twice."""

    def __init__(self, statistics: ActivationStatistics) -> None:
        self.statistics = statistics
        self.recording = False
        self.rows: list[tuple[Tensor, Tensor]] = []
        self.branches: list[Tensor] = []

    def begin(self, module: nn.Module, args: tuple) -> None:
        self.rows, self.branches, self.recording = [], [], True

    def branch(self, module: nn.Module, args: tuple, output: Tensor) -> None:
        if self.recording:
            self.branches.append(amplitude(args[1]))

    def block(self, module: nn.Module, args: tuple, output: Tensor) -> None:
        if self.recording:
            self.rows.append((amplitude(output), torch.stack(self.branches).amax()))
            self.branches = []

    def end(self, module: nn.Module, args: tuple, output: list[Tensor]) -> None:
        self.recording = False
        self.statistics._add(self.rows)


def _hook(backbone: SwinTransformerV2, recorder: _Recorder) -> Iterator[torch.utils.hooks.RemovableHandle]:
    yield backbone.register_forward_pre_hook(recorder.begin)
    for module in backbone.modules():
        if isinstance(module, SwinBlock):
            yield module.residual.register_forward_hook(recorder.branch)
            yield module.register_forward_hook(recorder.block)
    yield backbone.register_forward_hook(recorder.end)


@contextmanager
def record_activations(model: nn.Module) -> Iterator[ActivationStatistics]:
    """Record the amplitudes of the forward passes inside the context, in training or in evaluation mode.

    Compiled blocks run uncompiled in this context. The values cover the images that this process sees.

    Args:
        model: a backbone, or any model that contains one, wrapped or not.

    Raises:
        ValueError: if the model does not contain exactly one backbone.
    """
    backbone = backbone_of(model)
    statistics = ActivationStatistics(
        [name for name, module in backbone.named_modules() if isinstance(module, SwinBlock)]
    )
    handles = []
    try:
        for handle in _hook(backbone, _Recorder(statistics)):
            handles.append(handle)
        # A compiled graph does not see hooks that are added later.
        with torch.compiler.set_stance("force_eager"):
            yield statistics
    finally:
        for handle in handles:
            handle.remove()
