"""The islands of full precision inside a half-precision model.

Cosine attention divides by norms and multiplies by up to 100, and the bias network maps coordinates that differ by less
than a bfloat16 can tell: both are computed in float32 whatever the dtype of the weights, and whether or not autocast is
on. float64 stays float64.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
"""The dtype of each `engine.precision`."""


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    """The dtype that an island computes in: float32, or float64 for float64 inputs."""
    return torch.promote_types(dtype, torch.float32)


def without_autocast(tensor: Tensor) -> AbstractContextManager[None]:
    """A context in which operations on the device of `tensor` keep the dtype of their arguments."""
    device = tensor.device.type
    if device == "meta":  # has no autocast; torch 2.11 and earlier cannot trace `torch.amp.is_autocast_available`
        return nullcontext()
    return torch.autocast(device, enabled=False)
