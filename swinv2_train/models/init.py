"""Initial weights as in the official code, for a model that was just built or was moved from the meta device.

Initialization is total: memory is first filled with NaN, and a parameter or buffer that no rule sets is reported by
name. `_RULES` contains rules for layers. Any other module that owns parameters or buffers needs a method

    def init_parameters(self, generator: torch.Generator | None) -> None

that sets them in place. It runs without gradients, and before the rules of its children, which overwrite any values
that it sets in them. A subclass of a layer with a rule may define the method too, instead of the rule. `draw_normal`
and `draw_uniform` draw values the same way as the rules.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import chain

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from swinv2_train.errors import RunError
from swinv2_train.exit_codes import WRONG_USE

INITIAL_STD = 0.02
"""Standard deviation of the normal distributions (official code)."""


@torch.no_grad()
def init_weights(model: nn.Module, generator: torch.Generator | None = None) -> None:
    """Set every parameter and buffer to its initial value.

    Linear layers: normal with standard deviation 0.02, bias 0. Norms: 1 and 0, but 0 and 0 at the end of a
    res-post-norm branch, so that every such block starts as the identity. Convolutions: torch's default. Embeddings,
    position embedding, bias tables, and mask token: normal with standard deviation 0.02. (The official code truncates
    its normals at +-2, which is 100 standard deviations: no truncation.)

    Values are drawn in float32 on the device of the generator and then moved, so a CPU generator gives the same weights
    on any device and the same up to rounding in any dtype.

    Args:
        model: nothing happens if all of it is on the meta device, which has no memory to fill.
        generator: None draws from torch's global generators.

    Raises:
        RunError: if no rule sets a parameter or buffer, with its name.
    """
    before = dict(_tensors(model))
    if before and all(tensor.is_meta for tensor in before.values()):
        return
    for tensor in before.values():
        if _can_hold_nan(tensor):
            tensor.fill_(math.nan)
    versions = {name: tensor._version for name, tensor in before.items()}
    for module in model.modules():
        if (rule := _rule(module)) is not None:
            rule(module, generator)
    for name, tensor in _tensors(model):
        if _can_hold_nan(tensor):
            is_set = not bool(tensor.isnan().any())
        else:  # `_version` counts in-place changes of a tensor
            is_set = before.get(name) is not tensor or tensor._version != versions[name]
        if not is_set:
            raise _unset(model, name)
    _check_attributes(model)


def draw_normal(tensor: Tensor, generator: torch.Generator | None, std: float = INITIAL_STD) -> None:
    """Fill a parameter or buffer with normal values around 0."""
    _draw(tensor, generator, lambda values: values.normal_(std=std, generator=generator))


def draw_uniform(tensor: Tensor, generator: torch.Generator | None, bound: float) -> None:
    """Fill a parameter or buffer with uniform values from -bound to bound."""
    _draw(tensor, generator, lambda values: values.uniform_(-bound, bound, generator=generator))


def _draw(tensor: Tensor, generator: torch.Generator | None, fill: Callable[[Tensor], object]) -> None:
    device = tensor.device if generator is None else generator.device
    values = torch.empty(tensor.shape, dtype=torch.float32, device=device)
    fill(values)
    tensor.copy_(values)


def _init_linear(module: nn.Linear, generator: torch.Generator | None) -> None:
    draw_normal(module.weight, generator)
    if module.bias is not None:
        module.bias.zero_()


def _init_convolution(module: nn.modules.conv._ConvNd, generator: torch.Generator | None) -> None:
    """Draw as torch does, including transposed convolutions."""
    bound = 1 / math.sqrt(module.weight[0].numel())
    for parameter in (module.weight, module.bias):
        if parameter is not None:
            draw_uniform(parameter, generator, bound)


def _init_norm(module: nn.LayerNorm | nn.GroupNorm | nn.RMSNorm, generator: torch.Generator | None) -> None:
    for parameter, value in ((module.weight, 1.0), (getattr(module, "bias", None), 0.0)):
        if parameter is not None:
            parameter.fill_(value)


def _init_batch_norm(module: nn.modules.batchnorm._NormBase, generator: torch.Generator | None) -> None:
    module.reset_running_stats()
    _init_norm(module, generator)


def _init_embedding(module: nn.Embedding | nn.EmbeddingBag, generator: torch.Generator | None) -> None:
    draw_normal(module.weight, generator)
    if module.padding_idx is not None:
        module.weight[module.padding_idx].zero_()


_RULES: tuple[tuple[type | tuple[type, ...], Callable], ...] = (
    (nn.Linear, _init_linear),
    (nn.modules.conv._ConvNd, _init_convolution),  # Conv1d to Conv3d and their transposed variants
    ((nn.LayerNorm, nn.GroupNorm, nn.RMSNorm), _init_norm),
    (nn.modules.batchnorm._NormBase, _init_batch_norm),  # BatchNorm, SyncBatchNorm, InstanceNorm
    ((nn.Embedding, nn.EmbeddingBag), _init_embedding),
)
"""Rules by type of layer. The order of the modules, and of the draws in a rule, fixes the random stream of a seed."""


def _rule(module: nn.Module) -> Callable[[nn.Module, torch.Generator | None], None] | None:
    own = getattr(type(module), "init_parameters", None)
    return own or next((rule for kinds, rule in _RULES if isinstance(module, kinds)), None)


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield parameters and buffers by name, including buffers that are not saved."""
    return chain(model.named_parameters(), model.named_buffers())


def _can_hold_nan(tensor: Tensor) -> bool:
    """Return False for integers, and for tensors of a FakeTensorMode, which have shapes but no values."""
    return (tensor.is_floating_point() or tensor.is_complex()) and not isinstance(tensor, FakeTensor)


def _unset(model: nn.Module, name: str) -> RunError:
    path, _, own = name.rpartition(".")
    owner = model.get_submodule(path)
    kind = "parameter" if own in owner._parameters else "buffer"
    fix = f"give {type(owner).__name__} a method init_parameters(generator) that sets it"
    return RunError(f"no rule initializes {kind} {name} of the model: {fix}", WRONG_USE)


def _check_attributes(model: nn.Module) -> None:
    """Reject tensors that are neither parameters nor buffers and remain on the meta device."""
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            if isinstance(value, Tensor) and value.is_meta:
                full = f"{path}.{name}" if path else name
                text = f"tensor {full} of the model is neither a parameter nor a buffer: use register_buffer"
                raise RunError(text, WRONG_USE)
