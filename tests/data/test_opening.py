"""Opening a set: few operations, parallel requests, and a description that other ranks use without opening anything."""

from __future__ import annotations

import json
import os
import pickle
import threading
import tracemalloc
from pathlib import Path

import pytest

from swinv2_train.config import own_parts
from swinv2_train.data.errors import DataError
from swinv2_train.data.pack import PackOptions, pack
from swinv2_train.data.remote_file import RemoteFile
from swinv2_train.data.samples import LeftOut
from swinv2_train.data.shard import Shard
from swinv2_train.data.shard_table import ShardTable
from swinv2_train.data.shards import ShardSet
from swinv2_train.data.sources import ListedShard, Manifest, manifest_text
from tests.data.http_server import FlakyServer
from tests.data.operations import operations
from tests.data.samples import jpeg, write_folder, write_shards, write_tar

COUNT = 12


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packed")
    pack(str(write_folder(folder / "src", 2 * COUNT)), folder / "shards", PackOptions(max_count=2))
    return folder / "shards"


@pytest.mark.parametrize("spec", ["{folder}", "{folder}/*.tar", "{folder}/train-{{000000..000011}}.tar", "list"])
def test_a_packed_set_opens_with_one_operation_per_shard(packed: Path, tmp_path: Path, spec: str) -> None:
    shards = sorted(str(path) for path in packed.glob("*.tar")) if spec == "list" else spec.format(folder=packed)
    with operations(packed) as counts:
        opened = ShardSet.open(shards, tmp_path / "cache")
    assert opened.num_samples == 2 * COUNT
    assert COUNT <= counts["stat .tar"] <= COUNT + 1, "each shard, and the pattern itself"
    assert sum(counts.values()) <= COUNT + 10
    assert not (tmp_path / "cache").exists(), "a set with a manifest needs no catalog"


def test_a_foreign_set_opens_with_one_operation_per_shard_once_it_was_counted(tmp_path: Path) -> None:
    write_shards(tmp_path / "d", [2, 1, 3] * 4)
    sizes = ShardSet.open(str(tmp_path / "d"), tmp_path / "cache").shard_sizes
    with operations(tmp_path) as counts:
        again = ShardSet.open(str(tmp_path / "d"), tmp_path / "cache")
    assert again.shard_sizes == sizes == [2, 1, 3] * 4
    assert counts["stat .tar"] == COUNT
    assert sum(counts.values()) <= COUNT + 10
    assert [again.read(number).data for number in (0, 23)] == [jpeg(0), jpeg(23)]


def test_a_catalog_is_used_only_for_tars_that_are_as_they_were(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    paths = write_shards(tmp_path / "d", [2, 1, 3])
    spec, cache = str(tmp_path / "d"), tmp_path / "cache"
    ShardSet.open(spec, cache)
    write_shards(tmp_path / "d", [2, 4])
    assert ShardSet.open(spec, cache).shard_sizes == [2, 4, 3]
    os.utime(paths[2], ns=(5, 5))
    assert ShardSet.open(spec, cache).shard_sizes == [2, 4, 3]
    os.unlink(paths[0])
    assert ShardSet.open(spec, cache).shard_sizes == [4, 3]
    (catalog,) = (path for path in (cache / "opened").iterdir() if paths[0] not in path.read_text())
    content = json.loads(catalog.read_text())
    content["shards"][0][3] = 99
    for damaged in (json.dumps(content), "{", "[]", json.dumps(content | {"shards": [[1]]})):
        catalog.write_text(damaged)
        caplog.clear()
        assert ShardSet.open(spec, cache).shard_sizes == [4, 3]
        assert f"ignoring the catalog {catalog}" in caplog.text
        assert json.loads(catalog.read_text())["shards"][0][3] == 4, "it was written again"


def test_a_catalog_remembers_what_the_index_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    paths = write_shards(tmp_path / "d", [4, 2])
    os.truncate(paths[0], os.path.getsize(paths[0]) // 2)
    lines = []
    for _ in range(2):
        opened = ShardSet.open(str(tmp_path / "d"), tmp_path / "cache")
        lines.append((opened.warnings(), list(opened.shards), [shard.content for shard in opened.shards]))
    assert lines[0] == lines[1]
    assert "is cut off" in lines[0][0][0]
    with pytest.raises(DataError, match=r"part-000000.tar are images, and videos are expected"):
        ShardSet.open(str(tmp_path / "d"), tmp_path / "cache", main="video")


def test_a_cache_that_cannot_be_written_costs_only_the_catalog(tmp_path: Path) -> None:
    write_shards(tmp_path / "d", [2, 1])
    (tmp_path / "cache").write_text("a file")
    for _ in range(2):
        assert ShardSet.open(str(tmp_path / "d"), tmp_path / "cache").num_samples == 3


def test_a_shard_that_is_missing_is_named(packed: Path, tmp_path: Path) -> None:
    for spec in (f"{packed}/train-{{000000..000012}}.tar", [str(packed), f"{packed}/train-000012.tar"]):
        with pytest.raises(DataError, match=r"train-000012\.tar does not exist"):
            ShardSet.open(spec, tmp_path / "cache")


class Crowd(FlakyServer):
    """Answers a question for a size only when 32 of them are there."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        handler, together = self._server.RequestHandlerClass, threading.Barrier(32)
        serve = handler._serve  # type: ignore[attr-defined]

        def wait(request: object, with_body: bool) -> None:
            if not with_body:
                together.wait(60)
            serve(request, with_body)

        handler._serve = wait  # type: ignore[attr-defined]


def test_remote_shards_without_a_manifest_are_asked_for_in_parallel(tmp_path: Path) -> None:
    for path in write_shards(tmp_path / "served", [1] * 64):
        ShardSet.open(path, tmp_path / "unused")
    server = Crowd(tmp_path / "served")
    try:
        spec = server.url + "/part-{000000..000063}.tar"
        assert ShardSet.open(spec, tmp_path / "cache", retries=0).num_samples == 64
        assert sum(count for name, count in server.requests.items() if name.startswith("HEAD")) == 64
        assert server.requests.total() == 2 * 64 + 1, "size and index of every shard, and a manifest that is absent"
        server.requests.clear()
        again = ShardSet.open(spec, tmp_path / "cache", retries=0)
        assert again.num_samples == 64
        assert server.requests.total() == 64 + 1, "the catalog replaces the indexes"
        assert again.read(63).data == jpeg(63)
    finally:
        server.close()


class Signed(FlakyServer):
    """Serves paths with any query."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        handler = self._server.RequestHandlerClass
        serve = handler._serve  # type: ignore[attr-defined]

        def signed(request: object, with_body: bool) -> None:
            request.path, _, _ = request.path.partition("?")  # type: ignore[attr-defined]
            serve(request, with_body)

        handler._serve = signed  # type: ignore[attr-defined]


def test_a_manifest_is_fetched_once_for_signed_urls(packed: Path, tmp_path: Path) -> None:
    server = Signed(packed)
    try:
        spec = [f"{server.url}/train-{number:06d}.tar?signature={number}" for number in range(COUNT)]
        opened = ShardSet.open(spec, tmp_path / "cache", retries=0)
        assert dict(server.requests) == {"GET /train.dataset.json": 1}
        assert opened.num_samples == opened.card.num_samples == 2 * COUNT
        assert opened.shards[3].url.endswith("?signature=3")
        near = ShardSet.open(str(packed), tmp_path / "unused")
        assert opened.read(5) == near.read(5)
    finally:
        server.close()


SHARDS = [
    Shard("/a/ü\udcff.tar", 10240, 3, "it ends early", None, "f", "s", LeftOut({"hidden": (1, "._a")})),
    Shard("/a/b.tar", 2**40, 2**40, left_out=LeftOut()),
    Shard(
        "https://h/p.tar?s=1", 5, 1, None, RemoteFile("https://h/p.tar?s=1", 5, "print", True, "hash"), "print", "hash"
    ),
    Shard("https://h/q.tar", 6, 2, None, RemoteFile("https://h/q.tar", 6, '"tag"', modified="Mon"), "", ""),
    Shard("https://h/v.tar", 7, 2, None, RemoteFile("https://h/v.tar", 7, "print", True, "hash"), "", ""),
]


def test_a_table_gives_back_its_shards() -> None:
    for table in (ShardTable(SHARDS), pickle.loads(pickle.dumps(ShardTable(SHARDS)))):
        assert list(table) == SHARDS
        assert (len(table), table[-1], table[1:3]) == (5, SHARDS[4], SHARDS[1:3])
        assert table.any_remote
        with pytest.raises(IndexError):
            table[5]
    assert not ShardTable(SHARDS[:2]).any_remote


def test_a_description_is_small_and_used_without_any_operation(tmp_path: Path) -> None:
    """As the ranks that did not open the set, and their workers, get it: 20,000 shards, packed and remote."""
    listed = {
        f"train-{number:06d}.tar": ListedShard(3500, 256 << 20, f"{number:064x}", f"{number * 7919:064x}")
        for number in range(20_000)
    }
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "train.dataset.json").write_text(
        manifest_text(Manifest({"num_samples": 70_000_000}, listed))
    )
    server = FlakyServer(tmp_path / "served")
    try:
        opened = ShardSet.open(f"{server.url}/train-{{000000..019999}}.tar", tmp_path / "cache", retries=0)
    finally:
        server.close()
    assert server.requests.total() == 1
    sent = pickle.dumps(opened)
    assert len(sent) < 8 << 20
    tracemalloc.start()
    with operations(tmp_path) as counts:
        received = pickle.loads(sent)
        assert received.num_samples == 70_000_000
        assert received.locate(69_999_999) == (19_999, 3499)
        assert received.shards[19_999].file == opened.shards[19_999].file
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert counts.total() == 0
    assert kept < 12 << 20


def test_a_shard_that_another_host_lacks_is_named_with_the_host(packed: Path, tmp_path: Path) -> None:
    received = pickle.loads(pickle.dumps(ShardSet.open(str(packed), tmp_path / "cache")))
    moved = tmp_path / "moved.tar"
    shard = received.shards[2].url
    os.rename(shard, moved)
    try:
        with pytest.raises(DataError, match=r"train-000002\.tar can no longer be read on .* \(No such file") as caught:
            received.read(4)
        assert os.uname().nodename in str(caught.value)
        assert received.read(0).data
    finally:
        os.rename(moved, shard)


def test_a_shard_of_another_size_is_noticed_at_first_use(packed: Path, tmp_path: Path) -> None:
    """The rank that opened the set saw another file under the same path, such as on a disk of its own host."""
    for name in ("train-000000.tar", "train-000001.tar", "train.dataset.json"):
        (tmp_path / name).write_bytes((packed / name).read_bytes())
    opened = ShardSet.open(f"{tmp_path}/train-{{000000..000001}}.tar", tmp_path / "cache")
    os.truncate(tmp_path / "train-000001.tar", 2000)
    with pytest.raises(DataError, match=r"train-000001\.tar holds 1 sample where 2 were counted before"):
        opened.read(2)
    assert opened.read(0).data


def test_own_decoders_decide_what_is_a_sample_of_a_local_tar(tmp_path: Path) -> None:
    names = ["a.jpg", "b.zzz", "c.ffi", "d.ffi"]
    write_tar(tmp_path / "d" / "x.tar", [(name, jpeg(number)) for number, name in enumerate(names)])
    write_tar(tmp_path / "d" / "y.tar", [("a.jpg", jpeg(0))])
    packed = write_folder(tmp_path / "src", 2)
    pack(str(packed), tmp_path / "packed", PackOptions())
    index = tmp_path / "packed" / "train-000000.tar.index.jsonl"
    before = index.read_bytes()

    def keys() -> list[str]:
        opened = ShardSet.open(str(tmp_path / "d"), tmp_path / "cache")
        assert opened.num_samples == sum(opened.shard_sizes)
        for number in range(opened.num_samples):
            assert opened.read(number).data.startswith(b"\xff\xd8")
        assert len(ShardSet.open(str(tmp_path / "packed"), tmp_path / "cache").read(1).data) > 0
        return [opened.key(number) for number in range(opened.num_samples)]

    plain, more = ["a", "a"], ["a", "c", "d", "a"]
    assert keys() == plain
    for _ in range(2):
        own_parts.register("own", (own_parts.Plugin(decoders={"ffi": own_parts.Decoder(b"F", "a:b")}),))
        try:
            assert keys() == more
            assert keys() == more, "from the catalog"
        finally:
            del own_parts._plugins["own"]
        assert keys() == plain
    assert index.read_bytes() == before, "the packer leaves nothing out"
