"""Images into shards: once each, as they are, the same bytes every time, and nothing lost on the way."""

from __future__ import annotations

import errno
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import webdataset

from swinv2_train.data import pack_writer
from swinv2_train.data.decode import decode
from swinv2_train.data.errors import DataError, UnwritableData
from swinv2_train.data.pack import PackOptions, PackReport, PackRun, pack
from swinv2_train.data.shards import IMAGE_AND_TEXTS
from tests.data.packed import SMALL, open_set, tars
from tests.data.packed import folder as folder
from tests.data.samples import encoded, jpeg, pixels, write_folder, write_shards, write_tar


def test_every_file_is_packed_once_as_it_is(folder: Path, tmp_path: Path) -> None:
    report = pack(str(folder), tmp_path / "out", SMALL)
    assert (report.num_shards, report.num_reused, report.broken, report.warnings) == (5, 0, [], [])
    shards = open_set(tmp_path / "out")
    assert shards.shard_sizes == [5, 5, 5, 5, 3]
    found = {sample.key: sample.data for sample in map(shards.read, range(23))}
    assert found == {f"{'cats' if n % 3 else 'dogs'}/img{n:03d}": jpeg(n) for n in range(23)}
    assert list(found) != sorted(found)  # shuffled
    assert shards.card is not None
    assert (shards.card.num_samples, shards.card.split, shards.card.channels) == (23, "train", {3: 23})
    stacked = np.stack([decode(jpeg(n)).numpy() / 255 for n in range(23)])
    mean, std = shards.card.statistics(3) or ([], [])
    assert mean == pytest.approx(stacked.mean((0, 2, 3)))
    assert std == pytest.approx(stacked.std((0, 2, 3)))


def test_webdataset_reads_the_shards(folder: Path, tmp_path: Path) -> None:
    pack(str(folder), tmp_path / "out", SMALL, classes=True)
    urls = [str(path) for path in sorted((tmp_path / "out").glob("*.tar"))]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode("rgb8").to_tuple("jpg", "cls", "__key__"))
    assert len(samples) == 23
    for image, label, key in samples:
        assert image.shape == (24, 32, 3)
        assert label == ("cats", "dogs").index(key.split("/")[0])
    assert all(by_tarfile(data) == data for data in tars(tmp_path / "out").values()), "also with labels"
    card = open_set(tmp_path / "out").card
    assert card is not None
    assert card.class_names == ["cats", "dogs"]
    assert card.class_counts == {0: 15, 1: 8}


def test_the_bytes_depend_only_on_images_and_options(folder: Path, tmp_path: Path) -> None:
    pack(str(folder), tmp_path / "a", SMALL)
    os.utime(folder / "cats" / "img001.jpg", (0, 0))
    pack(str(folder), tmp_path / "b", SMALL, how=PackRun(workers=2))
    assert tars(tmp_path / "a") == tars(tmp_path / "b")
    assert (
        tars(tmp_path / "a")
        != (pack(str(folder), tmp_path / "c", PackOptions(max_count=5, seed=1)), tars(tmp_path / "c"))[1]
    )
    manifests = [(tmp_path / out / "train.dataset.json").read_text() for out in "ab"]
    cards = [json.loads(manifest)["card"] for manifest in manifests]
    assert cards[0] == cards[1]


def by_tarfile(shard: bytes) -> bytes:
    """The members of a shard as earlier versions wrote them, with Python's own module."""
    buffer = io.BytesIO()
    with (
        tarfile.open(fileobj=io.BytesIO(shard)) as old,
        tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as new,
    ):
        for member in old:
            info = tarfile.TarInfo(member.name)
            info.size = member.size
            new.addfile(info, old.extractfile(member))
    return buffer.getvalue()


def test_shards_stay_below_their_bound(tmp_path: Path) -> None:
    source = tmp_path / "src"
    for n in range(30):
        name = "x" * 150 if n % 5 == 0 else "ü" if n % 7 == 0 else "img"
        path = source / f"{name}{n}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(encoded(np.random.default_rng(n).integers(0, 255, (40 + 3 * n, 40, 3), np.uint8), "PNG"))
    limit = 60_000
    pack(str(source), tmp_path / "out", PackOptions(max_bytes=limit))
    assert all(by_tarfile(data) == data for data in tars(tmp_path / "out").values())
    sizes = [len(data) for data in tars(tmp_path / "out").values()]
    assert all(limit / 2 < size <= limit for size in sizes[:-1])
    assert sum(open_set(tmp_path / "out").shard_sizes) == 30
    pack(str(source), tmp_path / "alone", PackOptions(max_bytes=1))
    assert open_set(tmp_path / "alone").shard_sizes == [1] * 30


def test_the_same_command_again_does_nothing(folder: Path, tmp_path: Path) -> None:
    pack(str(folder), tmp_path / "out", SMALL)
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.tar*")}
    report = pack(str(folder), tmp_path / "out", SMALL)
    assert (report.num_shards, report.num_reused) == (5, 5)
    assert report.cards["train"].num_samples == 23
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.tar*")} == before


def test_a_damaged_manifest_is_written_again(folder: Path, tmp_path: Path) -> None:
    pack(str(folder), tmp_path / "out", PackOptions(), classes=True)
    manifest = tmp_path / "out" / "train.dataset.json"
    intact = manifest.read_text()
    for damaged in (intact[:100], "[]", intact.replace('"format": 1', '"format": 1, "format": 2')):
        manifest.write_text(damaged)
        report = pack(str(folder), tmp_path / "out", PackOptions(), classes=True)
        assert report.num_reused == report.num_shards
        assert manifest.read_text() == intact


@pytest.mark.parametrize("workers", [0, 1])
def test_what_changed_is_packed_again_and_nothing_else(folder: Path, tmp_path: Path, workers: int) -> None:
    out = tmp_path / "out"
    pack(str(folder), out, SMALL)
    old = open_set(out)
    shard, _ = old.locate(12)
    (folder / f"{old.read(12).key}.jpg").write_bytes(jpeg(99))
    report = pack(str(folder), out, SMALL, how=PackRun(workers=workers))
    assert (report.num_shards, report.num_reused) == (5, 4)
    pack(str(folder), tmp_path / "fresh", SMALL)
    assert tars(out) == tars(tmp_path / "fresh")
    assert old.shards[shard].name == "train-000002.tar"
    (folder / f"{old.read(22).key}.jpg").unlink()  # fewer images: what is left over goes
    for key in [old.read(i).key for i in range(8)]:
        (folder / f"{key}.jpg").unlink(missing_ok=True)
    pack(str(folder), out, SMALL)
    assert open_set(out).num_samples == 14
    assert len(tars(out)) == 3


def test_other_options_pack_again(folder: Path, tmp_path: Path) -> None:
    pack(str(folder), tmp_path / "out", SMALL)
    assert pack(str(folder), tmp_path / "out", PackOptions(max_count=4)).num_reused == 0
    assert open_set(tmp_path / "out").shard_sizes == [4, 4, 4, 4, 4, 3]


KILLED = """
import os, signal, sys
from pathlib import Path
from swinv2_train.data import pack_writer
from swinv2_train.data.pack import PackOptions, pack

add, count = pack_writer._add, [0]
def add_and_die(*arguments):
    add(*arguments)
    count[0] += 1
    if count[0] == 13:
        print("now", flush=True)
        signal.pause()
pack_writer._add = add_and_die
if __name__ == "__main__":
    pack(sys.argv[1], Path(sys.argv[2]), PackOptions(max_count=5))
"""


@pytest.mark.slow
def test_a_killed_pack_goes_on_where_it_stopped(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-c", KILLED, str(folder), str(out)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "now\n"
    assert len(list(out.glob(".*.tmp"))) == 1
    with pytest.raises(DataError, match="another swinv2-data pack is writing to"):
        pack(str(folder), out, SMALL)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert list(tars(out)) == ["train-000000.tar", "train-000001.tar"]
    report = pack(str(folder), out, SMALL)
    assert (report.num_shards, report.num_reused) == (5, 2)
    pack(str(folder), tmp_path / "fresh", SMALL)
    assert tars(out) == tars(tmp_path / "fresh")
    assert not list(out.glob(".*"))


def test_an_unfinished_pack_can_be_read_with_a_warning(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pack(str(folder), tmp_path / "out", SMALL)
    (tmp_path / "out" / "train.dataset.json").unlink()
    assert open_set(tmp_path / "out").num_samples == 23
    assert "from a swinv2-data pack that did not finish" in caplog.text


def test_broken_files_are_left_out_and_listed(folder: Path, tmp_path: Path) -> None:
    (folder / "cats" / "cut.jpg").write_bytes(jpeg(1)[:400])
    (folder / "cats" / "text.png").write_bytes(b"hello")
    (folder / "cats" / "empty.webp").write_bytes(b"")
    (folder / "cats" / "dangling.jpg").symlink_to("nowhere")
    for attempt in range(2):  # the second time, the list comes from finished shards
        report = pack(str(folder), tmp_path / "out", SMALL)
        assert report.num_reused == (5 if attempt else 0)
        lines = [json.loads(line) for line in (tmp_path / "out" / "broken.jsonl").read_text().splitlines()]
        assert lines == report.broken
        assert {Path(line["path"]).name: line["reason"].split(":")[0] for line in lines} == {
            "cut.jpg": "jpeg",
            "text.png": "it is not a JPEG, PNG, WebP, TIFF, BMP, GIF, AVIF, or JPEG 2000 image",
            "empty.webp": "it is empty",
            "dangling.jpg": "No such file or directory",
        }
        assert report.cards["train"].num_samples == 23
        assert report.cards["train"].broken == 4
    for path in ("cut.jpg", "text.png", "empty.webp", "dangling.jpg"):
        (folder / "cats" / path).unlink()
    pack(str(folder), tmp_path / "out", SMALL)
    assert not (tmp_path / "out" / "broken.jsonl").exists()


def test_a_held_out_share_is_disjoint_and_stable(folder: Path, tmp_path: Path) -> None:
    report = pack(str(folder), tmp_path / "out", SMALL, eval_share=0.3)
    train, held_out = (open_set(tmp_path / "out", f"{split}-*.tar") for split in ("train", "eval"))
    keys = [{s.read(i).key for i in range(s.num_samples)} for s in (train, held_out)]
    assert len(keys[0] | keys[1]) == 23
    assert not keys[0] & keys[1]
    assert 0 < len(keys[1]) < 14
    assert held_out.card is not None
    assert held_out.card.split == "eval"
    assert report.cards["eval"].num_samples == len(keys[1])
    (folder / "cats" / "another.jpg").write_bytes(jpeg(77))
    pack(str(folder), tmp_path / "more", SMALL, eval_share=0.3)
    again = open_set(tmp_path / "more", "eval-*.tar")
    assert {again.read(i).key for i in range(again.num_samples)} - {"cats/another"} == keys[1]
    with pytest.raises(DataError, match=r"--eval-share 1e-09 of 24 images leaves none for eval"):
        pack(str(folder), tmp_path / "none", SMALL, eval_share=1e-9)


def test_shards_can_be_packed_again_with_their_texts(tmp_path: Path) -> None:
    members = [
        (f"s{n}.{e}", d) for n in range(4) for e, d in (("jpg", jpeg(n)), ("cls", b"%d" % n), ("json", b'{"n": 1}'))
    ]
    write_tar(tmp_path / "src" / "a.tar", [*members, ("s9.jpg", b"broken"), ("s9.pyd", b"pickle")])
    write_tar(tmp_path / "src" / "b.tar", members[:3])  # the same key again
    report = pack(str(tmp_path / "src"), tmp_path / "out", PackOptions(max_count=2), how=PackRun(workers=1))
    assert [line["path"].rpartition("src/")[2] for line in report.broken] == ["a.tar/s9"]
    shards = open_set(tmp_path / "out")
    samples = {s.key: s for s in (shards.read(i, IMAGE_AND_TEXTS) for i in range(5))}
    assert sorted(samples) == ["s0", "s0-2", "s1", "s2", "s3"]
    assert samples["s0"].data == samples["s0-2"].data == jpeg(0)
    assert samples["s3"].label == 3
    assert samples["s3"].metadata == {"n": 1}


def test_files_that_differ_in_their_extension_only_both_get_a_key(tmp_path: Path) -> None:
    source = tmp_path / "src"
    source.mkdir()
    (source / "a.v1.jpg").write_bytes(jpeg(0))
    (source / "a.v1.png").write_bytes(encoded(pixels(1), "PNG"))
    (source / "a.v1.JPEG").write_bytes(jpeg(2))
    (source / ".hidden.jpg").write_bytes(jpeg(3))
    (source / "loop").symlink_to(source)
    pack(str(source), tmp_path / "out", SMALL)
    shards = open_set(tmp_path / "out")
    assert sorted(shards.read(i).key for i in range(shards.num_samples)) == ["a_v1", "a_v1-2", "a_v1-3"]


def test_large_images_are_shrunk_and_small_ones_left(tmp_path: Path) -> None:
    source = tmp_path / "src"
    source.mkdir()
    (source / "small.jpg").write_bytes(jpeg(0))
    (source / "large.png").write_bytes(encoded(pixels(1, 90, 160), "PNG"))
    (source / "grey.jpg").write_bytes(encoded(pixels(2, 100, 50, 1)))
    for name, channels, dtype in (("bands.tif", 5, np.uint8), ("wide.tif", 3, np.uint16), ("one.tif", 1, np.uint16)):
        array = pixels(3, 120, 60, channels, dtype)
        tifffile.imwrite(
            source / name,
            array.squeeze(),
            photometric="minisblack",
            **({"planarconfig": "contig"} if channels > 1 else {}),
        )
    report = pack(str(source), tmp_path / "out", PackOptions(resize=40, quality=90))
    shards = open_set(tmp_path / "out")
    samples = {s.key: s for s in map(shards.read, range(6))}
    images = {key: decode(sample.data) for key, sample in samples.items()}
    assert samples["small"].data == jpeg(0)
    assert {key: tuple(image.shape) for key, image in images.items()} == {
        "small": (3, 24, 32),
        "large": (3, 22, 40),
        "grey": (1, 40, 20),
        "bands": (5, 40, 20),
        "wide": (3, 40, 20),
        "one": (1, 40, 20),
    }
    assert {key: sample.extension for key, sample in samples.items() if key in ("large", "bands")} == {
        "large": "jpg",
        "bands": "tif",
    }
    assert str(images["wide"].dtype) == str(images["one"].dtype) == "torch.uint16"
    covered = pixels(3, 120, 60, 3, np.uint16)[60:63, 30:33].mean((0, 1))
    assert images["wide"][:, 20, 10].double().numpy() == pytest.approx(covered, abs=500)
    assert len(report.warnings) == 1
    assert "the images differ in their number of channels" in report.warnings[0]


def test_channels_can_be_demanded(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "src", 4)
    tifffile.imwrite(source / "bands.tif", pixels(0, channels=5), photometric="minisblack", planarconfig="contig")
    report = pack(str(source), tmp_path / "out", PackOptions(channels=3))
    assert [line["reason"] for line in report.broken] == ["it has 5 channels, not 3"]
    assert report.warnings == []


@pytest.mark.parametrize("fails_at", ["write", "fsync"])
def test_a_full_disk_ends_in_one_sentence_and_finished_shards_stay(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails_at: str
) -> None:
    out = tmp_path / "out"
    full = OSError(errno.ENOSPC, "No space left on device")
    calls = {"n": 0}

    def fail_later(real: Any, limit: int) -> Any:
        def call(*arguments: Any) -> Any:
            calls["n"] += 1
            if calls["n"] > limit:
                raise full
            return real(*arguments)

        return call

    with monkeypatch.context() as patch:
        if fails_at == "write":
            patch.setattr(pack_writer, "_add", fail_later(pack_writer._add, 12))
        else:
            patch.setattr(os, "fsync", fail_later(os.fsync, 4))  # twice per shard: tar and index
        with pytest.raises(
            UnwritableData, match=r"no space is left for .*: the shards finished so far \(2\) are valid; make room"
        ):
            pack(str(folder), out, SMALL)
    assert list(tars(out)) == ["train-000000.tar", "train-000001.tar"]
    assert not list(out.glob(".*.tmp"))
    assert open_set(out).num_samples == 10
    assert pack(str(folder), out, SMALL).num_reused == 2


def test_shards_of_others_are_not_overwritten(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_tar(out / "train-000007.tar", [("a.jpg", jpeg(0))])
    with pytest.raises(
        DataError, match=r"train-000007\.tar was not written by swinv2-data pack: choose another directory"
    ):
        pack(str(folder), out, SMALL, how=PackRun(overwrite=True))
    other = write_folder(tmp_path / "other", 3)
    pack(str(other), tmp_path / "mine", SMALL)
    with pytest.raises(DataError, match=r"mine holds train of .*/other: choose another directory, or give --overwrite"):
        pack(str(folder), tmp_path / "mine", SMALL)
    assert open_set(tmp_path / "mine").num_samples == 3
    pack(str(folder), tmp_path / "mine", SMALL, how=PackRun(overwrite=True))
    assert open_set(tmp_path / "mine").num_samples == 23


def failing(source: str, tmp_path: Path, **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        pack(source, tmp_path / "out", SMALL, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_usage_errors_are_one_sentence(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "holds no images" in failing(str(tmp_path / "empty"), tmp_path)
    assert "does not exist" in failing(str(tmp_path / "nowhere"), tmp_path)
    (folder / "loose.jpg").write_bytes(jpeg(0))
    assert "1 images lie in it directly" in failing(str(folder), tmp_path, classes=True)
    (folder / "list.csv").write_text("a,b,c\n")
    assert "line 1: expected path or path,label" in failing(str(folder / "list.csv"), tmp_path)
    (folder / "list.csv").write_text("cats/img001.jpg,x\ncats/img002.jpg\n")
    assert "1 of 2 lines have no label" in failing(str(folder / "list.csv"), tmp_path)
    (folder / "list.jsonl").write_text("[]\n")
    assert "line 1: expected" in failing(str(folder / "list.jsonl"), tmp_path)
    assert "--classes is for folders" in failing(str(folder / "list.jsonl"), tmp_path, classes=True)
    (paths,) = [write_shards(tmp_path / "tars", [1])]
    assert "--classes is for folders" in failing(paths[0], tmp_path, classes=True)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.jpg").write_bytes(b"x")
    assert "the only image of" in failing(str(tmp_path / "bad"), tmp_path)
    assert (tmp_path / "out" / "broken.jsonl").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        pack(str(folder), tmp_path / "file", SMALL)


def test_a_report_without_anything_has_no_warnings() -> None:
    assert PackReport().warnings == []


def test_a_split_next_to_one_of_the_same_images_is_rejected(folder: Path, tmp_path: Path) -> None:
    """Packed again without --eval-share, the held-out images would be trained on."""
    pack(str(folder), tmp_path / "out", SMALL, eval_share=0.3)
    before = tars(tmp_path / "out")
    with pytest.raises(DataError, match=r"contains eval of .*, whose images would also be in train"):
        pack(str(folder), tmp_path / "out", SMALL)
    assert tars(tmp_path / "out") == before
    pack(str(folder), tmp_path / "out", SMALL, eval_share=0.3)
