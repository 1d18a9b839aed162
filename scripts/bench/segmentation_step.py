"""One training step of a segmentation recipe at its full size: loss, time, and memory, on this machine's device.

    python scripts/bench/segmentation_step.py --experiment ade20k_tiny_512 --out results.json

The model has random weights and the batch random pixels and labels, in fp32 on a CPU. A step is forward, the loss as a
run normalizes it, backward, and an update by AdamW. A new decoder gives all classes nearly the same score, so the loss
starts near 1.4 * 7/8 * ln(150) = 6.14 for ADE20K: with the auxiliary loss, and an eighth of the pixels ignored.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from report import device_name, write_report

from swinv2_train.config.compose import compose
from swinv2_train.config.schema import Config
from swinv2_train.planner.activations import activations


def measured_step(config: Config, images: int) -> dict[str, Any]:
    """Return the loss of a step, its gradient, the seconds of its parts, and memory in GiB."""
    torch.manual_seed(0)
    task = config.task.implementation()(config, [0.5] * 3, [0.25] * 3)
    model = task.build_model().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.optim.lr)
    batch, factors = task.example_batch(images), config.task.terms()
    weights = task.weights(batch)
    before = peak_gib()
    started = time.perf_counter()
    terms: Mapping[str, torch.Tensor] = task.loss(model, batch).terms
    computed = time.perf_counter()
    torch.stack([factors[name] * term / weights[name] for name, term in terms.items()]).sum().backward()
    differentiated = time.perf_counter()
    norm = torch.nn.utils.get_total_norm([parameter.grad for parameter in model.parameters()])
    optimizer.step()
    updated = time.perf_counter()
    sums = {name: float(term.detach()) for name, term in terms.items()}
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "loss": sum(factors[name] * total / weights[name] for name, total in sums.items()),
        "terms": {name: total / weights[name] for name, total in sums.items()},
        "gradient_norm": float(norm),
        "seconds": {
            "forward": computed - started,
            "backward": differentiated - computed,
            "update": updated - differentiated,
        },
        "saved_activations_gib_calculated": activations(config, images, gpu=False)[-1].saved / 2**30,
        "resident_gib": {"before": before, "peak": peak_gib()},
    }


def peak_gib() -> float:
    """Return the peak of the resident memory of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiment", default="ade20k_tiny_512")
    parser.add_argument("--images", type=int, default=1)
    parser.add_argument("--overrides", nargs="*", default=[], help="config keys, such as data.resolution=640")
    parser.add_argument("--out", type=Path, help="JSON file for the result")
    options = parser.parse_args()
    config = compose([f"+experiment={options.experiment}", "engine.precision=fp32", *options.overrides])
    config.task.complete({}, None)
    found = measured_step(config, options.images)
    print(f"{found['parameters']:,} parameters, {config.data.resolution} pixels: loss {found['loss']:.4f}")
    print(
        f"gradient norm {found['gradient_norm']:.3f}, peak of resident memory {found['resident_gib']['peak']:.2f} GiB"
    )
    print(", ".join(f"{name} {seconds:.1f} s" for name, seconds in found["seconds"].items()))
    write_report(options.out, ("torch",), device=device_name(), threads=torch.get_num_threads(), results=found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
