"""The tensors of a model that make it what it is: its parameters and its persistent buffers."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn


def persistent_buffers(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The buffers that belong into a checkpoint, by name, in the order of the modules."""
    for prefix, module in model.named_modules():
        for name, buffer in module._buffers.items():
            if buffer is not None and name not in module._non_persistent_buffers_set:
                yield f"{prefix}.{name}" if prefix else name, buffer


def named_state(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters, then persistent buffers, by name."""
    yield from model.named_parameters()
    yield from persistent_buffers(model)


def state_shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Shapes by name, also of parameters that ZeRO-3 has taken apart."""
    return {name: tuple(getattr(tensor, "ds_shape", tensor.shape)) for name, tensor in named_state(model)}
