from __future__ import annotations

import fcntl
import multiprocessing
import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from swinv2_train.data import remote
from swinv2_train.data.errors import DataError
from swinv2_train.data.order import SampleOrder
from swinv2_train.data.pack import PackOptions, pack
from swinv2_train.data.remote import ShardCache
from swinv2_train.data.remote_file import RemoteFile
from swinv2_train.data.shards import ShardSet
from tests.data.http_server import FlakyServer
from tests.data.loaders import train_loader
from tests.data.samples import jpeg, write_folder, write_shards
from tests.data.test_loader import Crop

SHARD = 10240  # bytes of a small shard of write_shards
NAMES = [f"part-{i:06d}.tar" for i in range(4)]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FlakyServer]:
    write_shards(tmp_path / "served", [2, 3, 1, 2])
    server = FlakyServer(tmp_path / "served")
    yield server
    server.close()


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_CHUNK_BYTES", 3000)


def open_set(server: FlakyServer, tmp_path: Path, *, gib: float = 1.0, retries: int = 4) -> ShardSet:
    spec = server.url + "/part-{000000..000003}.tar"
    return ShardSet.open(spec, tmp_path / "cache", gib, retries=retries, backoff=0.0)


def copies(shards: ShardSet) -> list[Path]:
    return [shards.cache.path(shard.file) for shard in shards.shards if shard.file]


def bytes_in(cache: Path) -> int:
    """Of all copies in a cache, the unfinished ones at their full size."""
    return sum(path.stat().st_size for path in cache.iterdir() if path.is_file())


def assert_all_read(shards: ShardSet) -> None:
    assert [shards.read(i).data for i in range(shards.num_samples)] == [jpeg(i) for i in range(shards.num_samples)]


def test_remote_shards_are_fetched_whole_and_once(server: FlakyServer, tmp_path: Path) -> None:
    shards = open_set(server, tmp_path)
    assert shards.remote
    assert shards.shard_sizes == [2, 3, 1, 2]
    assert_all_read(shards)
    assert_all_read(open_set(server, tmp_path))
    assert [server.gets(name) for name in NAMES] == [4] * 4  # 10240 bytes in chunks of 3000
    assert not list((tmp_path / "cache").glob("*.part"))


@pytest.mark.parametrize("fault", ["500", "short", "drop"])
def test_failures_in_between_cost_one_chunk_each(server: FlakyServer, tmp_path: Path, fault: str) -> None:
    shards = open_set(server, tmp_path)
    for path in (tmp_path / "cache").glob("*.tar"):
        path.unlink()
    before = server.gets(NAMES[1])
    server.faults.extend(["ok", fault, fault, "ok", fault])
    assert shards.read(2).data == jpeg(2)
    assert server.gets(NAMES[1]) - before == 4 + 3


def test_a_server_that_stays_broken_ends_in_one_sentence(server: FlakyServer, tmp_path: Path) -> None:
    server.faults.extend(["500"] * 100)
    with pytest.raises(DataError, match=r"part\.dataset\.json could not be read after 3 tries \(.*500") as caught:
        open_set(server, tmp_path, retries=2)
    assert "\n" not in str(caught.value)


def test_a_shard_that_fails_later_is_named(server: FlakyServer, tmp_path: Path) -> None:
    shards = open_set(server, tmp_path, retries=1)
    shutil.rmtree(tmp_path / "cache")
    server.faults.extend(["ok", "short", "500"])
    with pytest.raises(DataError, match=r"part-000000\.tar(\.index\.jsonl)? could not be read after 2 tries"):
        shards.read(0)


def test_denied_is_not_tried_again_and_means_absent_for_what_is_optional(server: FlakyServer, tmp_path: Path) -> None:
    server.faults.extend(["403"])  # the manifest
    assert open_set(server, tmp_path).num_samples == 8
    shutil.rmtree(tmp_path / "cache")
    server.faults.extend(["ok"] + ["403"] * 50)
    with pytest.raises(DataError, match=r"part-00000\d\.tar may not be read \(.*403"):
        open_set(server, tmp_path)


def test_a_missing_remote_shard_is_named(server: FlakyServer, tmp_path: Path) -> None:
    (tmp_path / "served" / NAMES[2]).unlink()
    with pytest.raises(DataError, match=r"part-000002\.tar does not exist"):
        open_set(server, tmp_path)


def test_a_server_without_ranges_will_do(tmp_path: Path) -> None:
    write_shards(tmp_path / "served", [2, 3, 1, 2])
    server = FlakyServer(tmp_path / "served", ranges=False)
    server.faults.extend(["ok"] * 8 + ["short"])
    assert_all_read(open_set(server, tmp_path))
    server.close()


def test_an_uploaded_index_saves_the_first_reading(server: FlakyServer, tmp_path: Path) -> None:
    ShardSet.open(str(tmp_path / "served"), tmp_path / "other")
    shards = open_set(server, tmp_path)
    assert shards.shard_sizes == [2, 3, 1, 2]
    assert sum(server.gets(name) for name in NAMES) == 0
    assert_all_read(shards)


def test_an_old_uploaded_index_is_not_trusted(server: FlakyServer, tmp_path: Path) -> None:
    ShardSet.open(str(tmp_path / "served"), tmp_path / "other")
    write_shards(tmp_path / "served", [30, 3, 1, 2])
    assert open_set(server, tmp_path).shard_sizes == [30, 3, 1, 2]


def test_packed_shards_are_counted_by_one_request(tmp_path: Path) -> None:
    pack(str(write_folder(tmp_path / "src", 9)), tmp_path / "served", PackOptions(max_count=2))
    server = FlakyServer(tmp_path / "served")
    shards = ShardSet.open(f"{server.url}/train-{{000000..000004}}.tar", tmp_path / "cache", retries=0, backoff=0.0)
    assert shards.num_samples == 9
    assert shards.card is not None
    assert shards.card.num_samples == 9
    assert dict(server.requests) == {"GET /train.dataset.json": 1}
    server.close()


def test_the_cache_stays_below_its_bound_and_a_lost_shard_comes_back(server: FlakyServer, tmp_path: Path) -> None:
    limit = 2 * SHARD + 100
    shards = open_set(server, tmp_path, gib=limit / 2**30)
    for index in [0, 2, 5, 6, 0, 2, 5, 6, 7, 1]:
        assert shards.read(index).data == jpeg(index)
        assert bytes_in(shards.cache.directory) <= limit
    # least recently used goes first: 3 and 0 are there now, 0 is used again, 1 pushes out 3
    shards.read(0)
    shards.read(2)
    assert [path.exists() for path in copies(shards)] == [True, True, False, False]
    shutil.rmtree(tmp_path / "cache")  # whoever cleans up under a run only costs it time
    assert_all_read(shards)


def test_a_shard_larger_than_the_cache_is_refused(server: FlakyServer, tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"part-00000\d\.tar has .* GiB, more than the cache may hold .*raise data\.cache_gib"
    ):
        open_set(server, tmp_path, gib=5000 / 2**30)


def test_a_replaced_remote_shard_is_not_served_from_the_cache(server: FlakyServer, tmp_path: Path) -> None:
    """Not even one of the same size, which is common: tars are padded."""
    sizes = {(tmp_path / "served" / name).stat().st_size for name in NAMES}
    assert_all_read(open_set(server, tmp_path))
    write_shards(tmp_path / "served", [9, 3, 1, 2])
    assert (tmp_path / "served" / NAMES[1]).stat().st_size in sizes
    shards = open_set(server, tmp_path)
    assert shards.shard_sizes == [9, 3, 1, 2]
    assert_all_read(shards)


def test_a_forked_process_does_not_keep_a_lock(server: FlakyServer, tmp_path: Path) -> None:
    cache = ShardCache(tmp_path / "cache", 2 * SHARD, retries=0, backoff=0.0)
    file = RemoteFile(f"{server.url}/{NAMES[0]}", SHARD)
    with cache._locked(cache._lock_path(file), wait=True):
        child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
        child.start()
    os.close(cache.open(file))  # would wait for the child forever
    child.kill()
    child.join()


def test_a_repacked_remote_set_is_read_again(tmp_path: Path) -> None:
    source, served = write_folder(tmp_path / "src", 6), tmp_path / "served"
    pack(str(source), served, PackOptions(max_count=3))
    server = FlakyServer(served)
    for seed in (0, 1):
        pack(str(source), served, PackOptions(max_count=3, seed=seed))
        spec = f"{server.url}/train-{{000000..000001}}.tar"
        far = ShardSet.open(spec, tmp_path / "cache", retries=0, backoff=0.0)
        near = ShardSet.open(f"{served}/*.tar", tmp_path / "unused")
        assert [far.read(i) for i in range(6)] == [near.read(i) for i in range(6)]
    server.close()


def test_what_a_dead_process_left_does_not_fill_the_cache(server: FlakyServer, tmp_path: Path) -> None:
    cache = ShardCache(tmp_path / "cache", 2 * SHARD, retries=0, backoff=0.0)
    cache.directory.mkdir()
    for name in NAMES[:2]:
        path = cache.path(RemoteFile(f"{server.url}/{name}", SHARD))
        path.with_name(f"{path.name}.part").write_bytes(bytes(SHARD))
    os.close(cache.open(RemoteFile(f"{server.url}/{NAMES[3]}", SHARD)))
    assert bytes_in(cache.directory) <= 2 * SHARD


def test_a_copy_never_changes_its_name_while_others_count(server: FlakyServer, tmp_path: Path) -> None:
    """They would find it under neither name and let the cache outgrow its bound."""
    cache = ShardCache(tmp_path / "cache", 2 * SHARD, retries=0, backoff=0.0)
    file = RemoteFile(f"{server.url}/{NAMES[0]}", SHARD)
    seen, chunks = [], []

    def count(lock: int) -> None:
        time.sleep(0.1)
        seen.extend(path.suffix for path in cache.directory.iterdir() if path.is_file() and path.name != ".lock")
        os.close(lock)

    def after_each_chunk() -> bool:
        chunks.append(1)
        if len(chunks) == 4:  # the last one
            lock = os.open(cache.directory / ".lock", os.O_RDWR)
            fcntl.flock(lock, fcntl.LOCK_EX)
            threading.Thread(target=count, args=(lock,)).start()
        return False

    cache.fetch(file, after_each_chunk)
    assert seen == [".part"]
    assert cache.touch(file)


def read_everything(spec: str, cache: Path, gib: float) -> int:
    shards = ShardSet.open(spec, cache, gib, retries=2, backoff=0.0)
    return sum(shards.read(i).data == jpeg(i) for i in range(shards.num_samples))


@pytest.mark.slow
def test_many_processes_share_one_cache(server: FlakyServer, tmp_path: Path) -> None:
    spec = server.url + "/part-{000000..000003}.tar"
    with multiprocessing.get_context("fork").Pool(4) as pool:
        roomy = pool.starmap(read_everything, [(spec, tmp_path / "a", 1.0)] * 4)
        assert [server.gets(name) for name in NAMES] == [4] * 4  # each shard was fetched by one of them
        tight = pool.starmap(read_everything, [(spec, tmp_path / "b", (2 * SHARD + 100) / 2**30)] * 4)
    assert roomy == tight == [8] * 4
    assert bytes_in(tmp_path / "b") <= 2 * SHARD + 100


def wait_until(condition: object, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_prefetch_fills_the_cache_ahead(server: FlakyServer, tmp_path: Path) -> None:
    shards = open_set(server, tmp_path, gib=(3 * SHARD) / 2**30)
    shutil.rmtree(tmp_path / "cache")
    shards.prefetch(lambda: [(6, 8), (2, 5), (0, 2), (5, 6)])  # three of the shards fit
    wait_until(lambda: [path.exists() for path in copies(shards)] == [True, True, False, True])
    before = sum(server.gets(name) for name in NAMES)
    for index in (6, 2, 0):
        assert shards.read(index).data == jpeg(index)
    assert sum(server.gets(name) for name in NAMES) == before
    shards.close()


def test_prefetch_survives_failures_and_is_called_off_by_close(server: FlakyServer, tmp_path: Path) -> None:
    shards = open_set(server, tmp_path, retries=0)
    shutil.rmtree(tmp_path / "cache")
    server.faults.append("500")
    shards.prefetch(lambda: [(0, 5)])
    wait_until(lambda: copies(shards)[1].exists())
    shards.close()
    assert shards.read(0).data == jpeg(0)


@pytest.mark.slow
def test_a_loader_trains_from_a_failing_server_through_a_small_cache(
    server: FlakyServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    local = ShardSet.open(str(tmp_path / "served"), tmp_path / "unused")
    far = open_set(server, tmp_path, gib=1.5 * SHARD / 2**30, retries=6)
    batches = []
    for shards in (local, far):
        order = SampleOrder(8, seed=2, shuffle_samples=4, block_samples=2)
        loader = train_loader(shards, order, Crop(), global_batch=4, micro_batch=2, num_workers=1)
        server.faults.extend(["500", "ok", "short", "drop"] * 3)
        batches.append([next(loader)["image"] for _ in range(12)])
        loader.close()
    assert all((a == b).all() for a, b in zip(*batches, strict=True))
    assert bytes_in(far.cache.directory) <= 1.5 * SHARD
    assert "the remote samples of one shuffle group take" in caplog.text
    caplog.clear()
    ranks = {"rank": 1, "world_size": 2}
    train_loader(far, order, Crop(), global_batch=4, micro_batch=2, num_workers=0, **ranks).close()
    assert "shuffle group" not in caplog.text  # the main rank has said it
