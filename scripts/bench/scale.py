"""Draw how costs grow with the ranks and with the shards, from the committed measurements.

python scripts/bench/scale.py --out scripts/bench/results/scale.png
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

RESULTS = Path(__file__).with_name("results")
GIB = 2**30


def read(name: str) -> dict[str, Any]:
    """Return a report; ends the program with a sentence if it was not made yet."""
    path = RESULTS / name
    if not path.exists():
        raise SystemExit(f"{path} is missing: run the benchmark that writes it first (scripts/bench/README.md)")
    return json.loads(path.read_text())


def logarithmic(axes: Axes, title: str, x: str, y: str) -> None:
    """Name a panel, with powers of two or ten below it."""
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(x, fontsize=9)
    axes.set_ylabel(y, fontsize=9)
    axes.set_xscale("log", base=10 if x == "shards" else 2)
    axes.grid(alpha=0.3)
    axes.tick_params(labelsize=8)


def memory(axes: Axes) -> None:
    """Draw the peak of a step without activations."""
    for name, label in (("step-memory.json", "sums in fp32 (default)"), ("step-memory-zero2_bf16.json", "zero2_bf16")):
        rows = [row for row in read(name)["results"] if row["experiment"] == "simmim_giant"]
        peaks = [max(row[key] for key in ("backward", "held", "update", "between_steps")) / GIB for row in rows]
        axes.plot([row["ranks"] for row in rows], peaks, "o-", label=label)
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=8)
    logarithmic(axes, "model states of SwinV2-G, peak of a step", "ranks", "GiB per rank")


def messages(axes: Axes) -> None:
    """Draw the messages of the sum of all ranks in a step."""
    rows = read("control-messages.json")["counted"]
    ranks = [row["ranks"] for row in rows]
    axes.plot(ranks, [row["ring_waits"] for row in rows], "s--", color="0.6", label="a ring: messages in a chain")
    axes.plot(ranks, [row["waits"] for row in rows], "o-", label="recursive doubling: messages in a chain")
    axes.set_yscale("symlog", linthresh=10)
    axes.legend(fontsize=8)
    logarithmic(axes, "control messages of a step", "ranks", "messages")


def start_up(axes: Axes) -> None:
    """Draw the file operations at the start."""
    rows = read("index-scale.json")["results"]
    for ranks in ("1", "64", "512"):
        counts = [row["start_up"]["ranks"][ranks]["operations"] for row in rows]
        label = "1 rank" if ranks == "1" else f"{ranks} ranks together"
        axes.plot([row["shards"] for row in rows], counts, "o-", label=label)
    axes.set_yscale("log")
    axes.legend(fontsize=8)
    logarithmic(axes, "file operations to open the data set", "shards", "operations of all ranks")


def loads(axes: Axes) -> None:
    """Draw the indexes that are parsed, and the time to find a sample."""
    for row in read("index-scale.json")["results"]:
        found = row["loads"]
        label = f"{row['shards']:,} shards, {sum(load['index_loads_per_sample'] for load in found):.0f} indexes parsed"
        axes.plot([load["ranks"] for load in found], [load["cpu_us_per_sample"] for load in found], "o-", label=label)
    axes.set_ylim(0, 1.6 * axes.get_ylim()[1])  # room for the legend above the lines
    axes.legend(fontsize=8, loc="upper center")
    logarithmic(axes, "finding a sample, in one of 8 workers of a rank", "ranks", "CPU time in µs")


def fetched(axes: Axes) -> None:
    """Draw the bytes that all hosts fetch."""
    rows = read("remote-reading.json")["epochs"]
    for order, style in (("groups", "s--"), ("lanes", "o-")):
        chosen = [row for row in rows if row["order"] == order]
        label = f"{order}{' (earlier versions)' if order == 'groups' else ''}"
        color = "0.6" if order == "groups" else None
        axes.plot(
            [row["hosts"] for row in chosen], [row["data_sets"] for row in chosen], style, color=color, label=label
        )
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=8)
    logarithmic(axes, "fetched by all hosts in an epoch", "hosts", "times the data set")


def worker_memory(axes: Axes) -> None:
    """Draw the memory of the set in a data worker."""
    rows = read("index-scale.json")["results"]
    sizes = [row["worker_memory"]["set_and_rows_bytes"] / 2**20 for row in rows]
    axes.plot([row["shards"] for row in rows], sizes, "o-")
    axes.set_ylim(bottom=0)
    logarithmic(axes, "memory of the data set in a worker", "shards", "MiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    figure = Figure(figsize=(13, 7), layout="constrained")
    panels = (memory, messages, fetched, start_up, loads, worker_memory)
    for axes, panel in zip(figure.subplots(2, 3).flat, panels, strict=True):
        panel(axes)
    figure.savefig(options.out, dpi=110)
    print(options.out)


if __name__ == "__main__":
    main()
