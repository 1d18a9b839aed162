"""Files of single images in the output directory of `swinv2-predict`: a call replaces those of earlier ones only."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from swinv2_train.cli.prediction_files import ImageFiles
from swinv2_train.config.errors import ConfigError

FOLDERS = {"labels": (".png", ".tif"), "overlays": (".jpg",)}


def write(files: ImageFiles, path: Path) -> None:
    files.record(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


@pytest.mark.parametrize("name", ["labels/a.png", "labels/a.tif", "overlays/a.jpg"])
@pytest.mark.parametrize("kind", ["file", "link", "directory"])
def test_what_another_program_wrote_is_not_replaced(tmp_path: Path, name: str, kind: str) -> None:
    own = tmp_path / name
    own.parent.mkdir()
    {"file": own.touch, "link": lambda: own.symlink_to("nowhere"), "directory": own.mkdir}[kind]()
    with pytest.raises(
        ConfigError, match=f"did not write and would replace \\({own.name}\\): choose another directory"
    ):
        ImageFiles(tmp_path, FOLDERS).plan([Path("images/a.tif"), Path("images/b.png")])
    # Other formats are not in the way.
    assert ImageFiles(tmp_path, {"labels": (".npy",)}).plan([Path("images/a.tif")]) == {Path("images/a.tif"): Path("a")}


def test_files_of_an_interrupted_call_are_replaced(tmp_path: Path) -> None:
    odd = Path(os.fsdecode(b"images/\xff\n.png"))
    images = [Path("images/a.png"), odd]
    out = tmp_path / "out"
    out.mkdir()
    first = ImageFiles(out, FOLDERS)
    assert first.plan(images) == {images[0]: Path("a"), odd: Path(odd.stem)}
    write(first, out / "labels" / "a.png")
    write(first, out / "labels" / odd.name)
    with (out / ".swinv2-predict.jsonl").open("a") as listed:
        listed.write('"overlays/a')  # the call was killed
    second = ImageFiles(out, FOLDERS)
    second.plan(images)
    (out / "labels" / "a.png").unlink()
    write(second, out / "overlays" / "a.jpg")
    write(second, out / "labels" / odd.name)
    assert len((out / ".swinv2-predict.jsonl").read_text().splitlines()) == 2
    ImageFiles(out, FOLDERS).plan(images)
    # Removed before the last call: a new file of that name is not one of ours.
    (out / "labels" / "a.png").touch()
    with pytest.raises(ConfigError, match=r"\(a.png\)"):
        ImageFiles(out, FOLDERS).plan(images)


def test_images_that_differ_in_their_suffix_keep_it(tmp_path: Path) -> None:
    images = [Path("x/a.png"), Path("x/a.jpg"), Path("x/y/b.png")]
    places = {images[0]: Path("a.png"), images[1]: Path("a.jpg"), images[2]: Path("y/b")}
    assert ImageFiles(tmp_path, FOLDERS).plan(images) == places
    assert ImageFiles(tmp_path, {}).plan(images) is None
