"""Compare the demo's segmenters with a constant guess: python scripts/segment_result.py outputs/segment_demo"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from demo_result import curve

from swinv2_train import open_shards

HELD_OUT = "demo-data/scenes-eval"
RUNS = {"segments": "with pretraining", "segments-scratch": "from scratch"}


def constant_guess(pixels: Mapping[int, int]) -> float:
    """Return the mIoU of predicting the most frequent class everywhere, over the classes that occur."""
    return max(pixels.values()) / sum(pixels.values()) / len(pixels)


def main(directory: Path) -> int:
    shards = open_shards(HELD_OUT)
    facts = shards.shard_set.card.label_maps
    guess = constant_guess(facts.pixels)
    print(f"mIoU on {len(shards)} held-out scenes")
    print(f"constant guess    {guess:.1%} ({shards.class_names[max(facts.pixels, key=facts.pixels.get)]} everywhere)")
    found = {name: curve(directory / name, "eval/miou")[1] for name in RUNS}
    for name, values in reversed(found.items()):
        print(f"{RUNS[name]:<18}{values[-1]:.1%} ({values[0]:.1%} at the first evaluation)")
    print(f"predictions       {max((directory / 'segments' / 'figures').glob('*-step-*.png'))}")
    print(f"checkpoint        {max((directory / 'segments' / 'checkpoints').glob('step-*'))}")
    pretrained, scratch = (values[-1] for values in found.values())
    if pretrained <= max(scratch, guess):
        print("pretraining should have beaten both", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
