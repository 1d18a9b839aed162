"""Binary rows of an index: the same members as the index, no parsing, damage noticed, made on first sight."""

from __future__ import annotations

import logging
import multiprocessing
import os
import pickle
import tarfile
from pathlib import Path

import pytest

from swinv2_train.data import index_store, remote
from swinv2_train.data.index import ShardIndex, build_index, read_index, write_index
from swinv2_train.data.index_rows import IndexRows, rows_of, write_rows
from swinv2_train.data.index_store import index_path, rows_path
from swinv2_train.data.pack import PackOptions, PackRun, pack
from swinv2_train.data.samples import VIDEO, Scope
from swinv2_train.data.shards import ShardSet
from swinv2_train.reading import UnreadableError
from tests.data.http_server import FlakyServer
from tests.data.operations import operations
from tests.data.samples import jpeg, write_folder, write_shards, write_tar

NAMES = [
    "a.jpg",
    "a.cls",
    "a.seg.png",
    "b.png",
    "b.npy",
    "grün/ß.webp",
    "x" * 300 + ".jpg",
    "v.mp4",
    "v.",
    "\udcff/c.jpg",
]


def built(path: Path, scope: Scope) -> ShardIndex:
    with path.open("rb") as file:
        return build_index(str(path), file.fileno(), scope=scope)


def content_of(rows: IndexRows) -> list[tuple[str, dict[str, tuple[int, int]]]]:
    return [rows.sample(number) for number in range(rows.num_samples)]


def same(index: ShardIndex) -> list[tuple[str, dict[str, tuple[int, int]]]]:
    return [(key, index.members(number)) for number, key in enumerate(index.keys)]


@pytest.mark.parametrize("scope", [Scope(), Scope(all_members=True), Scope(VIDEO, all_members=True)])
def test_rows_have_the_members_of_the_index(tmp_path: Path, scope: Scope) -> None:
    path = write_tar(tmp_path / "s.tar", [(name, name.encode("utf-8", "surrogateescape")) for name in NAMES])
    index = built(path, scope)
    write_rows(index, tmp_path / "s.rows")
    for rows in (IndexRows.open(tmp_path / "s.rows"), IndexRows(rows_of(index))):
        assert content_of(rows) == same(index)
        assert (rows.scope, rows.extensions, rows.truncated) == (scope, index.extensions, False)
        assert (rows.tar_size, rows.tar_mtime_ns) == (path.stat().st_size, path.stat().st_mtime_ns)
        rows.close()


def test_a_head_of_any_length_is_read(tmp_path: Path) -> None:
    """Names such as img_0.25.jpg give every sample its own extension."""
    index = built(write_tar(tmp_path / "s.tar", [(f"img_0.{n:040d}.jpg", b"x") for n in range(200)]), Scope())
    assert len(index.extensions) == 200
    assert content_of(IndexRows(rows_of(index))) == same(index)


def test_every_damaged_byte_is_noticed(tmp_path: Path) -> None:
    index = built(write_tar(tmp_path / "s.tar", [("a.jpg", b"1"), ("a.cls", b"2"), ("bc.png", b"3")]), Scope())
    intact = rows_of(index)
    for place in range(len(intact)):
        for flip in (1, 0x80):
            damaged = intact[:place] + bytes([intact[place] ^ flip]) + intact[place + 1 :]
            with pytest.raises(UnreadableError):
                content_of(IndexRows(damaged))
    for other in (b"", b"{}", intact[:-1], intact + b"\0", intact[:70], bytes(len(intact)), intact[::-1]):
        with pytest.raises(UnreadableError):
            content_of(IndexRows(other))


def test_rows_of_other_samples_are_not_taken(tmp_path: Path) -> None:
    """Two rows in each other's place have the right bytes, but the checksum covers the number of the sample."""
    index = built(write_tar(tmp_path / "s.tar", [("a.jpg", b"1"), ("b.jpg", b"2")]), Scope())
    intact = rows_of(index)
    first = len(intact) - len("ab") - 2 * 32
    swapped = intact[:first] + intact[first + 32 : first + 64] + intact[first : first + 32] + intact[first + 64 :]
    with pytest.raises(UnreadableError, match="row 0 has been changed"):
        IndexRows(swapped).sample(0)


def test_an_index_of_an_earlier_version_is_converted_on_first_sight(tmp_path: Path) -> None:
    paths = write_shards(tmp_path / "d", [3, 2])
    for path in paths:
        write_index(built(Path(path), Scope()), index_path(path))
    before = [index_path(path).read_bytes() for path in paths]
    for opens in (2, 0):
        shards = ShardSet.open(str(tmp_path / "d"), tmp_path / "cache")
        with operations(tmp_path) as counts:
            assert [shards.read(number).data for number in range(5)] == [jpeg(number) for number in range(5)]
        assert counts["open .jsonl"] == opens, "an index is parsed once, and never again"
        shards.close()
    assert [index_path(path).read_bytes() for path in paths] == before, "earlier versions still read it"


def test_packed_shards_come_with_their_rows(tmp_path: Path) -> None:
    pack(str(write_folder(tmp_path / "src", 7)), tmp_path / "out", PackOptions(max_count=3))
    with operations(tmp_path / "out") as counts:
        shards = ShardSet.open(str(tmp_path / "out"), tmp_path / "cache")
        assert len({shards.read(number).key for number in range(7)}) == 7
    assert counts["open .jsonl"] == 0
    for tar in (tmp_path / "out").glob("*.tar"):
        index = read_index(index_path(tar))
        assert index is not None
        assert content_of(IndexRows.open(rows_path(tar))) == same(index)
    few = write_folder(tmp_path / "few", 2)
    pack(str(few), tmp_path / "out", PackOptions(max_count=3), how=PackRun(overwrite=True))
    assert sorted(path.name for path in (tmp_path / "out").glob("*.bin")) == ["train-000000.tar.index.bin"]


def test_rows_of_a_tar_that_changed_are_made_again(tmp_path: Path) -> None:
    (path,) = write_shards(tmp_path, [3])
    ShardSet.open(path, tmp_path / "cache").read(0)
    old = rows_path(path).read_bytes()
    write_tar(Path(path), [(f"new{n}.jpg", jpeg(n)) for n in range(5)])
    shards = ShardSet.open(path, tmp_path / "cache")
    assert [shards.read(n).key for n in range(5)] == [f"new{n}" for n in range(5)]
    assert rows_path(path).read_bytes() != old
    os.utime(path, ns=(7, 7))  # only touched
    assert ShardSet.open(path, tmp_path / "cache").read(4).key == "new4"
    assert IndexRows.open(rows_path(path)).tar_mtime_ns == 7


@pytest.mark.parametrize("place", ["head", "row"])
def test_damaged_rows_are_made_again(tmp_path: Path, place: str, caplog: pytest.LogCaptureFixture) -> None:
    (path,) = write_shards(tmp_path, [3])
    ShardSet.open(path, tmp_path / "cache").read(0)
    intact = rows_path(path).read_bytes()
    damaged = bytearray(intact)
    damaged[20 if place == "head" else -1] ^= 1
    rows_path(path).write_bytes(damaged)
    shards = ShardSet.open(path, tmp_path / "cache")
    assert [shards.read(n).data for n in range(3)] == [jpeg(n) for n in range(3)]
    assert rows_path(path).read_bytes() == intact
    assert "has been changed (its checksum differs)" in caplog.text


def test_a_damaged_index_does_not_matter_to_its_rows(tmp_path: Path) -> None:
    (path,) = write_shards(tmp_path, [3])
    shards = ShardSet.open(path, tmp_path / "cache")
    shards.read(0)
    index_path(path).write_text("{}")
    assert [shards.read(n).data for n in range(3)] == [jpeg(n) for n in range(3)]


@pytest.mark.parametrize("writable", ["cache", "nothing"])
def test_read_only_places(
    tmp_path: Path, writable: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    paths = write_shards(tmp_path / "d", [2] * 5)
    for path in paths:
        write_index(built(Path(path), Scope()), index_path(path))

    def read_only(index: ShardIndex, place: Path) -> None:
        if writable == "nothing" or not place.is_relative_to(tmp_path / "cache"):
            raise PermissionError(13, "read-only")
        write_rows(index, place)

    monkeypatch.setattr(index_store, "write_rows", read_only)
    monkeypatch.setattr("swinv2_train.data.shard_files._MAX_ROW_BYTES", 500)  # two or three of them
    shards = ShardSet.open(str(tmp_path / "d"), tmp_path / "cache")
    with caplog.at_level(logging.WARNING):
        assert [shards.read(number).data for number in range(10)] == [jpeg(number) for number in range(10)]
    assert not list((tmp_path / "d").glob("*.bin"))
    assert len(list(tmp_path.glob("cache/index/*.bin"))) == (5 if writable == "cache" else 0)
    assert caplog.text.count("reading the entire index every time") == (writable == "nothing")
    assert sum(rows.memory for rows in shards._files._rows.values()) <= 500


def test_one_warning_if_no_index_can_be_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def read_only(*_: object) -> None:
        raise PermissionError(13, "read-only")

    for name in ("write_index", "write_rows"):
        monkeypatch.setattr(index_store, name, read_only)
    write_shards(tmp_path / "d", [2] * 9)
    shards = ShardSet.open(str(tmp_path / "d"), tmp_path / "cache")
    assert [shards.read(number).data for number in range(18)]
    assert [record.getMessage().partition(" (first")[0] for record in caplog.records] == [
        "cannot store the indexes of shards"
    ]
    assert f"or in {tmp_path}/cache; rebuilding them every time: set data.cache_dir" in caplog.text
    sent = pickle.dumps(shards)
    remote._REPORTED.clear()  # as in another process
    assert not pickle.loads(sent).cache.first("index")
    assert shards.cache.first("other")


def test_rows_are_read_after_a_fork(tmp_path: Path) -> None:
    shards = ShardSet.open(write_shards(tmp_path, [2, 2]), tmp_path / "cache")
    shards.read(0)
    child = os.fork()
    if child == 0:
        os._exit(0 if [shards.read(n).data for n in range(4)] == [jpeg(n) for n in range(4)] else 1)
    assert [shards.read(n).data for n in range(4)] == [jpeg(n) for n in range(4)]
    assert os.waitpid(child, 0)[1] == 0


def test_a_wider_index_serves_both_and_a_narrow_one_grows(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "s.tar", [("a.jpg", jpeg(0)), ("a.npy", b"array"), ("b.jpg", jpeg(1))])
    shards = ShardSet.open(str(path), tmp_path / "cache")
    assert shards.read(0).data == jpeg(0)
    assert not IndexRows.open(rows_path(path)).scope.all_members
    assert shards.read(0, ("image", "npy")).members == {"image": jpeg(0), "npy": b"array"}
    grown = rows_path(path).read_bytes()
    assert IndexRows(grown).scope.all_members
    assert ShardSet.open(str(path), tmp_path / "cache").read(1).data == jpeg(1)
    assert rows_path(path).read_bytes() == grown


def test_a_cut_off_shard_has_rows(tmp_path: Path) -> None:
    (path,) = write_shards(tmp_path, [4])
    os.truncate(path, os.path.getsize(path) // 2)
    shards = ShardSet.open(path, tmp_path / "cache")
    assert [shards.read(n).data for n in range(shards.num_samples)] == [jpeg(n) for n in range(shards.num_samples)]
    assert IndexRows.open(rows_path(path)).truncated


@pytest.mark.parametrize(("classes", "requests"), [(3, [1, 2]), (500, [2, 2])])
def test_remote_shards_are_counted_from_the_header_of_their_uploaded_index(
    tmp_path: Path, classes: int, requests: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first shard's index is shorter than the part that is fetched; a header of 500 classes is longer."""
    monkeypatch.setattr(index_store, "HEADER_BYTES", 1000)
    paths = write_shards(tmp_path / "served", [3, 100])
    for path in paths:
        index = built(Path(path), Scope())
        index.extra = {"card": {"classes": {"names": [f"class {n}" for n in range(classes)]}}}
        write_index(index, index_path(path))
    server = FlakyServer(tmp_path / "served")
    try:
        for _ in range(2):
            far = ShardSet.open(f"{server.url}/part-{{000000..000001}}.tar", tmp_path / "cache", retries=0)
            assert far.shard_sizes == [3, 100]
        for _ in range(2):
            assert [far.read(n).data for n in (0, 3, 102)] == [jpeg(n) for n in (0, 3, 102)]
            far.close()
        assert [server.gets(f"part-00000{n}.tar.index.jsonl") for n in (0, 1)] == requests
        assert [server.gets(f"part-00000{n}.tar") for n in (0, 1)] == [1, 2]  # two parts of the second
        assert len(list((tmp_path / "cache" / "index").glob("*.bin"))) == 2
    finally:
        server.close()


def test_an_uploaded_index_with_damaged_columns_counts_but_is_rebuilt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_store, "HEADER_BYTES", 1000)
    (path,) = write_shards(tmp_path / "served", [100])
    write_index(built(Path(path), Scope()), index_path(path))
    header, columns = index_path(path).read_text().splitlines()
    index_path(path).write_text(f"{header}\n{columns.replace('img00007', 'img99999')}\n")
    server = FlakyServer(tmp_path / "served")
    try:
        far = ShardSet.open(f"{server.url}/part-000000.tar", tmp_path / "cache", retries=0)
        assert far.num_samples == 100
        assert server.gets("part-000000.tar") == 0
        assert far.read(7).key == "img00007"
    finally:
        server.close()


def test_long_names_in_a_pax_tar_are_read_from_a_remote_copy(tmp_path: Path) -> None:
    names = ["p" * 120 + ".jpg", "ü.jpg", "plain.jpg"]
    write_tar(
        tmp_path / "served" / "s.tar", [(name, jpeg(n)) for n, name in enumerate(names)], format=tarfile.PAX_FORMAT
    )
    server = FlakyServer(tmp_path / "served")
    try:
        far = ShardSet.open(f"{server.url}/s.tar", tmp_path / "cache", retries=0)
        assert [far.read(n).data for n in range(3)] == [jpeg(n) for n in range(3)]
        assert server.gets("s.tar") == 1
    finally:
        server.close()


def read_one(spec: str, cache: Path, number: int) -> bool:
    return ShardSet.open(spec, cache, retries=0).read(number).data == jpeg(number)


@pytest.mark.slow
def test_many_processes_fetch_an_index_once(tmp_path: Path) -> None:
    (path,) = write_shards(tmp_path / "served", [6])
    write_index(built(Path(path), Scope()), index_path(path))
    server = FlakyServer(tmp_path / "served")
    try:
        spec = f"{server.url}/part-000000.tar"
        opened = ShardSet.open(spec, tmp_path / "cache", retries=0)
        for cached in (tmp_path / "cache" / "index").iterdir():
            cached.unlink()  # counted from the catalog, so each process needs the index for its sample
        with multiprocessing.get_context("fork").Pool(4) as pool:
            assert all(pool.starmap(read_one, [(spec, tmp_path / "cache", number) for number in range(6)]))
        assert server.gets("part-000000.tar.index.jsonl") == 2, "to count the samples, and to read them"
        assert opened.read(5).data == jpeg(5)
    finally:
        server.close()
