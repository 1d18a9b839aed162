"""Full-precision islands inside a half-precision model.

Cosine attention divides by norms and multiplies by up to 100, and the bias network maps coordinates whose differences
bfloat16 cannot represent. Both are computed in float32, regardless of the dtype of the weights and of autocast. float64
stays float64.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
"""Dtype of each `engine.precision`."""


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of such an island: float32, or float64 for float64 inputs."""
    return torch.promote_types(dtype, torch.float32)


def without_autocast(tensor: Tensor) -> AbstractContextManager[None]:
    """Return a context in which operations on the device of `tensor` keep the dtype of their arguments."""
    device = tensor.device.type
    if device == "meta":  # no autocast there; torch 2.11 and earlier cannot trace `torch.amp.is_autocast_available`
        return nullcontext()
    return torch.autocast(device, enabled=False)
