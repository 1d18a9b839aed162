from __future__ import annotations

import logging
import os
import pickle
import shutil
from pathlib import Path

import pytest
import webdataset

from swinv2_train.data import shards as shards_module
from swinv2_train.data.errors import BrokenSample, DataError
from swinv2_train.data.index_store import index_path
from swinv2_train.data.shards import ShardSet
from tests.data.samples import jpeg, write_shards, write_tar


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
    assert shards.shards_of([(6, 8), (2, 4), (0, 1)]) == [2, 0, 1]
    for index in (-1, 8):
        with pytest.raises(IndexError):
            shards.read(index)


def test_text_members_come_on_demand(tmp_path: Path, cache: Path) -> None:
    members = [("a.jpg", jpeg(0)), ("a.cls", b" 7\n"), ("a.json", b'{"x": 1}'), ("a.txt", b"hi"), ("b.jpg", jpeg(1))]
    members += [("c.jpg", jpeg(2)), ("c.cls", b"seven"), ("c.json", b"[1]"), ("d.jpg", jpeg(3)), ("d.json", b"{")]
    shards = ShardSet.open(str(write_tar(tmp_path / "s.tar", members)), cache)
    assert shards.read(0).texts == {}
    samples = [shards.read(i, texts=True) for i in range(4)]
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
    with pytest.raises(DataError, match="holds 1 samples where 3 were counted before"):
        shards.read(0)
    os.unlink(paths[1])
    with pytest.raises(DataError, match=r"part-000001\.tar cannot be read any more"):
        shards.read(4)


@pytest.mark.parametrize(
    ("content", "message"), [(b"", "not a tar file"), (b"x" * 2000, "is not a tar file"), (bytes(10240), "no sample")]
)
def test_a_shard_without_images_is_refused_by_name(tmp_path: Path, cache: Path, content: bytes, message: str) -> None:
    write_shards(tmp_path / "d", [2])
    (tmp_path / "d" / "zzz.tar").write_bytes(content)
    with pytest.raises(DataError, match=rf"zzz\.tar .*{message}|zzz\.tar {message}"):
        ShardSet.open(str(tmp_path / "d"), cache)


def test_open_files_and_indexes_stay_bounded(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards_module, "_MAX_OPEN_FILES", 4)
    monkeypatch.setattr(shards_module, "_MAX_INDEXED_SAMPLES", 6)
    write_shards(tmp_path / "d", [2] * 12)
    shards = ShardSet.open(str(tmp_path / "d"), cache)
    before = len(os.listdir("/proc/self/fd"))
    for index in [*range(24), *range(0, 24, 2)]:
        assert shards.read(index).data == jpeg(index)
        assert len(os.listdir("/proc/self/fd")) <= before + 4
        assert sum(kept.num_samples for kept in shards._indexes.values()) <= 6
    shards.close()
    assert len(os.listdir("/proc/self/fd")) == before
    assert shards.read(5).data == jpeg(5)


def test_a_set_can_be_sent_to_another_process(tmp_path: Path, cache: Path) -> None:
    shards = ShardSet.open(write_shards(tmp_path, [2, 2]), cache)
    shards.read(0)
    copy = pickle.loads(pickle.dumps(shards))
    assert copy.read(3) == shards.read(3)


def test_a_copied_data_set_still_reads(tmp_path: Path, cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Copying changes the time of a tar: its index is built again, nothing else."""
    write_shards(tmp_path / "a", [3, 2])
    ShardSet.open(str(tmp_path / "a"), cache)
    shutil.copytree(tmp_path / "a", tmp_path / "b", copy_function=shutil.copyfile)
    with caplog.at_level(logging.WARNING):
        shards = ShardSet.open(str(tmp_path / "b"), cache)
    assert [shards.read(i).data for i in range(5)] == [jpeg(i) for i in range(5)]
    assert "indexing it again" in caplog.text
