"""`swinv2-data` with videos, from packing to film strips; its options are refused where they have no effect."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from swinv2_train.data.film_strips import film_sheet
from swinv2_train.exit_codes import WRONG_USE
from tests.cli.test_data import run
from tests.data.filmed import film, open_filmed, samples_of, write_frames, write_videos
from tests.data.samples import jpeg, write_folder, write_tar


def test_videos_from_packing_to_the_sheet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_videos(tmp_path / "src")
    write_frames(source / "up/frames", 6)
    (source / "down/broken.mp4").write_bytes(film(12)[:-500])
    out = tmp_path / "out"
    arguments = ("pack", source, out, "--video", "--classes", "--eval-share", 0.4, "--workers", 0)
    code, table, err = run(capsys, *arguments, "--short-side", 32, "--keyframes", 4, "--fps", 12.5)
    assert code == 1
    assert "codecs               h264: " in table
    assert "swinv2-data: loading the decoders for 6 videos ..." in err
    assert f"1 video is broken and was skipped: see {out}/broken.jsonl" in err
    assert json.loads((out / "broken.jsonl").read_text())["reason"].startswith("it is cut off")
    found = samples_of(open_filmed(out))
    assert {sample.video.facts.size for sample in found.values()} == {(32, 42)}
    assert found["up/frames"].video.facts.fps == pytest.approx(12.5)
    assert max(len(sample.video.facts.keyframes) for sample in found.values()) >= 3

    code, table, err = run(capsys, "inspect", f"{out}/*.tar", "--sheet", tmp_path / "a.png", "--workers", 0)
    assert (code, "samples              5" in table) == (0, True)
    assert f"5 samples drawn in {tmp_path / 'a.png'}" in table
    film_sheet(open_filmed(out), tmp_path / "b.png", num_samples=12)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()

    code, _, err = run(capsys, *arguments, "--short-side", 32, "--keyframes", 4, "--fps", 12.5)
    assert (code, "2 shards" in _) == (1, True)
    assert "2 of them finished before" in _


def test_commands_on_videos_name_the_missing_package(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tar(tmp_path / "a.tar", [("a.mp4", film(3))])
    monkeypatch.setitem(sys.modules, "av", None)
    sentence = "swinv2-data: videos are read by the package av, which is not installed: pip install av\n"
    for arguments in (("pack", tmp_path, tmp_path / "out", "--video"), ("inspect", tmp_path / "a.tar", "--video")):
        code, _, err = run(capsys, *arguments)
        assert (code, err) == (WRONG_USE, sentence)


def test_inspect_reads_the_videos_of_samples_with_images_if_it_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tar(tmp_path / "both.tar", [("a.jpg", jpeg(0)), ("a.mp4", film(3)), ("b.mp4", film(3))])
    _, table, _ = run(capsys, "inspect", tmp_path / "both.tar", "--workers", 0)
    assert "image bytes" in table
    _, table, _ = run(capsys, "inspect", tmp_path / "both.tar", "--workers", 0, "--video")
    assert "video bytes" in table
    assert "frames               6, 3 to 3 in a video" in table


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            "pack {videos} {out}",
            "{videos} has 4 videos and no images, such as {videos}/down/c.avi: add --video to pack",
        ),
        (
            "pack {videos} {out} --classes",
            "{videos} has 4 videos and no images, such as {videos}/down/c.avi: add --video to pack",
        ),
        ("pack {images}/dogs {out} --video", "{images}/dogs has no videos (mp4, m4v, "),
        ("pack {videos} {out} --short-side 32", "--short-side is for videos: add --video"),
        ("pack {videos} {out} --keyframes 8", "--keyframes is for videos: add --video"),
        ("pack {videos} {out} --fps 8", "--fps is for videos: add --video"),
        ("pack {videos} {out} --video --keyframes 8", "--keyframes applies to videos that are encoded: add --short-"),
        ("pack {videos} {out} --video --short-side 33", "--short-side 33 must be even, because two pixels"),
        ("pack {videos} {out} --video --short-side 0", "--short-side 0: must be an integer of at least 2"),
        ("pack {videos} {out} --video --fps 8", "--fps 8 applies to folders of frames, and {videos} has none"),
        ("pack {videos} {out} --video --fps 0", "--fps 0: must be above 0 and at most 1000"),
        ("pack {videos} {out} --video --resize 32", "--resize shrinks images: use --short-side PIXELS with --video"),
        ("pack {videos} {out} --video --tile 32", "--tile is for images: omit it with --video"),
        ("pack {videos} {out} --video --labels x", "--labels is for images: omit it with --video"),
        ("pack {videos} {out} --video --coco x.json", "--coco is for images: omit it with --video"),
        ("pack {videos} {out} --video --zero-is-ignore", "--zero-is-ignore is for images: omit it with --video"),
        ("pack {videos} {out} --video --background black", "--background is for images: omit it with --video"),
        ("pack {videos} {out} --video --class-names x", "x cannot be read"),
        ("pack {videos}/list.csv {out} --video --classes", "--classes is for folders: a list brings its own labels"),
        (
            "pack {tars}/clips.tar {out} --video --classes",
            "--classes is for folders and lists: shards bring their own",
        ),
        ("pack {tars}/clips.tar {out}", "the samples of {tars}/clips.tar are videos, and images are expected"),
        (
            "bench {tars}/clips.tar",
            "the samples of {tars}/clips.tar are videos, and images are expected: add --frames 16",
        ),
        ("bench {tars}/pictures.tar --frames 4", "are images, and videos are expected: remove --frames"),
        (
            "inspect {tars}/clips.tar --labels seg.png",
            "--labels is for images, and these shards have videos: omit it",
        ),
        (
            "inspect {tars}/pictures.tar --video",
            "{tars}/pictures.tar are images, and videos are expected: remove --video",
        ),
    ],
)
def test_options_that_do_not_apply_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: str, message: str
) -> None:
    videos, images = tmp_path / "videos", write_folder(tmp_path / "images", 1)
    write_videos(videos)
    (videos / "list.csv").write_text("path\nup/a.mp4\n")
    write_tar(tmp_path / "tars/clips.tar", [("a.mp4", b"xx")])
    write_tar(tmp_path / "tars/pictures.tar", [("a.jpg", jpeg(0))])
    places = {"videos": videos, "images": images, "tars": tmp_path / "tars", "out": tmp_path / "out"}
    code, out, err = run(capsys, *(argument.format(**places) for argument in arguments.split()))
    assert (code, out) == (2, "")
    assert message.format(**places) in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()
