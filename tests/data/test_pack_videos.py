"""Videos are packed with the times of their frames; those that cannot be decoded are named with the reason."""

from __future__ import annotations

import io
import json
import os
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image

from swinv2_train.data.card import Card
from swinv2_train.data.errors import DataError, NoHeldOutImages
from swinv2_train.data.pack import PackRun, pack
from swinv2_train.data.pack_members import StoredFile, tar_writer, write_member
from swinv2_train.data.pack_sources import open_source
from swinv2_train.data.pack_video_sources import open_videos
from swinv2_train.data.pack_writer import PackOptions
from swinv2_train.data.video import probe
from swinv2_train.data.video_packing import VideoPacking
from tests.data.filmed import film, open_filmed, packed, samples_of, shown, write_frames, write_videos
from tests.data.packed import tars
from tests.data.samples import jpeg, write_folder, write_tar
from tests.data.videos import numbered, sound_only

SMALL = VideoPacking(short_side=32, keyframes=5)


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    return write_videos(tmp_path / "src")


def test_files_are_packed_as_they_are_with_the_facts_of_their_frames(tmp_path: Path, videos: Path) -> None:
    report = packed(videos, tmp_path / "out", classes=True)
    assert (report.complete, report.broken, report.notes, report.warnings) == (True, [], [], [])
    shards = open_filmed(tmp_path / "out")
    found = samples_of(shards)
    assert sorted(found) == ["down/c", "down/d", "up/a", "up/b"]
    assert [found[key].raw.extension for key in sorted(found)] == ["avi", "mp4", "mp4", "mkv"]
    for number, key in enumerate(("up/a", "up/b", "down/c", "down/d")):
        raw = found[key].raw
        assert raw.data == (videos / f"{key}.{raw.extension}").read_bytes()
        assert found[key].video.facts == probe(raw.data)
        assert shown(found[key]) == list(range(10 * number, 10 * number + 12))
        assert raw.label == int(key.startswith("up"))
    card = report.cards["train"]
    assert shards.card == card == Card.from_json(json.loads(json.dumps(card.to_json())))
    assert (card.num_samples, card.class_names, dict(card.class_counts)) == (4, ["down", "up"], {0: 2, 1: 2})
    assert (card.channels, card.bits, card.short_sides) == ({3: 4}, {8: 4}, {0: 4})
    facts = card.videos
    assert facts is not None
    assert (facts.videos, facts.frames, facts.shortest, facts.longest) == (4, 48, 12, 12)
    assert (facts.codecs, facts.rates, facts.lengths) == ({"h264": 3, "mpeg4": 1}, {30: 4}, {1: 4})
    assert facts.milliseconds == pytest.approx(1600, abs=4)
    names = [name for name, _ in card.rows()]
    assert {"video bytes", "frames", "duration", "frames per second", "codecs"} < set(names)
    assert "image bytes" not in names
    read = [sorted(key for key in sample if not key.startswith("_")) for sample in _webdataset(tmp_path / "out")]
    assert sorted(read) == sorted([[kind, "cls", "frames.json"] for kind in ("avi",)] + [
        ["cls", "frames.json", kind] for kind in ("mkv", "mp4", "mp4")])  # fmt: skip


def _webdataset(out: Path) -> list[dict[str, bytes]]:
    return list(webdataset.WebDataset(str(out / "train-000000.tar"), shardshuffle=False))


def test_mean_and_deviation_are_those_of_frames_over_the_video(tmp_path: Path) -> None:
    """Eight of them, evenly spaced, each with the same weight."""
    white, black = np.full((48, 64, 3), 255, np.uint8), np.zeros((48, 64, 3), np.uint8)
    (tmp_path / "src").mkdir()
    for number in range(15):
        Image.fromarray(white if number < 4 else black).save(_made(tmp_path / "src/one") / f"{number}.png")
    card = packed(tmp_path / "src", tmp_path / "out").cards["train"]
    means, deviations = card.statistics(3) or ([], [])
    assert means == pytest.approx([2 / 8] * 3)  # frames 0, 2, 4, ..., 14
    assert deviations == pytest.approx([(0.25 * 0.75) ** 0.5] * 3)
    assert card.flat == 1


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def test_videos_are_encoded_upright_with_their_times_and_near_keyframes(tmp_path: Path) -> None:
    src = _made(tmp_path / "src")
    times = (700, 1700, 2200, 5200, 5300, 9000, 9900)
    (src / "turned.mp4").write_bytes(film(14, rotation=90))
    (src / "variable.mp4").write_bytes(film(7, pts=times))
    (src / "odd.mkv").write_bytes(film(7, "mkv", size=(47, 65), pix_fmt="yuv444p"))
    (src / "large.webm").write_bytes(film(7, "webm", size=(96, 160)))
    (src / "loud.mp4").write_bytes(film(7, audio=0.3))
    report = packed(src, tmp_path / "out", VideoPacking(short_side=64, keyframes=5))
    assert report.complete
    found = samples_of(open_filmed(tmp_path / "out"))
    sizes = {"turned": (64, 48), "variable": (48, 64), "odd": (46, 64), "large": (64, 106), "loud": (48, 64)}
    assert {key: sample.video.size for key, sample in found.items()} == sizes, "smaller ones keep their size"
    for key, sample in found.items():
        facts = sample.video.facts
        assert (sample.raw.extension, facts.container, facts.codec, facts.rotation) == ("mp4", "mp4", "h264", 0)
        assert shown(sample) == list(range(14 if key == "turned" else 7))
        keyframes = [*facts.keyframes.numbers.tolist(), facts.frames]
        assert max(b - a for a, b in pairwise(keyframes)) <= 5
        assert sample.raw.data.index(b"moov") < sample.raw.data.index(b"mdat"), "players can start before the end"
        assert b"soun" not in sample.raw.data
    expected = (np.array(times) - times[0]) / 15360
    variable = found["variable"].video.facts
    assert variable.times == pytest.approx(expected, abs=1e-6)
    assert variable.seconds == probe(film(7, pts=times)).seconds, "with the last frame"


def test_encoded_videos_keep_their_colors(tmp_path: Path) -> None:
    """The color matrix and range are written and read: a color that both change stays within the rounding of 8 bits."""
    colors = np.array([[200, 40, 90], [10, 180, 60], [30, 60, 220], [128, 128, 128]], np.uint8)
    image = np.kron(colors.reshape(2, 2, 3), np.ones((32, 32, 1), np.uint8))
    for number in range(4):
        Image.fromarray(image).save(_made(tmp_path / "src/one") / f"{number}.png")
    assert packed(tmp_path / "src", tmp_path / "out", VideoPacking(short_side=64)).complete
    (sample,) = samples_of(open_filmed(tmp_path / "out")).values()
    frame = sample.video.frames([2])[:, 0].permute(1, 2, 0).numpy().astype(int)
    inside = frame.reshape(2, 32, 2, 32, 3)[:, 8:24, :, 8:24].mean(axis=(1, 3))
    assert np.abs(inside.reshape(4, 3) - colors).max() < 4


@pytest.mark.parametrize(("kind", "options"), [("png", {}), ("jpg", {"quality": 95, "subsampling": 0})])
def test_frames_of_a_folder_become_a_video_without_encoding(
    tmp_path: Path, kind: str, options: dict[str, object]
) -> None:
    """Every frame is in the shard byte for byte; the numbers of the names order them, so 5 is before 10."""
    folder = write_frames(tmp_path / "src/jump/clip.v2", kind=kind, **options)
    report = packed(tmp_path / "src", tmp_path / "out", VideoPacking(fps=12.5), classes=True)
    assert report.complete
    (sample,) = samples_of(open_filmed(tmp_path / "out")).values()
    assert (sample.key, sample.raw.extension, sample.raw.label) == ("jump/clip_v2", "mov", 0)
    facts = sample.video.facts
    assert (facts.frames, facts.fps, facts.codec) == (12, 12.5, {"png": "png", "jpg": "mjpeg"}[kind])
    assert len(facts.keyframes) == 12, "any frame can be decoded alone"
    assert len(facts.to_json()["pts"]) == 1
    assert shown(sample) == list(range(12))
    for number in range(12):
        assert (folder / f"frame_{number + 5}.{kind}").read_bytes() in sample.raw.data
    if kind == "png":
        assert (sample.video.frames([11])[:, 0].permute(1, 2, 0).numpy() == numbered(11)).all()


def _two(folder: Path, first: str, second: str, *, size: int = 48, **options: object) -> None:
    Image.fromarray(numbered(0)).save(_made(folder) / first)
    Image.fromarray(numbered(1, size)).save(folder / second, **options)


def test_folders_whose_frames_do_not_fit_together_are_named(tmp_path: Path) -> None:
    src = tmp_path / "src"
    turned = Image.Exif()
    turned[0x0112] = 6
    _two(src / "size", "1.png", "2.png", size=44)
    _two(src / "format", "1.png", "2.jpg")
    _two(src / "kinds", "image_1.png", "flow_1.png")
    _two(src / "twice", "1.png", "01.png")
    _two(src / "webp", "1.webp", "2.webp")
    _two(src / "turned", "1.jpg", "2.jpg", exif=turned)
    _two(src / "broken", "1.png", "2.png")
    (src / "broken/2.png").write_bytes(b"not an image")
    _two(src / "cut", "1.jpg", "2.jpg")
    (src / "cut/2.jpg").write_bytes((src / "cut/1.jpg").read_bytes()[:700])
    _two(src / "good", "1.png", "2.png")
    report = packed(src, tmp_path / "out")
    assert list(samples_of(open_filmed(tmp_path / "out"))) == ["good"]
    reasons = {Path(one["path"]).name: one["reason"] for one in report.broken}
    assert reasons.pop("cut").startswith("its frame 2.jpg: jpeg: ")
    assert reasons == {
        "size": "its frames differ in format or size: 1.png is png, 64 x 48, 2.png is png, 64 x 44",
        "format": "its frames differ in format or size: 1.png is png, 64 x 48, 2.jpg is jpeg, 64 x 48",
        "kinds": "its images have names of different kinds, flow_1.png and image_1.png: keep one kind of frames",
        "twice": "its images 01.png and 1.png have the same number",
        "webp": "its frame 1.webp is webp, and frames are packed if they are JPEG or PNG",
        "turned": "its frame 2.jpg is turned by its EXIF tag: save the frames upright",
        "broken": "its frame 2.png is not an image, and frames are packed if they are JPEG or PNG",
    }


def _bad() -> dict[str, tuple[bytes, str]]:
    """Files that cannot be packed as they are, with the reasons."""
    mp4, mkv, avi = film(20), film(20, "mkv"), film(20, "avi")
    garbled = bytearray(mp4)
    place = mp4.index(b"moov") + 100
    garbled[place : place + 200] = np.random.default_rng(0).integers(0, 256, 200, np.uint8).tobytes()
    return {
        "empty.mp4": (b"", "it is empty"),
        "end.mp4": (mp4[:-500], "it is cut off: it has"),
        "middle.mkv": (mkv[: len(mkv) // 2], "it is cut off: it has"),
        "middle.avi": (avi[: len(avi) // 2], "it is cut off: it has"),
        "start.mp4": (mp4[700:], "it is not a video"),
        "garbled.mp4": (bytes(garbled), "it"),
        "zeros.mp4": (bytes(5000), "it begins with zeros"),
        "text.mp4": (b"A video? No, a text.\n" * 30, "it is text, not a video"),
        "page.webm": (b"<!DOCTYPE html><html>" + b" " * 900, "it is text, not a video"),
        "picture.mp4": (jpeg(0), "it is an image (jpeg), not a video"),
        "sound.mp4": (sound_only(), "it has no video stream, only audio"),
        "single.mp4": (film(1), "it has a single frame"),
        "huge.mp4": (film(2, size=(400, 400)), "400 x 400 is above the limit of 150,000 pixels"),
        "codec.mp4": (mp4.replace(b"avc1", b"zzzz"), "its codec is unknown to FFmpeg"),
        "stream.ts": (
            film(12, "mpegts", codec="libx264")[:-300],  # the reason comes before a decoding of all frames
            "its format mpegts cannot be read at random: add --short-side",
        ),
    }


def test_broken_videos_are_named_with_the_reason_and_the_others_packed(tmp_path: Path) -> None:
    bad = _bad()
    for name, (data, _) in bad.items():
        (_made(tmp_path / "src") / name).write_bytes(data)
    (tmp_path / "src/gone.mp4").symlink_to(tmp_path / "nothing.mp4")
    good = {"renamed.avi": film(12), "fast.mp4": film(12, rate=1000, time_base=1_000_000)}
    good |= {"odd.mkv": film(12, "mkv", size=(47, 65), pix_fmt="yuv444p"), "sound.mkv": film(12, "mkv", audio=0.2)}
    for name, data in good.items():
        (tmp_path / "src" / name).write_bytes(data)
    report = packed(tmp_path / "src", tmp_path / "out", max_pixels=150_000)
    assert not report.complete
    reasons = {Path(one["path"]).name: one["reason"] for one in report.broken}
    assert reasons.pop("gone.mp4") == "No such file or directory"
    assert reasons.keys() == bad.keys()
    assert {name: why for name, why in reasons.items() if not why.startswith(bad[name][1])} == {}
    listed = [json.loads(line) for line in (tmp_path / "out/broken.jsonl").read_text().splitlines()]
    assert listed == report.broken
    found = samples_of(open_filmed(tmp_path / "out"))
    assert {f"{key}.{sample.raw.extension}" for key, sample in found.items()} == {
        "renamed.mp4", "fast.mp4", "odd.mkv", "sound.mkv"
    }, "the bytes decide, and not the name"  # fmt: skip
    assert report.cards["train"].broken == len(bad) + 1
    assert not (tmp_path / "out/.videos.tmp").exists()


def test_formats_without_random_access_are_packed_if_they_are_encoded(tmp_path: Path) -> None:
    src = _made(tmp_path / "src")
    (src / "a.ts").write_bytes(film(12, "mpegts", codec="libx264"))
    (src / "b.flv").write_bytes(film(12, "flv", codec="libx264"))
    (src / "c.wmv").write_bytes(film(12, "asf", codec="mpeg4"))
    assert packed(src, tmp_path / "out", SMALL).complete
    for sample in samples_of(open_filmed(tmp_path / "out")).values():
        assert shown(sample) == list(range(12))


@pytest.mark.slow
def test_bytes_do_not_depend_on_the_number_of_processes(tmp_path: Path, videos: Path) -> None:
    """Encoding included. Two processes are started once, because a test of this promise needs them."""
    write_frames(videos / "up/frames", 6)
    alone = packed(videos, tmp_path / "alone", SMALL, max_count=2)
    assert alone.complete
    packed(videos, tmp_path / "two", SMALL, max_count=2, how=PackRun(workers=2))
    assert tars(tmp_path / "alone") == tars(tmp_path / "two") != {}


def test_an_interrupted_packing_resumes_with_the_same_bytes(tmp_path: Path, videos: Path) -> None:
    out = tmp_path / "out"
    packed(videos, out, SMALL, max_count=1)
    before = tars(out)
    (out / "train-000002.tar").unlink()
    _made(out / ".videos.tmp").joinpath("left.mp4").write_bytes(b"of a command that was killed")
    again = packed(videos, out, SMALL, max_count=1)
    assert (again.num_shards, again.num_reused, tars(out)) == (4, 3, before)
    assert not (out / ".videos.tmp").exists()
    assert packed(videos, out, SMALL, max_count=1).num_reused == 4
    assert packed(videos, out, VideoPacking(short_side=32, keyframes=6), max_count=1).num_reused == 0
    os.utime(videos / "up/a.mp4", (7, 7))
    assert packed(videos, out, VideoPacking(short_side=32, keyframes=6), max_count=1).num_reused < 4


def test_a_directory_of_shards_can_change_from_videos_to_images(tmp_path: Path, videos: Path) -> None:
    """No index of the former samples stays."""
    out = tmp_path / "out"
    packed(videos, out)
    write_folder(tmp_path / "images", 3)
    pack(str(tmp_path / "images"), out, PackOptions(), how=PackRun(overwrite=True))
    indexes = sorted(path.name for path in out.glob("*.index.*"))
    assert indexes == ["train-000000.tar.index.bin", "train-000000.tar.index.jsonl"]
    packed(videos, out, how=PackRun(overwrite=True))
    assert {".video" in path.name for path in out.glob("*.index.*")} == {True}


def test_shards_of_videos_are_packed_again(tmp_path: Path, videos: Path) -> None:
    packed(videos, tmp_path / "out", classes=True)
    again = packed(f"{tmp_path}/out/*.tar", tmp_path / "again")
    assert (again.complete, again.notes) == (True, [])
    before, after = (samples_of(open_filmed(tmp_path / name)) for name in ("out", "again"))
    assert {key: one.raw.members for key, one in before.items()} == {key: one.raw.members for key, one in after.items()}
    assert again.cards["train"].class_names == ["down", "up"]
    small = packed(f"{tmp_path}/out/*.tar", tmp_path / "small", SMALL)
    assert small.complete
    for key, sample in samples_of(open_filmed(tmp_path / "small")).items():
        assert (shown(sample), sample.raw.label) == (shown(before[key]), before[key].raw.label)


def test_foreign_shards_of_videos_are_packed_with_their_texts(tmp_path: Path) -> None:
    members = [
        ("a.cls", b"3"),
        ("a.json", b'{"fps": 25}'),
        ("a.webm", film(5, "webm")),
        ("b.cls", b"1"),
        ("b.mp4", b"x"),
    ]
    write_tar(tmp_path / "foreign.tar", members)
    report = packed(tmp_path / "foreign.tar", tmp_path / "out")
    assert [one["reason"] for one in report.broken] == ["it is text, not a video"]
    (sample,) = samples_of(open_filmed(tmp_path / "out")).values()
    assert (sample.raw.extension, sample.raw.label, sample.raw.metadata) == ("webm", 3, {"fps": 25})


def test_lists_name_files_and_folders_of_frames(tmp_path: Path, videos: Path) -> None:
    write_frames(videos / "frames", 6)
    (videos / "none").mkdir()
    rows = ["path,label", "up/a.mp4,run", "frames,jump", "down/c.avi,jump", "gone.mp4,run", "none,run"]
    (videos / "list.csv").write_text("\n".join(rows))
    report = packed(videos / "list.csv", tmp_path / "out")
    assert {Path(one["path"]).name: one["reason"] for one in report.broken} == {
        "gone.mp4": "the file does not exist (line 5 of list.csv)",
        "none": "the folder has no images",
    }
    found = samples_of(open_filmed(tmp_path / "out"))
    assert {key: sample.raw.label for key, sample in found.items()} == {"up/a": 1, "frames": 0, "down/c": 0}
    (videos / "list.jsonl").write_text('{"path": "up/a.mp4", "labels": ["x", "y"]}\n')
    packed(videos / "list.jsonl", tmp_path / "several")
    (one,) = samples_of(open_filmed(tmp_path / "several")).values()
    assert one.raw.metadata == {"labels": [0, 1]}
    (videos / "names.txt").write_text("run\njump\n")
    named = packed(videos / "list.csv", tmp_path / "named", class_names=videos / "names.txt")
    assert named.cards["train"].class_names == ["run", "jump"]
    (videos / "plain.tsv").write_text("up/a.mp4\t0\nup/gone.mp4\t1\n")
    assert len(packed(videos / "plain.tsv", tmp_path / "plain").broken) == 1


def test_splits_of_one_directory_number_their_classes_alike(tmp_path: Path, videos: Path) -> None:
    packed(videos, tmp_path / "out", classes=True)
    other = write_videos(tmp_path / "other")
    (other / "down").rename(other / "jump")
    message = r"class 0 of train in .* is 'down', and of val it would be 'jump': --class-names .*train.dataset.json"
    with pytest.raises(DataError, match=message):
        packed(other, tmp_path / "out", classes=True, split="val")
    (other / "jump").rename(other / "down")
    names = tmp_path / "out/train.dataset.json"
    assert packed(other, tmp_path / "out", classes=True, class_names=names, split="val").complete


def test_gaps_in_the_numbers_of_frames_are_named(tmp_path: Path) -> None:
    for name in ("whole", "one", "two"):
        write_frames(tmp_path / "src" / name, 6)  # 5 to 10
    for number in range(5, 11, 2):
        (tmp_path / f"src/whole/frame_{number}.png").unlink()  # a constant step is not a gap
    assert open_videos(str(tmp_path / "src")).notes == ()
    (tmp_path / "src/one/frame_7.png").unlink()
    (tmp_path / "src/two/frame_6.png").unlink()
    found = open_videos(str(tmp_path / "src"))
    (note,) = found.notes
    assert note.startswith("2 folders of frames have gaps in the numbers, such as ")
    assert note.endswith(
        "one between frame_6.png and frame_8.png: the frames are packed as if they followed each other"
    )
    assert not found.lost


def test_held_out_videos_are_divided_like_images(tmp_path: Path, videos: Path) -> None:
    """Copies, of files and of folders of frames, are on one side."""
    (videos / "up/copy.mp4").write_bytes((videos / "up/a.mp4").read_bytes())
    write_frames(videos / "up/frames", 6)
    write_frames(videos / "up/same", 6)
    report = packed(videos, tmp_path / "out", classes=True, eval_share=0.4)
    sides = [set(samples_of(open_filmed(tmp_path / "out", f"{side}-*.tar"))) for side in ("train", "eval")]
    assert [len(side) for side in sides] == [report.cards[name].num_samples for name in ("train", "eval")]
    assert all(sides)
    for pair in ({"up/a", "up/copy"}, {"up/frames", "up/same"}):
        assert any(pair <= side for side in sides), pair
    assert len(report.notes) == 1
    assert report.notes[0].startswith("exact copies of other videos, kept on one side: 2")
    with pytest.raises(NoHeldOutImages, match=r"0.01 of 4 videos leaves none for eval"):
        packed(write_videos(tmp_path / "few"), tmp_path / "none", eval_share=0.01)


def test_images_outside_of_folders_of_frames_are_named(tmp_path: Path, videos: Path) -> None:
    (videos / "up/cover.jpg").write_bytes(jpeg(0))
    (videos / "sheet.png").write_bytes(jpeg(1))
    (videos / "notes.txt").write_text("x")
    (videos / "more.zip").write_text("x")
    found = open_videos(str(videos))
    assert (len(found.entries), found.lost) == (4, True)
    assert found.notes[0] == f"{videos}: files that are not read as videos: 1 .zip, 1 .txt"
    assert found.notes[1].startswith(f"{videos}: 2 images are in no folder of frames, such as {videos}/")
    loose = write_frames(tmp_path / "only", 3)
    with pytest.raises(DataError, match=r"only has no videos .* and no folders of frames; .*3 images are in no folder"):
        open_videos(str(loose))
    assert len(open_videos(str(write_frames(tmp_path / "above/one", 3).parent)).entries) == 1


def test_what_has_no_videos_or_is_of_the_other_kind_is_one_message(tmp_path: Path, videos: Path) -> None:
    packed(videos, tmp_path / "out")
    images = write_folder(tmp_path / "images", 2)
    pack(str(images), tmp_path / "packed", PackOptions())
    (videos / "list.csv").write_text("up/a.mp4\nup/b.mkv\n")
    cases = [
        (open_source, videos, r"src has 4 videos and no images, such as .*down/c.avi: add --video to pack videos"),
        (open_source, videos / "list.csv", r"list.csv has 2 videos and no images, such as .*: add --video"),
        (open_source, videos / "up/a.mp4", r"a.mp4 is not a list .*: it is a video; name its folder, and add --video"),
        (open_source, tmp_path / "out", r"train.dataset.json are videos, and images are expected"),
        (open_videos, tmp_path / "packed", r"train.dataset.json are images, and videos are expected"),
        (open_videos, videos / "none", r"none does not exist"),
    ]
    for opening, place, message in cases:
        with pytest.raises(DataError, match=message):
            opening(str(place), classes=False, seed=0)
    with pytest.raises(DataError, match=r"--classes takes the subfolders as classes, but 2 videos lie in it directly"):
        open_videos(str(videos / "up"), classes=True)


def test_a_file_is_copied_as_bytes_would_be_and_must_not_change(tmp_path: Path) -> None:
    """The path into the tar that keeps no video in memory writes what webdataset's writer does."""
    path = tmp_path / "long.mp4"
    path.write_bytes(bytes(range(256)) * 9)
    written = []
    for content in (path.read_bytes(), StoredFile.of(path)):
        stream = io.BytesIO()
        with tar_writer(stream) as tar:
            write_member(tar, "a/" + "é" * 120, "mp4", content)
            write_member(tar, "b", "cls", b"1")
        written.append(stream.getvalue())
    assert written[0] == written[1]
    before = StoredFile.of(path)
    path.write_bytes(bytes(100))
    with tar_writer(io.BytesIO()) as tar, pytest.raises(DataError, match=r"long.mp4 was changed while it was packed"):
        write_member(tar, "a", "mp4", before)
    path.unlink()
    with tar_writer(io.BytesIO()) as tar, pytest.raises(DataError, match=r"long.mp4 disappeared while it was packed"):
        write_member(tar, "a", "mp4", before)


def test_shards_end_before_they_exceed_their_size(tmp_path: Path, videos: Path) -> None:
    packed(videos, tmp_path / "out", max_bytes=12_000)
    sizes = [path.stat().st_size for path in (tmp_path / "out").glob("*.tar")]
    assert len(sizes) > 1
    assert max(sizes) <= 12_000 or max(sizes) < 20_480, "a single larger video has its own shard"
