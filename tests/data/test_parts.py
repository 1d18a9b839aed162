"""Remote shards in parts: what is fetched, how often, and what happens to parts that are not what they should be."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from swinv2_train.data.errors import DataError
from swinv2_train.data.index import build_index, read_index, write_index
from swinv2_train.data.index import checksums as find_checksums
from swinv2_train.data.lanes import LaneOrder
from swinv2_train.data.loader import TrainLoader
from swinv2_train.data.order import SampleOrder
from swinv2_train.data.pack import PackOptions, pack
from swinv2_train.data.sample import Sample
from swinv2_train.data.shards import ShardSet
from swinv2_train.data.transform import Transform
from tests.data.http_server import FlakyServer
from tests.data.loaders import eval_loader, train_loader
from tests.data.samples import jpeg, write_folder, write_shards, write_tar

SIZES = [40, 7, 33]
NAMES = [f"part-{i:06d}.tar" for i in range(3)]


class Read(Transform):
    """Reads a sample without decoding it."""

    def __call__(self, sample: Sample, rng: np.random.Generator) -> dict[str, Tensor]:
        return {"number": torch.tensor(int("".join(filter(str.isdigit, sample.key))))}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FlakyServer]:
    write_shards(tmp_path / "served", SIZES)
    ShardSet.open(str(tmp_path / "served"), tmp_path / "unused")  # with their indexes
    server = FlakyServer(tmp_path / "served")
    yield server
    server.close()


def open_set(server: FlakyServer, cache: Path, gib: float = 1.0) -> ShardSet:
    return ShardSet.open(f"{server.url}/part-{{000000..000002}}.tar", cache, gib, retries=0, backoff=0.0)


def sent(server: FlakyServer) -> int:
    """Bytes of shards, without their indexes."""
    return sum(count for name, count in server.sent.items() if name.endswith(".tar"))


def bytes_in(shards: ShardSet) -> int:
    """Of all copies in the cache, the unfinished ones at their full size."""
    with shards.cache._directory_locked():
        return sum(path.stat().st_size for path in shards.cache.directory.iterdir() if path.is_file())


def parts_in(cache: Path) -> list[Path]:
    return sorted(path for path in cache.iterdir() if path.suffix == ".tar")


def test_a_sample_costs_its_part_and_all_parts_together_are_the_shards(server: FlakyServer, tmp_path: Path) -> None:
    shards = open_set(server, tmp_path / "cache")
    total = sum((tmp_path / "served" / name).stat().st_size for name in NAMES)
    assert shards.read(17).data == jpeg(17)
    assert 0 < sent(server) < total / 4
    assert len(parts_in(tmp_path / "cache")) == 1
    order = np.random.default_rng(0).permutation(80).tolist()
    assert [shards.read(i).data for i in order] == [jpeg(i) for i in order]
    assert sent(server) == total
    assert sum(path.stat().st_size for path in parts_in(tmp_path / "cache")) == total
    # [0, 16), [16, 32), [32, 40), [40, 47), [47, 48), [48, 64), [64, 80)
    assert len(parts_in(tmp_path / "cache")) == 7
    again = open_set(server, tmp_path / "cache")
    assert again.read(5).data == jpeg(5)
    assert sent(server) == total


def test_long_names_and_other_members_do_not_shift_a_part(tmp_path: Path) -> None:
    """A name of more than 100 characters is in a header of its own, in front of the member's."""
    members = []
    for n in range(40):
        key = f"{'x' * 150}{n:04d}" if n % 3 else f"ünï{n:04d}"
        members += [(f"{key}.jpg", jpeg(n)), (f"{key}.json", b'{"n": %d}' % n), (f"{key}.npy", bytes(700))]
    write_tar(tmp_path / "served" / "a.tar", members)
    near = ShardSet.open(str(tmp_path / "served"), tmp_path / "unused")
    server = FlakyServer(tmp_path / "served")
    far = ShardSet.open(f"{server.url}/a.tar", tmp_path / "cache", retries=0, backoff=0.0)
    wanted = ("image", "json")
    assert [far.read(i, wanted) for i in range(39, -1, -1)] == [near.read(i, wanted) for i in range(39, -1, -1)]
    assert sent(server) == (tmp_path / "served" / "a.tar").stat().st_size
    server.close()


def test_a_server_without_parts_sends_whole_shards_once(tmp_path: Path) -> None:
    write_shards(tmp_path / "served", SIZES)
    ShardSet.open(str(tmp_path / "served"), tmp_path / "unused")
    server = FlakyServer(tmp_path / "served", ranges=False)
    shards = open_set(server, tmp_path / "cache")
    assert [shards.read(i).data for i in range(80)] == [jpeg(i) for i in range(80)]
    assert [server.gets(name) for name in NAMES] == [2, 1, 1]  # the first answer shows it
    assert open_set(server, tmp_path / "cache").read(50).data == jpeg(50)  # and every process of the host knows it
    assert not list((tmp_path / "cache").glob("*.part"))
    ahead = open_set(server, tmp_path / "other")
    ahead.prefetch(lambda: [(0, 80)], connections=2)
    assert ahead.read(79).data == jpeg(79)
    ahead.close()
    server.close()


def test_a_shard_that_was_fetched_whole_serves_its_parts(server: FlakyServer, tmp_path: Path) -> None:
    for name in NAMES:
        (tmp_path / "served" / f"{name}.index.jsonl").unlink()
    shards = open_set(server, tmp_path / "cache")  # counts the samples, for which it fetches the shards
    before = sent(server)
    assert [shards.read(i).data for i in range(80)] == [jpeg(i) for i in range(80)]
    assert sent(server) == before


@pytest.mark.parametrize("kind", ["page", "zeros", "other part"])
def test_a_part_that_is_not_of_the_shard_is_fetched_again(
    server: FlakyServer, tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    shards = open_set(server, tmp_path / "cache")
    shards.read(17)
    (part,) = parts_in(tmp_path / "cache")
    data = part.read_bytes()
    other = (tmp_path / "served" / NAMES[2]).read_bytes()[: len(data)]
    part.write_bytes({"page": b"<html>".ljust(len(data)), "zeros": bytes(len(data)), "other part": other}[kind])
    assert open_set(server, tmp_path / "cache").read(17).data == jpeg(17)
    assert f"{part} is not a copy of {server.url}/{NAMES[0]}" in caplog.text
    assert part.read_bytes() == data


def test_a_server_that_sends_other_parts_is_asked_for_the_whole(server: FlakyServer, tmp_path: Path) -> None:
    shards = open_set(server, tmp_path / "cache")
    server.always[NAMES[0]] = "shifted"  # except for what starts at byte 0
    assert shards.read(17).data == jpeg(17)


def test_a_server_that_keeps_sending_something_else_is_named(server: FlakyServer, tmp_path: Path) -> None:
    shards = open_set(server, tmp_path / "cache")
    server.always[NAMES[0]] = "login"
    with pytest.raises(DataError, match=r"part-000000\.tar: the server sends something else than the shard") as caught:
        shards.read(17)
    assert "\n" not in str(caught.value)
    assert parts_in(tmp_path / "cache") == []
    server.always.clear()
    assert shards.read(17).data == jpeg(17)


@pytest.mark.parametrize("last", [False, True])
def test_parts_of_packed_shards_are_compared_with_checksums(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, last: bool
) -> None:
    """The hash in the manifest is that of an entire shard."""
    pack(str(write_folder(tmp_path / "src", 40)), tmp_path / "served", PackOptions())
    server = FlakyServer(tmp_path / "served")
    shards = ShardSet.open(f"{server.url}/train-000000.tar", tmp_path / "cache", retries=0, backoff=0.0)
    expected = [shards.read(i).data for i in range(40)]
    assert not caplog.text
    tar = tmp_path / "served" / "train-000000.tar" if last else parts_in(tmp_path / "cache")[0]
    data = bytearray(tar.read_bytes())
    for place in range(700, len(data), 512 * 6):
        data[place] ^= 1  # in the middle of images, where no header shows it
    tar.write_bytes(data)
    if last:
        for part in parts_in(tmp_path / "cache"):
            part.unlink()
        with pytest.raises(DataError, match=r"the bytes of .*\.jpg are not those that were packed .* when asked again"):
            [shards.read(i) for i in range(40)]
    else:
        assert [shards.read(i).data for i in range(40)] == expected
        assert "are not those that were packed; fetching them again" in caplog.text
    server.close()


def test_reading_ahead_leaves_no_files_open(server: FlakyServer, tmp_path: Path) -> None:
    shards = open_set(server, tmp_path / "cache")
    for _ in range(3):
        shards.prefetch(lambda: [(0, 80)], connections=4)
        assert shards.read(79).data == jpeg(79)
        shards.close()
        links = [os.readlink(entry) for entry in Path("/proc/self/fd").iterdir() if entry.is_symlink()]
        assert not [link for link in links if str(tmp_path / "cache") in link]


def test_other_sizes_of_parts_and_other_members_do_not_confuse_places(tmp_path: Path) -> None:
    members = [
        (f"img{n:05d}.{name}", data) for n in range(60) for name, data in (("bin", bytes(900)), ("jpg", jpeg(n)))
    ]
    write_tar(tmp_path / "served" / "a.tar", members)
    ShardSet.open(str(tmp_path / "served"), tmp_path / "unused")
    server = FlakyServer(tmp_path / "served")
    shards = ShardSet.open(f"{server.url}/a.tar", tmp_path / "cache", retries=0, backoff=0.0)
    for size in (16, 40, 7):
        shards.parts.samples = size
        assert [shards.read(i).data for i in (0, 20, 59)] == [jpeg(i) for i in (0, 20, 59)]
    assert shards.read(20, ("image", "bin")).members == {"image": jpeg(20), "bin": bytes(900)}
    assert shards.read(16).data == jpeg(16)
    server.close()


@pytest.mark.parametrize("checksums", [False, True])
def test_sets_of_earlier_versions_are_read_with_a_warning_until_they_are_packed_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, checksums: bool
) -> None:
    source = str(write_folder(tmp_path / "src", 40))
    pack(source, tmp_path / "served", PackOptions())
    index = read_index(tmp_path / "served" / "train-000000.tar.index.jsonl")
    index.checksums = None
    write_index(index, tmp_path / "served" / "train-000000.tar.index.jsonl")
    if checksums:
        pack(source, tmp_path / "served", PackOptions())
    server = FlakyServer(tmp_path / "served")
    shards = ShardSet.open(f"{server.url}/train-000000.tar", tmp_path / "cache", retries=0, backoff=0.0)
    with closing(train_loader(shards, LaneOrder(40, 0, lanes=1), Read(), global_batch=8, micro_batch=8)) as loader:
        next(loader)
    assert ("an earlier version packed data.shards" in caplog.text) == (not checksums)
    server.close()


def test_an_index_of_a_shard_that_was_replaced_in_place_is_fetched_again(tmp_path: Path) -> None:
    """On a server that reports no version, and with a new shard of the same layout."""
    for folder, first in (("served", 0), ("new", 100)):
        members = [(f"img{n:05d}.jpg", bytes([255, 216, 255, first + n]) * 150) for n in range(40)]
        path = write_tar(tmp_path / folder / "a.tar", members)
        with path.open("rb") as file:
            index = build_index(str(path), file.fileno())
            index.checksums = find_checksums(index, file.fileno())
        write_index(index, Path(f"{path}.index.jsonl"))
    server = FlakyServer(tmp_path / "served")
    server.always["a.tar"] = "untagged"
    shards = ShardSet.open(f"{server.url}/a.tar", tmp_path / "cache", retries=0, backoff=0.0)
    before = shards.read(0).data
    for name in ("a.tar", "a.tar.index.jsonl"):
        (tmp_path / "served" / name).write_bytes((tmp_path / "new" / name).read_bytes())
    again = ShardSet.open(f"{server.url}/a.tar", tmp_path / "cache", retries=0, backoff=0.0)
    assert again.read(30).data == bytes([255, 216, 255, 130]) * 150
    assert again.read(0).data != before
    server.close()


def test_parts_share_the_bound_of_the_cache(server: FlakyServer, tmp_path: Path) -> None:
    limit = 60_000
    shards = open_set(server, tmp_path / "cache", limit / 2**30)
    for index in np.random.default_rng(1).integers(0, 80, 120).tolist():
        assert shards.read(index).data == jpeg(index)
        assert bytes_in(shards) <= limit


def test_the_noted_size_of_the_cache_is_not_trusted_blindly(server: FlakyServer, tmp_path: Path) -> None:
    shards = open_set(server, tmp_path / "cache", 60_000 / 2**30)
    shards.read(0)
    note = shards.cache._total_path
    assert int(note.read_text()) == sum(path.stat().st_size for path in parts_in(tmp_path / "cache"))
    for text in ("", "many", "-1", "999999999"):
        note.write_text(text)
        for index in (0, 20, 50, 70):
            os.unlink(parts_in(tmp_path / "cache")[0])
            assert shards.read(index).data == jpeg(index)
        assert sum(path.stat().st_size for path in parts_in(tmp_path / "cache")) <= int(note.read_text()) <= 60_000


def host(shards: ShardSet, order: LaneOrder, rank: int, world_size: int, start_batch: int = 0) -> TrainLoader:
    size = {"rank": rank, "world_size": world_size, "micro_batch": 64 // world_size}
    return train_loader(shards, order, Read(), global_batch=64, start_batch=start_batch, **size)


@pytest.mark.slow
@pytest.mark.parametrize("hosts", [1, 2, 4, 8])
def test_all_hosts_together_fetch_the_data_set_once_per_epoch(tmp_path: Path, hosts: int) -> None:
    """With a cache for two shuffle groups, so that nothing is left of the epoch before."""
    sizes = [300, 211, 407, 364, 299, 467]
    for number, size in enumerate(sizes):
        members = [(f"img{number:02d}{n:03d}.jpg", b"\xff\xd8\xff" + bytes(2500)) for n in range(size)]
        write_tar(tmp_path / "served" / f"part-{number:06d}.tar", members)
    ShardSet.open(str(tmp_path / "served"), tmp_path / "unused")
    server = FlakyServer(tmp_path / "served")
    total = sum(path.stat().st_size for path in (tmp_path / "served").glob("*.tar"))
    order = LaneOrder(2048, 5, lanes=8, shuffle_samples=256)
    assert order.block_samples == 16
    seen: list[int] = []
    fetched = 0
    for rank in range(hosts):
        shards = ShardSet.open(
            f"{server.url}/part-{{000000..000005}}.tar", tmp_path / f"cache-{rank}", 0.4 * total / hosts / 2**30
        )
        with closing(host(shards, order, rank, hosts)) as loader:
            for batch in range(64):
                before = sent(server) if batch == 32 else 0
                numbers = next(loader)["number"].tolist()
                seen += numbers if batch < 32 else []
                fetched -= before
                assert bytes_in(shards) <= shards.cache.max_bytes
        fetched += sent(server)
    assert len(set(seen)) == 2048
    assert 0.8 * total < fetched <= 1.15 * total
    server.close()


def test_any_number_of_ranks_and_workers_reads_the_same_samples_from_either_place(
    server: FlakyServer, tmp_path: Path
) -> None:
    near = ShardSet.open(str(tmp_path / "served"), tmp_path / "unused")
    far = open_set(server, tmp_path / "cache")
    order = LaneOrder(80, 5, lanes=8, shuffle_samples=40)
    expected = [sorted(order.at(position)[1] for position in range(b * 64, b * 64 + 64)) for b in range(6)]
    for shards, world_size, start in ((near, 1, 0), (far, 2, 0), (far, 4, 3), (near, 8, 2)):
        loaders = [host(shards, order, rank, world_size, start) for rank in range(world_size)]
        for batch in range(start, 6):
            assert sorted(n for loader in loaders for n in next(loader)["number"].tolist()) == expected[batch]
        for loader in loaders:
            loader.close()
    loader = train_loader(far, order, Read(), global_batch=64, micro_batch=16, num_workers=2)
    for batch in expected:
        assert sorted(n for _ in range(4) for n in next(loader)["number"].tolist()) == batch
    loader.close()


def test_the_order_of_earlier_versions_fetches_only_what_it_reads(server: FlakyServer, tmp_path: Path) -> None:
    shards = open_set(server, tmp_path / "cache")
    order = SampleOrder(80, seed=2, shuffle_samples=16, block_samples=8)
    with closing(train_loader(shards, order, Read(), global_batch=8, micro_batch=8)) as loader:
        next(loader)
    total = sum((tmp_path / "served" / name).stat().st_size for name in NAMES)
    assert sent(server) < total  # two groups of 16, which lie in at most 8 parts


def test_an_evaluation_reads_a_stretch_on_each_rank(server: FlakyServer, tmp_path: Path) -> None:
    total = sum((tmp_path / "served" / name).stat().st_size for name in NAMES)
    seen: list[int] = []
    for rank in range(4):
        shards = open_set(server, tmp_path / f"cache-{rank}")
        with closing(eval_loader(shards, Read(), micro_batch=5, rank=rank, world_size=4)) as loader:
            assert len(loader) == 4
            seen += [n for batch in loader for n in batch["number"][batch["valid"]].tolist()]
    assert seen == list(range(80))
    assert sent(server) < 1.6 * total  # a stretch of 20 samples ends inside of a part of 16
