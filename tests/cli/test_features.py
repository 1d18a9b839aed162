"""`swinv2-features` as a user meets it, and `swinv2-analyze attention`, which names its files the same way."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from swinv2_train.cli.analyze import main as analyze
from swinv2_train.cli.features import data_options, main
from swinv2_train.config.errors import ConfigError
from tests.evaluated import classifier, encoder, labelled_shards
from tests.runs import exit_code, make_images

PYARROW = importlib.util.find_spec("pyarrow") is not None


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("swinv2-features")
    classifier(folder / "model.safetensors")
    encoder(folder / "encoder.safetensors")
    labelled_shards(folder / "shards", 5, 3)
    make_images(folder / "images", 4, 0)
    return folder


def test_images_with_a_picture_of_neighbors(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, sheet = tmp_path / "a.npz", tmp_path / "sheet.png"
    options = ("workers=0", "device=cpu", "queries=2", "neighbors=3", f"sheet={sheet}")
    assert exit_code(main, folder / "encoder.safetensors", folder / "images", out, *options, "data.resolution=64") == 0
    assert f"{out}: 4 rows of {folder}/encoder.safetensors: features 128" in capsys.readouterr().out
    assert np.load(out)["features"].shape == (4, 128)
    picture = Image.open(sheet)
    assert picture.width > 4 * 160
    frames = [picture.convert("RGB").getpixel((x, 40)) == (0, 114, 178) for x in (13, 179)]
    assert frames == [True, False]  # only the query has a frame


def test_shards_with_maps_and_a_broken_image_among_files(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tar = folder / "shards" / "val-000000.tar"
    assert (
        exit_code(
            main, "model.window=2", folder / "model.safetensors", "stages=1,3", tar, tmp_path / "a.npz", "workers=0"
        )
        == 0
    )
    with np.load(tmp_path / "a.npz") as table:
        assert table["stage1"].shape == (5, 16, 8, 8)
        assert table["stage3"].shape == (5, 64, 2, 2)
        assert table["label"].tolist() == [0, 1, 2, 0, 1]
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    capsys.readouterr()
    items = (folder / "images", tmp_path / "broken.jpg", tmp_path / "b.npz")
    assert exit_code(main, folder / "model.safetensors", *items, "workers=0") == 1
    printed = capsys.readouterr()
    assert f"swinv2-features: {tmp_path}/broken.jpg: " in printed.err
    assert "samples that could not be used, and have no row: 1" in printed.err
    assert len(np.load(tmp_path / "b.npz")["name"]) == 4


@pytest.mark.skipif(not PYARROW, reason="pyarrow is not installed")
def test_parquet_has_the_same_columns(folder: Path, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    given = (folder / "model.safetensors", folder / "shards")
    for name in ("a.npz", "a.parquet"):
        sheet = f"sheet={tmp_path / name}.png"
        assert exit_code(main, *given, tmp_path / name, "stages=4", "workers=0", sheet) == 0
    table = pq.read_table(tmp_path / "a.parquet")
    with np.load(tmp_path / "a.npz") as plain:
        names = [name for name in plain.files if name != "about"]
        assert table.column_names == names
        for name in names:
            assert np.array_equal(
                np.array(table[name].to_pylist()), plain[name].reshape(plain[name].shape[0], -1).squeeze()
            )
        assert table.schema.metadata[b"swinv2_train"].decode() == str(plain["about"])
    assert (tmp_path / "a.npz.png").read_bytes() == (tmp_path / "a.parquet.png").read_bytes()


def test_attention_of_images(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.png"
    given = (
        "attention",
        folder / "model.safetensors",
        folder / "images" / "0000.jpg",
        folder / "images" / "0001.jpg",
        out,
    )
    assert exit_code(analyze, *given, "at=0.2,0.9", "device=cpu") == 0
    assert capsys.readouterr().out == f"{out}: 2 images\n"
    assert Image.open(out).height > 4 * 192


@pytest.mark.parametrize(
    ("command", "items", "message"),
    [
        (main, ["{model}", "a.npz"], "DATA (or data=) is missing: image or video files, folders, and patterns"),
        (main, ["{model}", "{images}", "a.csv"], "a.csv: the name of the output must end in .npz or .parquet"),
        (main, ["{model}", "{images}", "nowhere/a.npz"], "nowhere is not a directory"),
        (main, ["{model}", "{images}", "{shards}", "a.npz"], "{shards} is shards and {images} is not"),
        (main, ["{model}", "{images}", "a.npz", "stages=5"], "stages=5: must be numbers from 1 to 4"),
        (main, ["{model}", "{images}", "a.npz", "stage=1"], "stage=1: unknown option; did you mean stages?"),
        (main, ["{model}", "{images}", "a.npz", "queries=3"], "queries=3: applies to the picture of nearest neighbors"),
        (main, ["{model}", "{images}", "a.npz", "sheet=a.jpg"], "sheet=a.jpg: the name must end in .png"),
        (main, ["{model}", "{images}", "out=b"], "b: the name of the output must end in .npz or .parquet"),
        (main, ["{model}", "nowhere", "a.npz"], "nowhere does not exist"),
        (main, ["nowhere", "{images}", "a.npz"], "nowhere does not exist"),
        (main, ["{model}", "{images}", "a.npz", "precision=fp16", "device=cpu"], "precision=fp16: needs a GPU"),
        (
            main,
            ["{model}", "~nobody7/x", "a.npz"],
            "~nobody7/x: ~nobody7 is not the home of a user; write ./~nobody7/x",
        ),
        (main, ["{model}", "{images}", "out=~nobody7/a.npz"], "out=~nobody7/a.npz: ~nobody7 is not the home of a user"),
        (main, ["~nobody7/x", "{images}", "a.npz"], "~nobody7/x: ~nobody7 is not the home of a user"),
        (main, ["{model}", "x" * 300, "a.npz"], "xxx... is too long for a path (300 characters)"),
        (main, ["{model}", "{images}", "x" * 300 + ".npz"], "xxx... is too long for a path (304 characters)"),
        (main, ["{model}", "{images}", "a.npz", "data.scale=p1-p99"], "data.scale=p1-p99: percentiles are measured on"),
        (analyze, ["attention", "{model}", "~nobody7/x", "a.png"], "~nobody7 is not the home of a user"),
        (analyze, ["attention", "{model}", "a.png"], "IMAGES (or images=) is missing: files, folders, and patterns"),
        (analyze, ["attention", "{model}", "{images}", "a.jpg"], "a.jpg: the last path is the figure"),
        (analyze, ["attention", "{model}", "{images}", "a.png", "at=2,0"], "at=2,0: must be two numbers from 0 to 1"),
    ],
)
def test_usage_errors_are_one_line(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: object,
    items: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    names = {"model": folder / "model.safetensors", "images": folder / "images", "shards": folder / "shards"}
    assert exit_code(command, *(item.format(**names) for item in items)) == 2
    error = capsys.readouterr().err
    assert message.format(**names) in error
    assert len(error.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_names_and_dashes_mean_the_same(folder: Path, tmp_path: Path) -> None:
    model, images = folder / "model.safetensors", folder / "images"
    assert exit_code(main, model, images, tmp_path / "a.npz", "workers=0", "stages=2") == 0
    named = (f"out={tmp_path / 'b.npz'}", "--stages", "2", f"data={images}", "--workers=0", f"checkpoint={model}")
    assert exit_code(main, *named) == 0
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


@pytest.mark.skipif(PYARROW, reason="pyarrow is installed")
def test_parquet_without_pyarrow_names_the_package(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(main, folder / "model.safetensors", folder / "images", tmp_path / "a.parquet") == 2
    assert "Parquet needs the package pyarrow; pip install 'swinv2-train[parquet]'" in capsys.readouterr().err


def test_shards_and_images_are_told_apart(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.npz"
    for given, expected in (
        ([str(folder / "images"), "*.jpg"], {"images": (str(folder / "images"), "*.jpg")}),
        ([str(folder / "shards")], {"shards": str(folder / "shards")}),
        (["a.tar", "[b.tar,c.tar]"], {"shards": ["a.tar", "b.tar", "c.tar"]}),
        (["https://host/a.tar?sig=1"], {"shards": "https://host/a.tar?sig=1"}),
    ):
        assert data_options(given, out) == expected
    make_images(tmp_path, 1, 0)
    (tmp_path / "backup.tar").touch()
    with pytest.raises(ConfigError, match=r" holds tars and images, such as .*; name the shards by '.*/\*\.tar', or"):
        data_options([str(tmp_path)], out)


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_no_file_of_the_user_is_replaced_or_removed(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = shutil.copytree(folder / "images", tmp_path / "images")
    a, b, c = (tmp_path / f"{name}.npz" for name in "abc")
    for path in (a, b, c):
        np.savez(path, image=np.zeros((3, 8, 8), np.uint8))
    first = (images / "0000.jpg").rename(images / "0000.png")
    foreign = tmp_path / "d.npz.parts"
    foreign.mkdir()
    (foreign / "mine.txt").touch()
    (tmp_path / "e.npz.parts").touch()
    before = contents(tmp_path)
    for items, message in (
        ((a, b, c), f"{c} exists and is not a table of features"),
        ((images, tmp_path / "o.npz", f"sheet={first}"), f"{first} is one of the inputs and would be overwritten"),
        ((first, tmp_path / "o.npz", f"sheet={first}"), f"{first} is one of the inputs and would be overwritten"),
        ((images, tmp_path / "d.npz"), f"{foreign} holds files that are not parts of a table, such as mine.txt"),
        ((images, tmp_path / "e.npz"), "e.npz.parts is a file"),
        ((images, tmp_path / "o.npz", f"sheet={images}.png/x.png"), f"{images}.png is not a directory"),
    ):
        assert exit_code(main, folder / "model.safetensors", *items, "workers=0") == 2
        error = capsys.readouterr().err
        assert message in error
        assert len(error.splitlines()) == 1
    assert contents(tmp_path) == before


def test_outputs_in_the_folder_of_the_images_are_not_images(folder: Path, tmp_path: Path) -> None:
    """Also: what a killed process left is removed, and the bytes of a name need not be UTF-8."""
    images = Path(os.fsdecode(os.fsencode(tmp_path) + b"/im\xe4ges"))
    shutil.copytree(folder / "images", images)
    out, tables = images / "a.npz", []
    for _ in range(2):
        (images / "a.npz.parts").mkdir()
        (images / "a.npz.parts" / ".a.npz.1-2.partial").touch()
        assert (
            exit_code(main, folder / "model.safetensors", images, out, "workers=0", f"sheet={images / 'nb.png'}") == 0
        )
        tables.append(out.read_bytes())
    assert tables[0] == tables[1]
    assert len(np.load(out)["name"]) == 4
    assert json.loads(str(np.load(out)["about"]))["data"] == [str(images)]
    assert sorted(path.suffix for path in images.iterdir()) == [".jpg"] * 4 + [".npz", ".png"]
