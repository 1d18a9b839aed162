from __future__ import annotations

import json
import logging
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import webdataset

from swinv2_train.data import shard_files
from swinv2_train.data.errors import BrokenSample, DataError
from swinv2_train.data.index_store import index_path
from swinv2_train.data.pack import PackOptions, pack
from swinv2_train.data.shards import IMAGE_AND_TEXTS, ShardSet
from tests.data.samples import jpeg, write_folder, write_shards, write_tar


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def test_samples_are_those_of_webdataset_in_its_order(tmp_path: Path, cache: Path) -> None:
    paths = write_shards(tmp_path / "d", [3, 1, 4])
    shards = ShardSet.open(str(tmp_path / "d"), cache)
    assert shards.num_samples == 8
    assert shards.shard_sizes == [3, 1, 4]
    assert shards.card is None
    theirs = list(webdataset.WebDataset(paths, shardshuffle=False))
    ours = [shards.read(i) for i in range(8)]
    assert [(s.key, s.extension, s.data) for s in ours] == [(s["__key__"], "jpg", s["jpg"]) for s in theirs]
    assert [shards.locate(i) for i in range(8)] == [(0, 0), (0, 1), (0, 2), (1, 0), (2, 0), (2, 1), (2, 2), (2, 3)]
    assert shards.name(3) == "part-000001.tar/img00003"
    for index in (-1, 8):
        with pytest.raises(IndexError):
            shards.read(index)


def test_text_members_come_on_demand(tmp_path: Path, cache: Path) -> None:
    members = [("a.jpg", jpeg(0)), ("a.cls", b" 7\n"), ("a.json", b'{"x": 1}'), ("a.txt", b"hi"), ("b.jpg", jpeg(1))]
    members += [("c.jpg", jpeg(2)), ("c.cls", b"seven"), ("c.json", b"[1]"), ("d.jpg", jpeg(3)), ("d.json", b"{")]
    shards = ShardSet.open(str(write_tar(tmp_path / "s.tar", members)), cache)
    assert shards.read(0).texts == {}
    samples = [shards.read(i, IMAGE_AND_TEXTS) for i in range(4)]
    assert [sample.label for sample in samples] == [7, None, None, None]
    assert [sample.metadata for sample in samples] == [{"x": 1}, {}, {"json": [1]}, {}]
    assert samples[0].texts["txt"] == b"hi"


def test_an_index_is_built_once_and_again_when_the_tar_changes(
    tmp_path: Path, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (path,) = write_shards(tmp_path / "d", [3])
    assert ShardSet.open(path, cache).num_samples == 3
    written = index_path(path).stat().st_mtime_ns
    assert ShardSet.open(path, cache).num_samples == 3
    assert index_path(path).stat().st_mtime_ns == written
    assert caplog.text == ""
    write_tar(Path(path), [(f"new{n}.jpg", jpeg(n)) for n in range(5)])
    shards = ShardSet.open(path, cache)
    assert shards.num_samples == 5
    assert shards.read(4).key == "new4"
    assert "changed after its index was written: indexing it again" in caplog.text


def test_a_read_only_place_gets_its_index_in_the_cache(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (path,) = write_shards(tmp_path / "d", [3])
    from swinv2_train.data import index_store

    write = index_store.write_index

    def read_only(index: object, place: Path) -> None:
        if not place.is_relative_to(cache):
            raise PermissionError(13, "read-only")
        write(index, place)  # type: ignore[arg-type]

    monkeypatch.setattr(index_store, "write_index", read_only)
    assert ShardSet.open(path, cache).num_samples == 3
    assert not index_path(path).exists()
    monkeypatch.setattr(index_store, "build_index", None)  # any use of it would fail now
    assert ShardSet.open(path, cache).read(2).key == "img00002"


def test_a_cut_off_shard_gives_its_complete_samples_and_a_message(
    tmp_path: Path, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    paths = write_shards(tmp_path / "d", [4, 2])
    os.truncate(paths[0], os.path.getsize(paths[0]) // 2)
    shards = ShardSet.open(str(tmp_path / "d"), cache)
    assert 0 < shards.shard_sizes[0] < 4
    assert shards.shard_sizes[1] == 2
    assert f"{paths[0]} is cut off (it ends inside img" in caplog.text
    assert [shards.read(i).data for i in range(shards.num_samples)][-1] == jpeg(5)


def test_a_shard_that_shrinks_under_the_run_breaks_its_samples(tmp_path: Path, cache: Path) -> None:
    (path,) = write_shards(tmp_path, [3])
    shards = ShardSet.open(path, cache)
    shards.read(0)
    os.truncate(path, 2000)
    with pytest.raises(BrokenSample, match="bytes too early"):
        shards.read(2)


def test_a_shard_that_changes_or_vanishes_under_the_run_ends_it(tmp_path: Path, cache: Path) -> None:
    paths = write_shards(tmp_path, [3, 3])
    shards = ShardSet.open(paths, cache)
    write_tar(Path(paths[0]), [("x.jpg", jpeg(0))])
    with pytest.raises(DataError, match="holds 1 sample where 3 were counted before"):
        shards.read(0)
    os.unlink(paths[1])
    with pytest.raises(DataError, match=r"part-000001\.tar can no longer be read"):
        shards.read(4)


@pytest.mark.parametrize("content", [b"x" * 2000, b"x"])
def test_a_file_that_is_not_a_tar_is_refused_by_name(tmp_path: Path, cache: Path, content: bytes) -> None:
    write_shards(tmp_path / "d", [2])
    (tmp_path / "d" / "zzz.tar").write_bytes(content)
    with pytest.raises(DataError, match=r"zzz\.tar is not a tar file"):
        ShardSet.open(str(tmp_path / "d"), cache)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is an empty file"),
        (bytes(10240), "holds no sample with an image"),
        ([("a.txt", b"x")], "1 member: its key has no image (first: a.txt)"),
        ([("a.jpg", jpeg(0))], "holds no sample with an image"),  # cut off below
    ],
)
def test_an_empty_shard_is_skipped_with_a_warning(
    tmp_path: Path, cache: Path, caplog: pytest.LogCaptureFixture, content: Any, message: str
) -> None:
    write_shards(tmp_path / "d", [2, 1])
    empty = tmp_path / "d" / "part-000000a.tar"
    if isinstance(content, bytes):
        empty.write_bytes(content)
    else:
        write_tar(empty, content)
    if content == [("a.jpg", jpeg(0))]:
        os.truncate(empty, 700)
    for _ in range(2):
        shards = ShardSet.open(str(tmp_path / "d"), cache)
        assert [shards.read(i).data for i in range(shards.num_samples)] == [jpeg(i) for i in range(3)]
        assert [shard.name for shard in shards.empty] == ["part-000000a.tar"]
        assert "1 of 3 shards skipped because they are empty" in caplog.text
        assert message in caplog.text
    with pytest.raises(DataError, match=r"part-000000a\.tar "):
        ShardSet.open(str(empty), cache)


def test_an_empty_shard_that_its_manifest_counts_is_refused(tmp_path: Path, cache: Path) -> None:
    pack(str(write_folder(tmp_path / "src", 4)), tmp_path / "out", PackOptions(max_count=2))
    (tmp_path / "out" / "train-000001.tar").write_bytes(b"")
    with pytest.raises(DataError, match=r"train-000001\.tar is an empty file .* its manifest counts 2 samples: copy"):
        ShardSet.open(str(tmp_path / "out"), cache)


def test_open_files_and_rows_stay_bounded(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_files, "_MAX_OPEN_FILES", 4)
    write_shards(tmp_path / "d", [2] * 12)
    shards = ShardSet.open(str(tmp_path / "d"), cache)
    before = len(os.listdir("/proc/self/fd"))
    for index in [*range(24), *range(0, 24, 2)]:
        assert shards.read(index).data == jpeg(index)
        assert len(os.listdir("/proc/self/fd")) <= before + 2 * 4
    shards.close()
    assert len(os.listdir("/proc/self/fd")) == before
    assert shards.read(5).data == jpeg(5)


def test_a_set_can_be_sent_to_another_process(tmp_path: Path, cache: Path) -> None:
    shards = ShardSet.open(write_shards(tmp_path, [2, 2]), cache)
    shards.read(0)
    copy = pickle.loads(pickle.dumps(shards))
    assert copy.read(3) == shards.read(3)


def test_a_copied_data_set_still_reads(tmp_path: Path, cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Copying changes the time of a tar: its index is built again, nothing else, and nothing is reported."""
    write_shards(tmp_path / "a", [3, 2])
    ShardSet.open(str(tmp_path / "a"), cache)
    shutil.copytree(tmp_path / "a", tmp_path / "b", copy_function=shutil.copyfile)
    os.utime(tmp_path / "b" / "part-000000.tar", ns=(1, 1))
    with caplog.at_level(logging.WARNING):
        shards = ShardSet.open(str(tmp_path / "b"), cache)
    assert [shards.read(i).data for i in range(5)] == [jpeg(i) for i in range(5)]
    assert caplog.text == ""


def test_an_index_of_an_earlier_version_is_built_again(
    tmp_path: Path, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Earlier versions counted no members that are not read, and read fewer formats."""
    path = write_tar(tmp_path / "s.tar", [("a.jpg", jpeg(0)), ("._a.jpg", b"x"), ("b.bmp", b"BM")])
    ShardSet.open(str(path), cache)
    header, columns = map(json.loads, index_path(path).read_text().splitlines())
    del header["left_out"]
    header["num_samples"] = 1
    columns = {"keys": ["a"], "extensions": ["jpg"], "offsets": [[512]], "sizes": [[len(jpeg(0))]]}
    index_path(path).write_text(f"{json.dumps(header)}\n{json.dumps(columns)}\n")
    caplog.clear()
    shards = ShardSet.open(str(path), cache)
    assert [shards.key(i) for i in range(shards.num_samples)] == ["a", "b"]
    assert shards.left_out(0).counts == {"hidden": (1, "._a.jpg")}
    assert "indexing it again" not in caplog.text
