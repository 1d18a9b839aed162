"""Compare the demo's detectors, and draw detect_demo.png: python scripts/detect_result.py outputs/detect_demo"""

from __future__ import annotations

import sys
from pathlib import Path

from demo_result import curve, draw_comparison

from swinv2_train import open_shards

HELD_OUT = "demo-data/objects-eval"
RUNS = {"objects": "with pretraining", "objects-scratch": "from scratch"}
METRICS = {"box_ap50": "boxes", "mask_ap50": "masks"}


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
    chart = draw_comparison(
        directory, predictions, RUNS, "eval/box_ap50", title="Boxes on held-out scenes", ylabel="AP at IoU 0.5"
    )
    picture.write_bytes(chart.encoded("png"))
    print(f"picture           {picture}")
    print(f"predictions       {predictions}")
    print(f"checkpoint        {max((directory / 'objects' / 'checkpoints').glob('step-*'))}")
    if found["objects"] <= found["objects-scratch"]:
        print("pretraining should have beaten random weights", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
