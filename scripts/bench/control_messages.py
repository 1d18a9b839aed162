"""Messages and bytes of the sum that all ranks exchange per step, and its cost on real ranks.

    python scripts/bench/control_messages.py --out scripts/bench/results/control-messages.json

Counted: the code of a run on 1 to 512 ranks, which are threads of one process with queues as their network. `waits` is
the longest chain of messages, one after the other, which a rank waits for. `ring_waits` is that of gloo's own
all-reduce, a ring: 2 (n - 1), computed.

Measured: 2 to 16 real ranks, light processes over loopback, that sum five numbers in turn by messages between pairs, by
gloo's ring, and in the background while the process sleeps. Every round does each once, so that the load of the machine
affects all alike. More ranks than cores wait mostly for the scheduler, so the CPU time of a rank says more than the
latency. `exposed` is the time that a rank still waits for a sum that it began 20 ms earlier.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # for the tests, which are not in a package

from report import write_report

from swinv2_train.launch.environment import free_port
from swinv2_train.launch.ranks import Ranks, join, leave
from tests.launch.wire import added_up

COUNTED = (1, 2, 3, 4, 8, 16, 32, 64, 128, 256, 500, 512)
MEASURED = (2, 4, 8, 16)
NUMBERS = 4
"""Of a step with one loss term: its weight, and the ranks that stop, replaced samples, or cannot read their data."""
AHEAD_SECONDS = 0.02


def count(world_size: int) -> dict[str, Any]:
    """Return the messages of one sum."""
    _, wires = added_up([torch.ones(NUMBERS, dtype=torch.float64)] * world_size)
    return {
        "ranks": world_size,
        "most_messages_of_a_rank": max(len(wire.sizes) for wire in wires),
        "most_bytes_of_a_rank": max(sum(wire.sizes) for wire in wires),
        "messages_of_all_ranks": sum(len(wire.sizes) for wire in wires),
        "waits": max(wire.chain for wire in wires),
        "ring_waits": 2 * (world_size - 1),
    }


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Return the wall-clock and CPU milliseconds of some work."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return 1000 * (time.perf_counter() - wall), 1000 * (time.process_time() - cpu)


def measure_rank(rank: int, world_size: int, port: int, rounds: int, result: str) -> None:
    """Run one real rank; the main rank writes the medians."""
    own = {"RANK": str(rank), "WORLD_SIZE": str(world_size), "LOCAL_RANK": str(rank)}
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), **own)
    torch.set_num_threads(1)
    ranks = join("cpu", 2.0)
    ring = torch.zeros(NUMBERS, dtype=torch.float64)
    times: dict[str, list[tuple[float, float]]] = {"pairs": [], "ring": [], "exposed": []}
    for _ in range(rounds):
        times["pairs"].append(timed(lambda: ranks.sum([1.0] * NUMBERS)))
        times["ring"].append(timed(lambda: dist.all_reduce(ring, group=ranks.control)))
        times["exposed"].append(exposed(ranks))
    own_medians = {
        name: [statistics.median(part) for part in zip(*values, strict=True)] for name, values in times.items()
    }
    everyone = ranks.gather(own_medians)
    if ranks.is_main:
        found: dict[str, Any] = {"ranks": world_size}
        for name in times:
            found[f"{name}_ms"], found[f"{name}_cpu_ms"] = (
                statistics.median(values) for values in zip(*(each[name] for each in everyone), strict=True)
            )
        Path(result).write_text(json.dumps(found))
    ranks.barrier()
    leave()


def exposed(ranks: Ranks) -> tuple[float, float]:
    pending = ranks.begin_sum([1.0] * NUMBERS)
    time.sleep(AHEAD_SECONDS)
    return timed(pending.result)


def measure(world_size: int, rounds: int, result: Path) -> dict[str, Any]:
    """Return the medians over rounds and ranks, in milliseconds."""
    port, context = free_port(), multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["swinv2_train.launch.ranks"])
    arguments = (world_size, port, rounds, str(result))
    processes = [context.Process(target=measure_rank, args=(rank, *arguments)) for rank in range(world_size)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        raise RuntimeError(f"a rank of {world_size} failed")
    return json.loads(result.read_text())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--ranks", type=int, nargs="*", default=list(MEASURED), help="numbers of real ranks")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    counted = [count(world_size) for world_size in COUNTED]
    for row in counted:
        print("  ".join(f"{name} {value}" for name, value in row.items()), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        measured = [measure(number, options.rounds, Path(folder) / f"{number}.json") for number in options.ranks]
    for row in measured:
        print("  ".join(f"{name} {value:.3g}" for name, value in row.items()))
    write_report(options.out, ("torch",), rounds=options.rounds, counted=counted, measured=measured)
    return 0


if __name__ == "__main__":
    sys.exit(main())
