"""Bytes that hosts fetch from a server in an epoch, the speed of reading ahead, and how well the order mixes.

    python scripts/bench/remote_reading.py --out scripts/bench/results/remote-reading.json

Fetched: H hosts, one after the other, train for an epoch from shards on an HTTP server on loopback, each with a cache
of its own that holds two shuffle groups. The epoch before it is not counted, so that nothing depends on the start. The
set is small (28,000 samples of 5 KB); what counts is the ratio to its size. `groups` is the order of earlier versions.

Speed: a server that waits 30 ms before it answers, and sends at most 60 MB/s over all connections. Each row is the rate
of reading ahead with a number of connections.

Mixing: the number of classes in a batch of 1024 of 14 million samples, sorted by class into 1000 classes, and the
correlation of the classes of two batches in a row.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import sys
import tarfile
import tempfile
import threading
import time
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import torch
from report import write_report

from swinv2_train.data.lanes import LaneOrder
from swinv2_train.data.loader import SampleSource, Share, TrainLoader
from swinv2_train.data.order import Order, SampleOrder
from swinv2_train.data.sample import Sample
from swinv2_train.data.shards import ShardSet
from swinv2_train.data.transform import Transform

SHARDS, PER_SHARD, SAMPLE_BYTES = 28, 1000, 4600
LANES, BATCH, GROUP = 64, 128, 4096
HOSTS = (1, 2, 4, 8, 16, 32, 64)
LATENCY, RATE = 0.03, 60e6
CONNECTIONS = (1, 2, 4, 8, 16)


class Server:
    """Serves a folder by ranges; counts the bytes of shards and of their indexes."""

    def __init__(self, folder: Path, *, latency: float = 0.0, rate: float = 0.0) -> None:
        self.sent = 0
        self.requests = 0
        lock = threading.Lock()
        free_at = 0.0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self) -> None:
                self._serve(body=False)

            def do_GET(self) -> None:
                self._serve(body=True)

            def _serve(self, *, body: bool) -> None:
                nonlocal free_at
                path = folder / self.path.lstrip("/")
                if not path.is_file():
                    self.send_response(404)
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                size = path.stat().st_size
                start, stop = 0, size
                asked = self.headers.get("Range", "")
                if asked:
                    start, last = (int(number) for number in asked.removeprefix("bytes=").split("-"))
                    stop = last + 1
                data = os.pread(fd, stop - start, start) if (fd := os.open(path, os.O_RDONLY)) else b""
                os.close(fd)
                with lock:
                    if body:
                        outer.sent += len(data)
                        outer.requests += 1
                    now = time.monotonic()
                    free_at = max(free_at, now) + (len(data) / rate if rate else 0.0)
                    wait = latency + free_at - now
                if latency:
                    time.sleep(wait)
                self.send_response(206 if asked else 200)
                if asked:
                    self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{size}")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                if body:
                    self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.spec = f"http://127.0.0.1:{self._server.server_port}/part-{{000000..{SHARDS - 1:06d}}}.tar"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class Read(Transform):
    """Reads the bytes of an image and does not decode them."""

    def __call__(self, sample: Sample, rng: np.random.Generator) -> dict[str, torch.Tensor]:
        return {"size": torch.tensor(len(sample.key))}


def write_set(folder: Path) -> int:
    """Write the shards and their indexes; return the bytes of all shards."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for shard in range(SHARDS):
        with tarfile.open(folder / f"part-{shard:06d}.tar", "w") as tar:
            for sample in range(PER_SHARD):
                info = tarfile.TarInfo(f"{shard * PER_SHARD + sample:08d}.jpg")
                info.size = SAMPLE_BYTES
                tar.addfile(info, io.BytesIO(b"\xff\xd8\xff" + rng.bytes(SAMPLE_BYTES - 3)))
    ShardSet.open(str(folder), folder / "unused")
    return sum(path.stat().st_size for path in folder.glob("*.tar"))


def fetched(server: Server, order: Order, hosts: int, cache: Path, gib: float) -> dict[str, Any]:
    """Return the bytes and requests of all hosts in one epoch, and the largest size of a cache."""
    sent = requests = largest = 0
    steps = order.num_samples // BATCH
    for rank in range(hosts):
        shutil.rmtree(cache, ignore_errors=True)
        shards = ShardSet.open(server.spec, cache, gib, backoff=0.01)
        share = Share(BATCH // hosts, rank, hosts)
        source = SampleSource(shards, Read(), 3, 0)
        with closing(TrainLoader(source, order, share, global_batch=BATCH, start_batch=steps // 2)) as loader:
            for step in range(steps // 2 + steps):
                if step == steps // 2:
                    sent, requests = sent - server.sent, requests - server.requests
                next(loader)
                if step % 16 == 0:
                    with shards.cache._directory_locked():
                        size = sum(entry.stat().st_size for entry in os.scandir(cache) if entry.is_file())
                    largest = max(largest, size)
        sent, requests = sent + server.sent, requests + server.requests
    shutil.rmtree(cache, ignore_errors=True)
    return {"bytes": sent, "requests": requests, "largest_cache": largest}


def epochs(folder: Path, work: Path, total: int) -> list[dict[str, Any]]:
    """Measure the hosts."""
    server = Server(folder)
    orders: dict[str, Order] = {
        "lanes": LaneOrder(SHARDS * PER_SHARD, 0, lanes=LANES, shuffle_samples=GROUP),
        "groups": SampleOrder(SHARDS * PER_SHARD, 0, shuffle_samples=GROUP),
    }
    rows = []
    for name, order in orders.items():
        for hosts in HOSTS if name == "lanes" else (1, 4):
            sharers = hosts if name == "lanes" else 1
            gib = 2.5 * GROUP / (SHARDS * PER_SHARD) * total / sharers / 2**30
            found = fetched(server, order, hosts, work / "cache", gib)
            row = {"order": name, "hosts": hosts, "data_sets": found["bytes"] / total, "cache_bound": int(gib * 2**30)}
            rows.append(row | found)
            print(
                f"{name:>6}, {hosts:2} hosts: {row['data_sets']:5.2f} x the data set, {found['requests']:6,} requests, "
                f"cache at most {found['largest_cache'] / row['cache_bound']:.0%} of its bound",
                flush=True,
            )
    server.close()
    return rows


def speeds(folder: Path, work: Path, total: int) -> list[dict[str, Any]]:
    """Measure reading ahead."""
    server = Server(folder, latency=LATENCY, rate=RATE)
    rows = []
    for connections in CONNECTIONS:
        cache = work / f"speed-{connections}"
        shards = ShardSet.open(server.spec, cache, 1.0)
        shards.parts.samples = 64  # 300 KB
        for shard in range(SHARDS):
            shards.read(shard * PER_SHARD)  # so that the indexes are there
        before, start = server.sent, time.monotonic()
        shards.prefetch(lambda: [(0, shards.num_samples)], connections=connections)  # noqa: B023
        while time.monotonic() - start < 6.0 and server.sent - before < 0.9 * total:
            time.sleep(0.05)
        rate = (server.sent - before) / (time.monotonic() - start)
        shards.close()
        shutil.rmtree(cache)
        rows.append({"connections": connections, "mb_per_s": rate / 1e6, "share_of_link": rate / RATE})
        print(f"{connections:2} connections: {rate / 1e6:5.1f} MB/s, {rate / RATE:.0%} of the link", flush=True)
    server.close()
    return rows


def mixing(num_samples: int = 14_000_000, classes: int = 1000, batch: int = 1024) -> list[dict[str, Any]]:
    """Measure the classes of batches."""
    orders: dict[str, Order] = {"groups, 131072": SampleOrder(num_samples, 0)}
    for block in (8, 16, 32, 64, 256):
        orders[f"lanes, 131072, blocks of {block}"] = LaneOrder(num_samples, 0, lanes=64, block_samples=block)
    orders["lanes, 16384, blocks of 16"] = LaneOrder(num_samples, 0, lanes=64, shuffle_samples=16384)
    rows = []
    for name, order in orders.items():
        indices = np.array([order.at(position)[1] for position in range(batch * 40)]).reshape(-1, batch)
        labels = indices * classes // num_samples
        shares = np.array([np.bincount(row, minlength=classes) for row in labels]) / batch - 1 / classes
        before, after = shares[:-1], shares[1:]
        norms = np.sqrt((before**2).sum(1) * (after**2).sum(1))
        row = {
            "order": name,
            "classes": float(np.mean([len(set(row)) for row in labels])),
            "correlation": float(((before * after).sum(1) / norms).mean()),
        }
        rows.append(row)
        print(f"{name:>30}: {row['classes']:5.0f} classes, correlation {row['correlation']:.2f}", flush=True)
    uniform = classes * (1 - (1 - 1 / classes) ** batch)
    print(f"{'uniform':>30}: {uniform:5.0f} classes")
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        total = write_set(work / "served")
        results = {
            "epochs": epochs(work / "served", work, total),
            "speeds": speeds(work / "served", work, total),
            "mixing": mixing(),
        }
    write_report(options.out, ("torch", "fsspec", "aiohttp"), data_set_bytes=total, **results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
