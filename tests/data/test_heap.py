"""Large blocks go back to the system when they are freed, although small objects that stay lie between them."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
from pathlib import Path
import numpy as np
from swinv2_train.data.heap import return_large_blocks

def resident():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))

np.ones(30 << 20, np.uint8)  # from now on, glibc keeps blocks of up to this size
return_large_blocks()
before = resident()
large, small = [], []
for _ in range(20):
    large.append(np.ones(2 << 20, np.uint8))
    small.append(np.ones(4096, np.uint8))
used = resident() - before
large.clear()
print(used, resident() - before)
"""
"""In a process of its own, whose heap has no free blocks that others left."""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_freed_blocks_are_returned() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    used, kept = map(int, done.stdout.split())  # KiB
    assert used > 36 << 10
    assert kept < 8 << 10
