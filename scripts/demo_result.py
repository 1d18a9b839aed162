"""Print what the demo's pipeline has learned: python scripts/demo_result.py outputs/demo"""

from __future__ import annotations

import json
import sys
from pathlib import Path

MIN_DROP = 0.15
"""SimMIM's held-out loss has to fall by this share for the demo to count as a success."""


def values(run_dir: Path, metric: str) -> list[float]:
    """A metric's values in the order of the steps."""
    records = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [record[metric] for record in records if metric in record]


def main(directory: Path) -> int:
    losses = values(directory / "simmim", "eval/loss")
    drop = 1 - losses[-1] / losses[0]
    print(f"held-out loss    {losses[0]:.4f} -> {losses[-1]:.4f} in SimMIM: {drop:.0%} lower")
    with_pretraining, without = (values(directory / name, "eval/top1")[-1] for name in ("task", "task-scratch"))
    print(
        f"held-out top-1   {with_pretraining:.1%} in the task, {without:.1%} without SimMIM and supervised pretraining"
    )
    print(f"reconstructions  {max((directory / 'simmim' / 'figures').glob('simmim-step-*.png'))}")
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
