"""Print what the demo's pipeline has learned, and draw demo.png: python scripts/demo_result.py outputs/demo"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from PIL import Image

from swinv2_train.tracking.charts import MARKERS, PALETTE, Chart, house_style

MIN_DROP = 0.15
"""Fraction by which SimMIM's held-out loss must fall for the demo to count as a success."""
TASKS = {"task": "pretrained", "task-scratch": "from scratch"}
CHANCE = 0.1
SMOOTHED_OVER = 10
"""Number of steps that a point of the training curve averages."""


def curve(run_dir: Path, metric: str) -> tuple[list[int], list[float]]:
    """Return the steps at which a metric was logged, and its values."""
    records = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    found = [(record["step"], record[metric]) for record in records if metric in record]
    return [step for step, _ in found], [value for _, value in found]


def draw_comparison(directory: Path, predictions: Path, runs: Mapping[str, str], metric: str, **axes: Any) -> Chart:
    """Draw the predictions of a run next to a held-out metric of several runs.

    Args:
        runs: their directories in `directory`, each with its title.
        axes: properties of the chart, such as `title` and `ylabel`; `chance` draws a line at this value.
    """
    chance = axes.pop("chance", None)
    with house_style():
        figure = Figure(figsize=(8.5, 5.0), layout="constrained")
        images, chart = figure.subplots(1, 2, width_ratios=(1, 1.3))
        images.imshow(Image.open(predictions), interpolation="lanczos")
        images.set_axis_off()
        for number, (name, title) in enumerate(runs.items()):
            steps, values = curve(directory / name, metric)
            chart.plot(steps, values, marker=MARKERS[number], color=PALETTE[number], label=title)
        if chance is not None:
            chart.axhline(chance, color="#B0B0B0", linestyle="--", label="chance")
        chart.set(xlabel="step", xlim=(0, None), ylim=(0, None), **axes)
        chart.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        chart.legend(loc="best")
    return Chart(figure)


def draw(directory: Path, reconstructions: Path) -> Chart:
    """Draw held-out images, masked and reconstructed, next to the curves of SimMIM and of the task."""
    with house_style():
        figure = Figure(figsize=(8.0, 5.0), layout="constrained")
        panels = figure.subplot_mosaic([["images", "simmim"], ["images", "task"]], width_ratios=(1, 1.5))
        panels["images"].imshow(Image.open(reconstructions), interpolation="lanczos")
        panels["images"].set_axis_off()

        steps, losses = curve(directory / "simmim", "loss")
        blocks = [slice(start, start + SMOOTHED_OVER) for start in range(0, len(steps), SMOOTHED_OVER)]
        means = [sum(losses[block]) / len(losses[block]) for block in blocks]
        panels["simmim"].plot([steps[block][-1] for block in blocks], means, color=PALETTE[5], label="training")
        panels["simmim"].plot(
            *curve(directory / "simmim", "eval/loss"), marker=MARKERS[0], color=PALETTE[0], label="held out"
        )
        panels["simmim"].set(title="SimMIM", xlabel="step", ylabel="L1 loss of masked pixels")
        panels["simmim"].legend(loc="best")

        names = [*TASKS.values(), "chance"]
        shares = [curve(directory / name, "eval/top1")[1][-1] for name in TASKS] + [CHANCE]
        bars = panels["task"].barh(names, shares, height=0.6, color=(PALETTE[0], PALETTE[1], "#B0B0B0"))
        panels["task"].bar_label(bars, fmt=lambda share: f"{share:.1%}", padding=3)
        panels["task"].invert_yaxis()
        panels["task"].grid(axis="y", visible=False)
        panels["task"].set(title="Task of 1,000 labels", xlabel="held-out top-1 accuracy", xlim=(0, 1.2 * max(shares)))
        panels["task"].xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    return Chart(figure)


def main(directory: Path) -> int:
    _, losses = curve(directory / "simmim", "eval/loss")
    drop = 1 - losses[-1] / losses[0]
    print(f"held-out loss    {losses[0]:.4f} -> {losses[-1]:.4f} in SimMIM: {drop:.0%} lower")
    with_pretraining, without = (curve(directory / name, "eval/top1")[1][-1] for name in TASKS)
    print(
        f"held-out top-1   {with_pretraining:.1%} in the task, {without:.1%} without SimMIM and supervised pretraining"
    )
    reconstructions = max((directory / "simmim" / "figures").glob("simmim-step-*.png"))
    picture = directory / "demo.png"
    picture.write_bytes(draw(directory, reconstructions).encoded("png"))
    print(f"picture          {picture}")
    print(f"reconstructions  {reconstructions}")
    print(f"predictions      {max((directory / 'task' / 'figures').glob('classification-step-*.png'))}")
    print(f"checkpoint       {max((directory / 'task' / 'checkpoints').glob('step-*'))}")
    print("next             swinv2-data pack YOUR/IMAGES shards --eval-share 0.1 && \\")
    print("                 swinv2-train +experiment=simmim_demo run.dir=runs/mine \\")
    print("                 data.shards='shards/train-*.tar' data.eval_shards='shards/eval-*.tar'")
    if drop < MIN_DROP:
        print(f"the held-out loss should have fallen by at least {MIN_DROP:.0%}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
