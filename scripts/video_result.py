"""Compare the demo's models of videos, and draw video_demo.png: python scripts/video_result.py outputs/video_demo"""

from __future__ import annotations

import sys
from pathlib import Path

from demo_result import curve
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from PIL import Image

from swinv2_train import open_shards
from swinv2_train.tracking.charts import MARKERS, PALETTE, Chart, house_style

HELD_OUT = "demo-data/motions-eval"
RUNS = {"video": "from weights of images", "video-scratch": "from scratch", "one-frame": "a single frame"}


def draw(directory: Path, predictions: Path, chance: float) -> Chart:
    """Draw held-out videos with their predictions next to the accuracy of all runs."""
    with house_style():
        figure = Figure(figsize=(8.0, 5.0), layout="constrained")
        strips, chart = figure.subplots(1, 2, width_ratios=(1, 1.2))
        strips.imshow(Image.open(predictions), interpolation="lanczos")
        strips.set_axis_off()
        for number, (name, title) in enumerate(RUNS.items()):
            chart.plot(
                *curve(directory / name, "eval/top1"), marker=MARKERS[number], color=PALETTE[number], label=title
            )
        chart.axhline(chance, color="#B0B0B0", linestyle="--", label="chance")
        chart.set(
            title="Motion of held-out videos", xlabel="step", ylabel="top-1 accuracy", xlim=(0, None), ylim=(0, None)
        )
        chart.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        chart.legend(loc="upper left")
    return Chart(figure)


def main(directory: Path) -> int:
    shards = open_shards(HELD_OUT)
    chance = 1 / len(shards.class_names)
    print(f"top-1 on {len(shards)} held-out videos, by {', '.join(shards.class_names)}")
    found = {name: curve(directory / name, "eval/top1")[1] for name in RUNS}
    for name, values in found.items():
        print(f"{RUNS[name]:<24}{values[-1]:.1%} ({values[0]:.1%} at the first evaluation)")
    print(f"{'chance':<24}{chance:.1%}")
    predictions = max((directory / "video" / "figures").glob("*-step-*.png"))
    picture = directory / "video_demo.png"
    picture.write_bytes(draw(directory, predictions, chance).encoded("png"))
    print(f"picture                 {picture}")
    print(f"predictions             {predictions}")
    print(f"checkpoint              {max((directory / 'video' / 'checkpoints').glob('step-*'))}")
    pretrained, scratch, single = (values[-1] for values in found.values())
    if pretrained <= scratch or single > (chance + pretrained) / 2:
        print("weights of images should have helped, and a single frame should have been near chance", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
