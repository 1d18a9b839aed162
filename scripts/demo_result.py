"""Print what a finished demo run has learned: python scripts/demo_result.py outputs/simmim_demo"""

from __future__ import annotations

import json
import sys
from pathlib import Path

MIN_DROP = 0.15
"""The held-out loss has to fall by this share for the demo to count as a success."""


def main(run_dir: Path) -> int:
    records = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    losses = [(record["step"], record["eval/loss"]) for record in records if "eval/loss" in record]
    (first_step, first), (last_step, last) = losses[0], losses[-1]
    drop = 1 - last / first
    figure = max((run_dir / "figures").glob("simmim-step-*.png"))
    checkpoint = max((run_dir / "checkpoints").glob("step-*"))
    print(f"held-out loss    {first:.4f} (step {first_step}) -> {last:.4f} (step {last_step}): {drop:.0%} lower")
    print(f"reconstructions  {figure}")
    print(f"checkpoint       {checkpoint}")
    print("next             swinv2-data pack YOUR/IMAGES shards --eval-share 0.1 && \\")
    print("                 swinv2-train +experiment=simmim_demo run.dir=runs/mine \\")
    print("                 data.shards='shards/train-*.tar' data.eval_shards='shards/eval-*.tar'")
    if drop < MIN_DROP:
        print(f"the held-out loss should have fallen by at least {MIN_DROP:.0%}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
