"""The signature of an attention backend.

A backend takes
    qkv      (B, *padded, 3C)  projected token map, rolled by `shift` and padded to whole windows; [q; k; v] each
                               head-major
    scale    (h,) or None      factor of the cosine, at least float32; None: dot product over the root of its length
    table    (h, *offsets)     position bias per offset, at least float32 (see `geometry.expand_bias`)
    window   one side per axis of the map, such as (height, width) or (time, height, width)
    shift    one per axis, 0 if the map is not rolled along it; the score of a pair of tokens from different regions
             (`geometry.map_regions`) gets `geometry.MASK_VALUE` added
    options  see `AttentionOptions`
and returns the (B, *padded, C) map before the output projection. Backends differ only in memory and rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from swinv2_train.models.geometry import Window


@dataclass(frozen=True)
class AttentionOptions:
    """Hints that affect only rounding and memory. A backend ignores those that it does not need."""

    bias_center: float = 0.0
    """Initial value of the position bias; half precision represents differences from it best."""
    chunk_mib: float = 256.0
    """Upper bound, in MiB, on all score-sized tensors together, for backends that bound them."""


Backend = Callable[[Tensor, Tensor | None, Tensor, Window, Window, AttentionOptions], Tensor]
