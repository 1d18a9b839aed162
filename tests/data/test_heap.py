"""Large blocks go back to the system when they are freed, although small objects that stay lie between them."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from swinv2_train.data.heap import return_large_blocks


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_freed_blocks_are_returned() -> None:
    def resident() -> int:
        """KiB of memory of this process that is not of files."""
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))

    np.ones(30 << 20, np.uint8)  # from now on, glibc keeps blocks of up to this size
    return_large_blocks()
    before = resident()
    large, small = [], []
    for _ in range(20):
        large.append(np.ones(2 << 20, np.uint8))
        small.append(np.ones(4096, np.uint8))
    assert resident() - before > 36 << 10
    large.clear()
    assert resident() - before < 8 << 10
