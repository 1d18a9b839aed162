"""Memory that the C library keeps after it is freed."""

from __future__ import annotations

import contextlib
import ctypes
from functools import cache

_MMAP_THRESHOLD = -3  # M_MMAP_THRESHOLD of glibc's malloc.h
_LARGE = 1 << 20


@cache
def return_large_blocks() -> None:
    """Have this process return blocks of at least 1 MiB to the system as soon as they are freed.

    By default, glibc raises this limit to the size of the first large block that is freed, up to 32 MiB, and keeps
    later ones in its heap, where small objects that stay cut up their space. Packing tiles of 1,024 pixels and 4
    channels needed 24 MiB more with every tile (glibc 2.36). Other C libraries have no such limit.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, _LARGE)
