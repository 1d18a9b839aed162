"""Compare the demo's detectors, and draw detect_demo.png: python scripts/detect_result.py outputs/detect_demo"""

from __future__ import annotations

import sys
from pathlib import Path

from demo_result import curve
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from PIL import Image

from swinv2_train import open_shards
from swinv2_train.tracking.charts import MARKERS, PALETTE, Chart, house_style

HELD_OUT = "demo-data/objects-eval"
RUNS = {"objects": "with pretraining", "objects-scratch": "from scratch"}
METRICS = {"box_ap50": "boxes", "mask_ap50": "masks"}


def draw(directory: Path, predictions: Path) -> Chart:
    """Draw held-out scenes with their detections next to the AP50 of both runs."""
    with house_style():
        figure = Figure(figsize=(9.0, 5.0), layout="constrained")
        images, chart = figure.subplots(1, 2, width_ratios=(1, 1.4))
        images.imshow(Image.open(predictions), interpolation="lanczos")
        images.set_axis_off()
        for number, (name, title) in enumerate(RUNS.items()):
            chart.plot(
                *curve(directory / name, "eval/box_ap50"), marker=MARKERS[number], color=PALETTE[number], label=title
            )
        chart.set(title="Boxes on held-out scenes", xlabel="step", ylabel="AP at IoU 0.5", ylim=(0, None))
        chart.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        chart.legend(loc="best")
    return Chart(figure)


def main(directory: Path) -> int:
    facts = open_shards(HELD_OUT).shard_set.card.objects
    print(f"AP50 of {facts.objects.total():,} held-out digits")
    found = {}
    for name in reversed(RUNS):
        values = {metric: curve(directory / name, f"eval/{metric}")[1][-1] for metric in METRICS}
        found[name] = values["box_ap50"]
        print(f"{RUNS[name]:<18}{', '.join(f'{METRICS[key]} {value:.1%}' for key, value in values.items())}")
    predictions = max((directory / "objects" / "figures").glob("*-step-*.png"))
    picture = directory / "detect_demo.png"
    picture.write_bytes(draw(directory, predictions).encoded("png"))
    print(f"picture           {picture}")
    print(f"predictions       {predictions}")
    print(f"checkpoint        {max((directory / 'objects' / 'checkpoints').glob('step-*'))}")
    if found["objects"] <= found["objects-scratch"]:
        print("pretraining should have beaten random weights", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
