"""Compare the demo's models of videos, and draw video_demo.png: python scripts/video_result.py outputs/video_demo"""

from __future__ import annotations

import sys
from pathlib import Path

from demo_result import curve, draw_comparison

from swinv2_train import open_shards

HELD_OUT = "demo-data/motions-eval"
RUNS = {"video": "from weights of images", "video-scratch": "from scratch", "one-frame": "a single frame"}


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
    labels = {"title": "Motion of held-out videos", "ylabel": "top-1 accuracy"}
    chart = draw_comparison(directory, predictions, RUNS, "eval/top1", chance=chance, **labels)
    picture.write_bytes(chart.encoded("png"))
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
