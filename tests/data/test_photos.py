from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image


@pytest.fixture(scope="module")
def photos() -> ModuleType:
    spec = importlib.util.spec_from_file_location("photos", Path(__file__).parents[2] / "scripts" / "photos.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_photographs_are_cut_and_whole_ones_held_out(
    photos: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if not all(importlib.util.find_spec(package) for package in ("skimage", "sklearn")):
        pytest.skip("the packages with the photographs are not installed")
    monkeypatch.setattr(photos, "TRAIN_TILES", 2)
    monkeypatch.setattr(photos, "HELD_OUT_TILES", 2)
    for dest in ("a", "b"):
        monkeypatch.setattr(sys, "argv", ["photos.py", str(tmp_path / dest)])
        photos.main()
    files = {p.relative_to(tmp_path / "a"): p.read_bytes() for p in (tmp_path / "a").rglob("*.jpg")}
    assert files == {p.relative_to(tmp_path / "b"): p.read_bytes() for p in (tmp_path / "b").rglob("*.jpg")}
    sources = {folder: {p.name.split("-")[0] for p in files if p.parts[0] == folder} for folder in ("train", "heldout")}
    assert len(sources["train"]) == len(photos.TRAIN)
    assert len(sources["heldout"]) == len(photos.HELD_OUT) >= 2
    assert not sources["train"] & sources["heldout"]
    sizes = [Image.open(tmp_path / "a" / path).size for path in files]
    assert {side for size in sizes for side in size} == {160, 192, 224, 256}
    assert (
        f"{tmp_path / 'a' / 'train'}: {sum(p.parts[0] == 'train' for p in files)} images from"
        in capsys.readouterr().out
    )


def test_the_grid_covers_the_photograph(photos: ModuleType) -> None:
    places = list(photos.grid(300, 100, 30))
    assert 20 <= len(set(places)) == len(places) <= 40
    assert {(0, 0), (300, 0), (0, 100), (300, 100)} <= set(places)
    assert list(photos.grid(0, 0, 30)) == [(0, 0)]
    assert list(photos.grid(-1, 5, 30)) == []
