"""Memory usage for the progress line."""

from __future__ import annotations

import sys

import psutil

_GIB = 2**30


def memory_gib() -> float:
    """Return the peak GPU memory that torch has allocated on this rank's device, in GiB; on a CPU the current RSS."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / _GIB
    return psutil.Process().memory_info().rss / _GIB
