"""The signature of an attention backend.

A backend takes
    qkv      (B, *padded, 3C)  projected token map, rolled by `shift` and padded to whole windows; [q; k; v] each
                               head-major
    scale    (h,) or None      factor of the cosine, at least float32; None: dot product over the root of its length
    table    (h, *offsets)     position bias per offset, at least float32 (see `geometry.expand_bias`)
    window   one side per axis of the map, such as (height, width) or (time, height, width)
    shift    one per axis, 0 if the map is not rolled along it; pairs of tokens from different regions
             (`geometry.map_regions`, with `options.time_padding`) are masked as `geometry.score_mask` does
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
    """The padding of a clip, which a backend must obey, and hints that affect only rounding and memory."""

    bias_center: float = 0.0
    """Initial value of the position bias; half precision represents differences from it best."""
    chunk_mib: float = 256.0
    """Upper bound, in MiB, on all score-sized tensors together, for backends that bound them."""
    time_padding: int = 0
    """Padding tokens at the end of the time axis before the roll, to which no other token may attend. Images have none:
    their padding takes part in the attention, as in the official code."""


Backend = Callable[[Tensor, Tensor | None, Tensor, Window, Window, AttentionOptions], Tensor]
