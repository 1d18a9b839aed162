"""The memory figure of the progress line."""

from __future__ import annotations

import sys

import psutil

_GIB = 2**30


def memory_gib() -> float:
    """Peak GPU memory that torch allocated on this rank's device so far, in GiB; without a GPU, resident memory now."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / _GIB
    return psutil.Process().memory_info().rss / _GIB
