"""Cost of the order of samples for a thousand, a million, and a billion samples.

    python scripts/bench/order.py --out scripts/bench/results/order.json

A jump computes the sample at a random position of the first hundred epochs, as a resume does. Cold: the first jump into
an epoch and shuffle group, whose keys must be derived. Warm: further jumps inside one shuffle group, as in training.
Memory is what Python allocates: the order itself, and the peak while it is created and used.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
import tracemalloc
from pathlib import Path
from typing import Any

from report import write_report

from swinv2_train.data import order as module
from swinv2_train.data.lanes import LaneOrder

SIZES = (10**3, 10**6, 10**9)
EPOCHS = 100


def microseconds(order: LaneOrder, positions: list[int], *, cold: bool) -> list[float]:
    """Return the time of each jump; `cold`: with no cached keys from the previous jump."""
    times = []
    for position in positions:
        if cold:
            module.keys.cache_clear()
        start = time.perf_counter_ns()
        order.at(position)
        times.append((time.perf_counter_ns() - start) / 1000)
    return times


def spread(times: list[float]) -> dict[str, float]:
    """Return the median and the 99th percentile."""
    return {"median": statistics.median(times), "p99": statistics.quantiles(times, n=100)[98]}


def memory(num_samples: int, positions: list[int]) -> dict[str, int]:
    """Return the bytes of the order, and the peak while creating it and jumping."""
    module.keys.cache_clear()
    tracemalloc.start()
    order = LaneOrder(num_samples, seed=0, lanes=64)
    made, _ = tracemalloc.get_traced_memory()
    for position in positions:
        order.at(position)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return {"order_bytes": made, "peak_bytes": peak}


def measure(num_samples: int, jumps: int) -> dict[str, Any]:
    """Return all numbers for one size of data set."""
    rng = random.Random(num_samples)
    anywhere = [rng.randrange(EPOCHS * num_samples) for _ in range(jumps)]
    constructions = []
    for _ in range(200):
        start = time.perf_counter_ns()
        order = LaneOrder(num_samples, seed=0, lanes=64)
        constructions.append((time.perf_counter_ns() - start) / 1000)
    group = order.group_at(anywhere[0])
    # A step of a lane in training: all lanes are at the same place of their groups.
    inside = [group.first_position + rng.randrange(order.lanes * group.num_samples) for _ in range(jumps)]
    return {
        "num_samples": num_samples,
        "construct_us": spread(constructions),
        "cold_jump_us": spread(microseconds(order, anywhere, cold=True)),
        "warm_jump_us": spread(microseconds(order, inside, cold=False)),
        **memory(num_samples, anywhere[: min(jumps, 2000)]),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Return the numbers for display."""
    lines = [f"{'samples':>14} {'construct us':>14} {'cold jump us':>22} {'warm jump us':>22} {'bytes':>8} {'peak':>8}"]
    for row in rows:
        cold, warm = (
            f"{row[key]['median']:.1f} (p99 {row[key]['p99']:.1f})" for key in ("cold_jump_us", "warm_jump_us")
        )
        lines.append(
            f"{row['num_samples']:>14,} {row['construct_us']['median']:>14.1f} {cold:>22} {warm:>22} "
            f"{row['order_bytes']:>8,} {row['peak_bytes']:>8,}"
        )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jumps", type=int, default=20000)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    measure(SIZES[0], 1000)  # warm-up
    rows = [measure(size, options.jumps) for size in SIZES]
    print(table(rows))
    write_report(options.out, (), jumps=options.jumps, results=rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
