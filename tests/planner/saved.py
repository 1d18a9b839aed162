"""Bytes that autograd saves and that backward needs at its peak, counted without a GPU and without memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from tests.models.memory import LiveBytes


def efficient_attention(q: Tensor, k: Tensor, v: Tensor, *, attn_mask: Tensor, scale: float) -> Tensor:
    """The kernel that torch selects on CUDA for a mask with a gradient; without a GPU it cannot select it."""
    if missing := -attn_mask.shape[-1] % 8:
        attn_mask = F.pad(attn_mask, (0, missing))[..., : attn_mask.shape[-1]]
    mask = attn_mask.expand(*q.shape[:3], k.shape[2])
    return torch.ops.aten._scaled_dot_product_efficient_attention(q, k, v, mask, True, 0.0, False, scale=scale)[0]


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


def saved_bytes(module: nn.Module, forward: Callable[[], object]) -> int:
    """The bytes of all storages that autograd saves in `forward`, other than parameters."""
    parameters = {parameter.untyped_storage()._cdata for parameter in module.parameters()}
    sizes, kept = {}, []  # the address of a storage is only unique while it lives

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept.append(storage)
        if storage._cdata not in parameters:
            sizes[storage._cdata] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = forward()
    del result
    return sum(sizes.values())


def peak_of_step(module: nn.Module, loss: Callable[[], Tensor]) -> int:
    """The peak of forward and backward in bytes, without parameters and their gradients."""
    for parameter in module.parameters():
        parameter.register_post_accumulate_grad_hook(lambda each: setattr(each, "grad", None))
    with LiveBytes() as meter:
        loss().backward()
    return meter.peak


def without_storage() -> FakeTensorMode:
    return FakeTensorMode(allow_non_fake_inputs=True)
