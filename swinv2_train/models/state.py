"""State of a model: its parameters and persistent buffers, and its mode."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn


def persistent_buffers(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the buffers that belong in a checkpoint, by name, in module order."""
    for prefix, module in model.named_modules():
        for name, buffer in module._buffers.items():
            if buffer is not None and name not in module._non_persistent_buffers_set:
                yield f"{prefix}.{name}" if prefix else name, buffer


def named_state(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield parameters, then persistent buffers, by name."""
    yield from model.named_parameters()
    yield from persistent_buffers(model)


def state_shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return shapes by name, including parameters that ZeRO-3 has partitioned."""
    return {name: tuple(getattr(tensor, "ds_shape", tensor.shape)) for name, tensor in named_state(model)}


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Set the model to eval mode, and restore its mode afterward."""
    before = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(before)
