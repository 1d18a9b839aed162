"""`swinv2-predict` with a classifier of videos: tables over time, strips, and bad files."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from swinv2_train.cli.predict import main
from tests.data.filmed import film, write_frames
from tests.evaluated import classifier, clip_classifier
from tests.runs import exit_code

NAMES = ["left", "right", "down"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """clips.safetensors, images.safetensors, and videos/ with two videos, a cut one, and a picture."""
    place = tmp_path_factory.mktemp("actions")
    clip_classifier(place / "clips.safetensors", NAMES)
    classifier(place / "images.safetensors")
    (place / "videos" / "deeper").mkdir(parents=True)
    (place / "videos" / "a b.mp4").write_bytes(film(40, size=(40, 56)))
    (place / "videos" / "deeper" / "c.mkv").write_bytes(film(9, "mkv", size=(40, 56)))
    (place / "videos" / "cut.mp4").write_bytes(film(40, size=(40, 56))[:600])
    Image.new("RGB", (8, 8)).save(place / "videos" / "picture.png")
    return place


@pytest.mark.slow
def test_every_video_has_windows_averages_and_a_strip(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    videos = Path(shutil.copytree(place / "videos", tmp_path / "videos"))
    out = videos / "actions"  # a repeated call does not take its results for videos
    for _ in range(2):
        assert exit_code(main, place / "clips.safetensors", videos, "--top", 2, "--out", out, "hop=0.2") == 1
    shown = capsys.readouterr()
    assert "2 videos predicted, 1 could not be read" in shown.err
    assert "cut.mp4: it is cut off" in shown.err
    assert "1 image not read, such as" in shown.err
    written = sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())
    assert written == [
        ".swinv2-predict.jsonl", "predictions.csv", "predictions.jsonl", "sheet.html", "strips/a b.jpg",
        "strips/deeper/c.jpg", "videos.csv",
    ]  # fmt: skip

    rows = list(csv.DictReader((out / "predictions.csv").open()))
    assert list(rows[0]) == ["video", "start", "end", "class1", "p1", "class2", "p2"]
    a, c = str(videos / "a b.mp4"), str(videos / "deeper" / "c.mkv")
    assert [(row["video"], row["start"], row["end"]) for row in rows] == [
        (a, "0.000", "0.533"), (a, "0.200", "0.733"), (a, "0.400", "0.933"), (a, "0.600", "1.133"),
        (a, "0.800", "1.333"), (c, "0.000", "0.300"),
    ]  # fmt: skip
    lines = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    assert [(line["video"], line["frames"], len(line["windows"])) for line in lines] == [(a, 40, 5), (c, 9, 1)]
    windows = [window for line in lines for window in line["windows"]]
    for row, window in zip(rows, windows, strict=True):
        assert float(row["start"]) == window["start"]
        for rank, each in enumerate(window["classes"], 1):
            assert row[f"class{rank}"] == each["name"] == NAMES[each["number"]]
            assert float(row[f"p{rank}"]) == each["probability"]
    averages = list(csv.DictReader((out / "videos.csv").open()))
    assert [(row["video"], row["rank"]) for row in averages] == [(a, "1"), (a, "2"), (c, "1"), (c, "2")]
    assert [float(row["probability"]) for row in averages[:2]] == [e["probability"] for e in lines[0]["classes"]]
    assert f"{averages[0]['class']} {float(averages[0]['probability']):.1%}" in shown.out
    assert "2 videos" in (out / "sheet.html").read_text()


def test_all_classes_of_all_windows_average_to_the_summary(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    video = place / "videos" / "a b.mp4"
    assert exit_code(main, place / "clips.safetensors", video, f"jsonl={tmp_path / 'x'}", "hop=1") == 0
    assert capsys.readouterr().err.count("--hop 1 is longer than a window (0.53 s)") == 1
    (line,) = [json.loads(line) for line in (tmp_path / "x").read_text().splitlines()]
    for each in line["classes"]:
        shares = [one["probability"] for w in line["windows"] for one in w["classes"] if one["name"] == each["name"]]
        assert each["probability"] == pytest.approx(sum(shares) / len(line["windows"]), abs=1e-5)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["{place}/clips.safetensors", "{video}", "hop=0"], "hop=0: must be"),
        (["{place}/clips.safetensors", "{video}", "task.hop=-1"], "task.hop=-1"),
        (["{place}/clips.safetensors", "{video}", "tile=32"], "tile=32: requires a detector"),
        (["{place}/images.safetensors", "{video}", "hop=1"], "hop=1.0: requires a classifier of videos"),
        (["{place}/clips.safetensors", "{tmp}"], "holds no video (mp4, "),
        (["{place}/images.safetensors", "{place}/videos/deeper"], "holds no image"),
        (["{place}/clips.safetensors", "{video}", "csv={video}"], "would be overwritten"),
        (["{place}/clips.safetensors", "{video}", "data.frames=7"], "data.frames=7"),
    ],
)
def test_usage_errors_are_one_sentence(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    names = {"place": place, "tmp": tmp_path, "video": place / "videos" / "a b.mp4"}
    assert exit_code(main, *(argument.format(**names) for argument in arguments)) == 2
    message = capsys.readouterr().err.strip()
    assert says in message
    assert message.count("\n") == 0


def test_files_of_another_kind_are_named(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_frames(tmp_path / "set" / "frames", 3)
    shutil.copy(place / "videos" / "deeper" / "c.mkv", tmp_path / "set")
    picture = place / "videos" / "picture.png"
    assert exit_code(main, place / "clips.safetensors", tmp_path / "set", picture) == 1
    error = capsys.readouterr().err
    assert "picture.png: it is an image (png), not a video" in error
    assert f"1 folder of images not read, such as {tmp_path / 'set' / 'frames'}: swinv2-data pack --video" in error
    assert "1 video predicted, 1 could not be read" in error
