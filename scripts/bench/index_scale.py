"""Cost of opening a set and of finding samples in it, for 100 to 20,000 shards and 1 to 512 ranks.

    python scripts/bench/index_scale.py --out scripts/bench/results/index-scale.json

The shards are sparse files with a manifest, an index, and its rows, as swinv2-data pack leaves them; links keep them
small. Everything that is measured is the code of a run.

- operations: file operations (open, stat, lstat, listing) of the rank that opens the set, of every other rank, and of
  the rank of each further host that looks for the first and the last shard
- index loads: indexes that one of 8 workers of a rank parses for each sample that it reads, in the real order, over
  three shuffle groups; once with the rows that pack writes, once for a set that has only JSON indexes
- memory: growth of a new process, as a worker starts, by the set and by the rows that it opens
- remote: a server that answers after 30 ms, without a manifest; requests, memory, wall and CPU time of this process.
  The wall time includes waiting for a core; `load` is the load average of the machine at the end
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import pickle
import re
import resource
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # for the tests, which are not in a package

from report import write_report

from swinv2_train.data.card import Card
from swinv2_train.data.index import ShardIndex, write_index
from swinv2_train.data.index_rows import write_rows
from swinv2_train.data.index_store import index_path, rows_path
from swinv2_train.data.lanes import LaneOrder
from swinv2_train.data.samples import LeftOut
from swinv2_train.data.shards import ShardSet
from swinv2_train.data.sources import ListedShard, Manifest, manifest_text
from tests.data.operations import operations

SHARDS = (100, 1000, 5000, 20_000)
RANKS = (1, 8, 64, 512)
RANKS_PER_HOST = 8
WORKERS = 8
GLOBAL_BATCH = 9216
SAMPLES = 3500
"""Samples per shard, as in a shard of 256 MiB with images of 75 KB."""
SHUFFLE_SAMPLES = 131_072
SIZE = 256 << 20
TIME = 1_700_000_000_000_000_000
LATENCY = 0.03


def sample_index() -> ShardIndex:
    """Return an index such as the packer writes."""
    starts = np.arange(SAMPLES, dtype=np.int64) * 76_288
    return ShardIndex(
        SIZE,
        TIME,
        [f"n{n // 1300 + 1440764:08d}_{n:08d}" for n in range(SAMPLES)],
        ["cls", "jpg"],
        np.stack([starts + 75_776, starts + 512]),
        np.stack([np.full(SAMPLES, 4), np.full(SAMPLES, 74_500)]),
        left_out=LeftOut(),
    )


def write_set(folder: Path, count: int, *, rows: bool) -> Path:
    """Write sparse shards that share one index, with or without its rows, and their manifest."""
    folder.mkdir()
    index = sample_index()
    write_index(index, folder / "index")
    write_rows(index, folder / "rows")
    listed = {}
    for number in range(count):
        tar = folder / f"train-{number:06d}.tar"
        with tar.open("wb") as file:
            file.truncate(SIZE)
        os.utime(tar, ns=(TIME, TIME))
        os.link(folder / "index", index_path(tar))
        if rows:
            os.link(folder / "rows", rows_path(tar))
        listed[tar.name] = ListedShard(SAMPLES, SIZE, f"{number:064x}", f"{number * 7919:064x}")
    card = Card(num_samples=count * SAMPLES, split="train")
    (folder / "train.dataset.json").write_text(manifest_text(Manifest(card.to_json(), listed)))
    return folder


def start_up(folder: Path, cache: Path) -> dict[str, Any]:
    """Return the operations of the ranks of a job that open a set."""
    from swinv2_train.launch import preflight
    from swinv2_train.launch.ranks import Ranks

    with operations(folder) as main:
        opened = ShardSet.open(str(folder), cache)
    sent = pickle.dumps(opened)
    with operations(folder) as other:
        pickle.loads(sent)
    first_of_a_host = Ranks(rank=1, world_size=2, local_rank=0, device=None, control=None)  # type: ignore[arg-type]
    with operations(folder) as host:
        assert preflight._missing_here(first_of_a_host, preflight._witnesses((opened, None))) is None
    counts = {"opening rank": main.total(), "other rank": other.total(), "further host": host.total()}
    totals = {}
    for ranks in RANKS:
        hosts = -(-ranks // RANKS_PER_HOST)
        total = main.total() + (ranks - 1) * other.total() + (hosts - 1) * host.total()
        totals[ranks] = {"hosts": hosts, "operations": total, "allowed": len(opened.shards) + 10 * hosts}
    return {"operations": counts, "ranks": totals, "description_bytes": len(sent)}


def loads_of_a_worker(shards: ShardSet, folder: Path, ranks: int) -> dict[str, Any]:
    """Return the files that a worker opens to find its samples, over three shuffle groups or 6,000 samples."""
    order = LaneOrder(shards.num_samples, 0, lanes=64)
    part = GLOBAL_BATCH // ranks
    micro = min(72, part)
    wanted = min(max(3 * SHUFFLE_SAMPLES // (ranks * WORKERS), 200), 6000)
    found, number, step, rank = 0, 0, 100, ranks // 3
    shards.close()
    begun = time.process_time()
    with operations(folder) as counts:
        while found < wanted:
            positions = order.share(step, GLOBAL_BATCH, rank, ranks)
            for start in range(0, part, micro):
                if number % WORKERS == 1:
                    for position in positions[start : start + micro]:
                        shards.key(order.at(position)[1])
                        found += 1
                number += 1
            step += 1
    seconds = time.process_time() - begun
    return {
        "ranks": ranks,
        "samples": found,
        "index_loads_per_sample": counts["open .jsonl"] / found,
        "rows_opened_per_sample": counts["open .bin"] / found,
        "cpu_us_per_sample": 1e6 * seconds / found,
    }


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def _worker(pipe: Any, description: Path) -> None:
    """Measure a process that gets a set as a worker does, and finds samples all over it."""
    LaneOrder(10, 0, lanes=1).at(3)
    before = _resident()
    shards = pickle.loads(description.read_bytes())
    received = _resident()
    rng = np.random.default_rng(0)
    for index in rng.integers(0, shards.num_samples, 6000).tolist():
        shards.key(index)
    pipe.send({"set_bytes": received - before, "set_and_rows_bytes": _resident() - before})


def memory_of_a_worker(folder: Path, cache: Path) -> dict[str, int]:
    """Return the growth of the memory of a new process."""
    description = cache.with_suffix(".pickle")
    description.write_bytes(pickle.dumps(ShardSet.open(str(folder), cache)))
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_worker, args=(theirs, description))
    process.start()
    measured = ours.recv()
    process.join()
    return measured


class Answers(asyncio.Protocol):
    """HTTP for any shard and its index, each answer after a delay; other paths do not exist."""

    counts: ClassVar[Counter[str]] = Counter()

    def __init__(self, index: bytes) -> None:
        self._index, self._received = index, b""

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        while b"\r\n\r\n" in self._received:
            head, _, self._received = self._received.partition(b"\r\n\r\n")
            delay = 0.0 if b" /counts " in head else LATENCY
            asyncio.get_running_loop().call_later(delay, self._transport.write, self._answer(head))

    def _answer(self, head: bytes) -> bytes:
        method, path = head.split(b" ", 2)[:2]
        suffix = path.rpartition(b".")[2].decode()
        if path == b"/counts":
            return _response("200 OK", json.dumps(self.counts).encode())
        self.counts[f"{method.decode()} {suffix}"] += 1
        if suffix == "tar":
            return _response("200 OK", b"", SIZE, f'ETag: "{path.decode()}"\r\nAccept-Ranges: bytes\r\n')
        if suffix != "jsonl":
            return _response("404 Not Found", b"")
        asked = re.search(rb"Range: bytes=(\d+)-(\d+)", head)
        if asked is None:
            return _response("200 OK", self._index)
        start, last = int(asked[1]), int(asked[2])
        part = self._index[start : last + 1]
        return _response(
            "206 Partial Content", part, None, f"Content-Range: bytes {start}-{last}/{len(self._index)}\r\n"
        )


def _response(status: str, body: bytes, size: int | None = None, headers: str = "") -> bytes:
    length = len(body) if size is None else size
    return f"HTTP/1.1 {status}\r\n{headers}Content-Length: {length}\r\n\r\n".encode() + body


def serve(port_pipe: Any, index: bytes) -> None:
    """Run the server and send its port."""

    async def run() -> None:
        server = await asyncio.get_running_loop().create_server(lambda: Answers(index), "127.0.0.1", 0, backlog=256)
        port_pipe.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(run())


def remote(folder: Path, count: int) -> dict[str, Any]:
    """Open remote shards without a manifest, for the first time and again."""
    import urllib.request

    write_index(sample_index(), folder / "served.jsonl")
    ours, theirs = multiprocessing.Pipe()
    index = (folder / "served.jsonl").read_bytes()
    server = multiprocessing.get_context("spawn").Process(target=serve, args=(theirs, index), daemon=True)
    server.start()
    url = f"http://127.0.0.1:{ours.recv()}"
    measured: dict[str, Any] = {"shards": count, "latency_s": LATENCY}
    try:
        for name in ("first", "again"):
            before, wall, cpu = _resident(), time.perf_counter(), time.process_time()
            shards = ShardSet.open(f"{url}/train-{{000000..{count - 1:06d}}}.tar", folder / f"cache-{count}", retries=2)
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            assert shards.num_samples == count * SAMPLES
            with urllib.request.urlopen(f"{url}/counts") as answer:
                requests = json.load(answer)
            measured[name] = {
                "wall_s": wall,
                "cpu_s": cpu,
                "load": os.getloadavg()[0],
                "requests_so_far": requests,
                "grown_bytes": _resident() - before,
            }
    finally:
        server.terminate()
        server.join()
    return measured


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, nargs="+", default=SHARDS)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        for count in options.shards:
            folder = write_set(work / f"set-{count}", count, rows=True)
            row: dict[str, Any] = {"shards": count, "start_up": start_up(folder, work / "cache")}
            shards = ShardSet.open(str(folder), work / "cache")
            row["loads"] = [loads_of_a_worker(shards, folder, ranks) for ranks in RANKS]
            row["worker_memory"] = memory_of_a_worker(folder, work / "cache")
            row["remote"] = remote(work, count)
            results.append(row)
            print(json.dumps(row), flush=True)
        json_only = write_set(work / "json-only", 1000, rows=False)
        shards = ShardSet.open(str(json_only), work / "cache")
        # The second worker finds the rows that the first one made.
        converting = [loads_of_a_worker(shards, json_only, 512) for _ in range(2)]
        print(json.dumps(converting))
    write_report(
        options.out,
        ("numpy", "fsspec", "aiohttp"),
        samples_per_shard=SAMPLES,
        results=results,
        json_indexes_only=converting,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
