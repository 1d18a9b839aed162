"""Videos that the packer encodes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from swinv2_train.data.video import probe
from swinv2_train.data.video_writing import encode
from tests.data.videos import video

ENCODE = """
import sys
from pathlib import Path
from swinv2_train.data.video import probe
from swinv2_train.data.video_writing import encode
source, target = map(Path, sys.argv[1:])
encode(source, probe(source), target, short_side=32, keyframes=30)
"""


def _moving(count: int) -> list[np.ndarray]:
    """A coarse texture that moves and changes its brightness, so that x264 weighs and moves all its blocks."""
    cells = np.random.default_rng(0).integers(0, 255, (11, 17, 3))
    texture = np.kron(cells, np.ones((8, 8, 1)))[:84, :132].astype(np.uint8)
    return [np.ascontiguousarray(np.roll(texture, (n, 3 * n), (0, 1)) // (1 + (n % 3 == 2))) for n in range(count)]


@pytest.mark.slow
def test_encoded_bytes_do_not_depend_on_the_contents_of_free_memory(tmp_path: Path) -> None:
    """glibc fills memory that is allocated in the other process with another byte."""
    source = tmp_path / "source.mkv"
    source.write_bytes(video(_moving(40), "mkv", size=(84, 132), codec="ffv1"))
    encode(source, probe(source), tmp_path / "here.mp4", short_side=32, keyframes=30)
    command = [sys.executable, "-c", ENCODE, str(source), str(tmp_path / "there.mp4")]
    subprocess.run(command, env=os.environ | {"MALLOC_PERTURB_": "85"}, check=True)
    assert (tmp_path / "here.mp4").read_bytes() == (tmp_path / "there.mp4").read_bytes()
