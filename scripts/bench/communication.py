"""Modeled fraction of a step that is lost to communication, for several networks and numbers of ranks.

    python scripts/bench/communication.py --out results.json

Nothing is measured: `planner/communication.py` contains the model and its assumptions. The columns are `before`, a
reduction in bf16 of all gradients after the last backward, and two control sums over a ring, as in an earlier version;
`now`, the engine of the experiment; and `later`, with the weights gathered during the next forward pass as well, which
no engine does.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from report import write_report

from swinv2_train.config.compose import compose
from swinv2_train.config.plan import make_plan
from swinv2_train.planner.communication import MFU, MFU_BAND, Network, step_time, with_late_gather, without_overlap

NETWORKS = {
    "4 x 100 Gb/s (EFA v1)": 42.5,
    "4 x HDR": 86.0,
    "8 x HDR (85% of its rate, assumed)": 170.0,
    "25 Gb/s Ethernet": 2.8,
}
"""Bus bandwidth of an all-reduce between hosts of 8 A100 in GB/s, as others measured it: NVIDIA/nccl-tests issues 119
and 175, stas00/ml-engineering."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiment", default="simmim_giant")
    parser.add_argument("--ranks", nargs="+", type=int, default=[64, 256, 512])
    parser.add_argument("--overrides", nargs="*", default=[], help="config keys, such as engine=zero1_bf16")
    parser.add_argument("--out", type=Path, help="JSON file for the result")
    arguments = parser.parse_args()
    config = compose([f"+experiment={arguments.experiment}", *arguments.overrides])
    samples = config.data.expected_samples or config.optim.global_batch
    print(f"{'network':36}  ranks  {'MFU':>4}  {'step, s':>8}  {'before':>7}  {'now':>7}  {'later':>7}")
    results = []
    for name, rate in NETWORKS.items():
        for ranks in arguments.ranks:
            plan, network = make_plan(config, ranks, samples), Network(rate * 1e9)
            for mfu in (MFU_BAND[0], MFU, MFU_BAND[1]):
                now = step_time(config, plan, network, mfu=mfu)
                if now is None:
                    parser.error("ZeRO stage 3 is not modeled")
                before, later = (
                    without_overlap(config, plan, network, mfu),
                    with_late_gather(config, plan, network, mfu),
                )
                lost = {"before": before.lost, "now": now.lost, "later": later.lost}
                results.append(
                    {
                        "network": name,
                        "gb_s": rate,
                        "ranks": ranks,
                        "mfu": mfu,
                        "step_s": now.total,
                        "control_s": now.control,
                        **lost,
                    }
                )
                shares = "  ".join(f"{share:7.1%}" for share in lost.values())
                print(f"{name:36}  {ranks:5}  {mfu:4.0%}  {now.total:8.2f}  {shares}")
    write_report(arguments.out, (), experiment=arguments.experiment, overrides=arguments.overrides, results=results)


if __name__ == "__main__":
    main()
