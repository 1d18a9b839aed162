"""The script that writes videos of moving digits: the class is the motion, and nothing else."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from swinv2_train.data.video import probe, read_frames

SCRIPTS = Path(__file__).parents[2] / "scripts"
GROUND = [Image.fromarray(np.zeros((96, 96, 3), np.uint8))]
DIGIT = np.zeros((28, 28), np.uint8)
DIGIT[8:20, 10:18] = 255


@pytest.fixture(scope="module")
def motions() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPTS))
        return importlib.import_module("moving_digits")


def light(frames: np.ndarray) -> np.ndarray:
    """(N, H, W): the brightness of frames (N, H, W, 3)."""
    return frames.astype(float).sum(axis=3)


def shifts(frames: np.ndarray) -> np.ndarray:
    """(N - 1, 2): rows and columns from each frame (N, H, W, 3) to the next one, in the circle of a side."""
    spectra = np.fft.fft2(light(frames))
    related = np.fft.ifft2(spectra[1:] * spectra[:-1].conj()).real
    side = frames.shape[1]
    found = np.stack(np.unravel_index(related.reshape(len(related), -1).argmax(axis=1), related.shape[1:]), axis=1)
    return (found + side // 2) % side - side // 2


def test_a_digit_moves_as_its_class_says_and_comes_back(motions: ModuleType) -> None:
    for name, (down, right) in motions.MOTIONS.items():
        frames = motions.moving(DIGIT, (down, right), GROUND, np.random.default_rng(3))
        assert frames.shape == (motions.FRAMES, motions.SIDE, motions.SIDE, 3)
        steps = shifts(frames)
        lowest, highest = motions.SPEED
        assert np.all(steps[:, 0] * right == 0), name
        assert np.all(steps[:, 1] * down == 0), name
        if name == "still":
            assert np.all(steps == 0)
            continue
        along = steps @ (down, right)
        assert np.all(along >= np.floor(lowest)), name
        assert np.all(along <= np.ceil(highest)), name
        # Nothing leaves the frame: all of the digit is visible at any time.
        assert np.ptp(light(frames).sum(axis=(1, 2))) == 0


def test_a_single_frame_has_the_same_distribution_in_every_class(motions: ModuleType) -> None:
    """With the same numbers, each frame of a motion is the first one in the circle: uniform starts stay uniform."""
    starts = []
    for seed in range(40):
        still = motions.moving(DIGIT, motions.MOTIONS["still"], GROUND, np.random.default_rng(seed))
        right = motions.moving(DIGIT, motions.MOTIONS["right"], GROUND, np.random.default_rng(seed))
        assert np.array_equal(still[0], right[0])
        places = [frame.sum(axis=(0, 2)) for frame in right[[0, -1]]]
        assert np.array_equal(np.sort(places[0]), np.sort(places[1]))
        starts.append(int(light(still)[0].sum(axis=0).argmax()))
    assert len(set(starts)) > 20
    assert min(starts) < 8 < motions.SIDE - 8 < max(starts)


def test_files_are_the_same_every_time_and_read_back(motions: ModuleType, tmp_path: Path) -> None:
    digits = np.stack([DIGIT, DIGIT.T])
    for folder in ("a", "b"):
        assert motions.write(tmp_path / folder, digits, GROUND, 1, seed=4) == len(motions.MOTIONS)
    names = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*.mp4"))
    assert [str(name) for name in names] == [f"{motion}/00000.mp4" for motion in sorted(motions.MOTIONS)]
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    data = (tmp_path / "a" / "right" / "00000.mp4").read_bytes()
    facts = probe(data)
    assert (facts.frames, facts.width, facts.height, facts.codec) == (motions.FRAMES, 64, 64, "h264")
    frames = read_frames(data, facts, range(facts.frames)).permute(1, 2, 3, 0).numpy()
    steps = shifts(frames)
    assert np.all(steps[:, 0] == 0)
    assert np.all(steps[:, 1] >= 1)
