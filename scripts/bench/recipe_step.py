"""One training step of a recipe at its full size: loss, time, and memory, on this machine's device.

    python scripts/bench/recipe_step.py --experiment ade20k_tiny_512 --out results.json
    python scripts/bench/recipe_step.py --experiment k400_tiny

The model has random weights and the batch random pixels and labels, in fp32. A step is forward, the loss as a
run normalizes it, backward, and an update by AdamW. A new decoder gives all classes nearly the same score, so the loss
starts near 1.4 * 7/8 * ln(150) = 6.14 for ADE20K: with the auxiliary loss, and an eighth of the pixels ignored. For
Kinetics-400 it starts near ln(400) = 5.99.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch
from report import device_name, write_report

from swinv2_train.config.compose import compose
from swinv2_train.config.schema import Config
from swinv2_train.data.batch import to_device
from swinv2_train.planner.activations import activations


def measured_step(config: Config, samples: int) -> dict[str, Any]:
    """Return the loss of a step, its gradient, the seconds of its parts, and memory in GiB."""
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    task = config.task.implementation()(config, [0.5] * 3, [0.25] * 3)
    model = task.build_model().to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.optim.lr)
    batch, factors = to_device(task.example_batch(samples), device), config.task.terms()
    weights = task.weights(batch)
    before = peak_gib()
    started = now()
    terms = task.loss(model, batch).terms
    computed = now()
    torch.stack([factors[name] * term / weights[name] for name, term in terms.items()]).sum().backward()
    differentiated = now()
    norm = torch.nn.utils.get_total_norm([parameter.grad for parameter in model.parameters()])
    optimizer.step()
    updated = now()
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
        "saved_activations_gib_calculated": activations(config, samples, gpu=device.type == "cuda")[-1].saved / 2**30,
        "memory_gib": {"before": before, "peak": peak_gib()},
    }


def now() -> float:
    """Return the time at which all work so far is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def peak_gib() -> float:
    """Return the peak of the memory of the GPU, or of the resident memory of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiment", default="ade20k_tiny_512")
    parser.add_argument("--samples", type=int, default=1, help="images or clips")
    parser.add_argument("--overrides", nargs="*", default=[], help="config keys, such as data.resolution=640")
    parser.add_argument("--out", type=Path, help="JSON file for the result")
    options = parser.parse_args()
    config = compose([f"+experiment={options.experiment}", "engine.precision=fp32", *options.overrides])
    config.task.complete({}, None)
    found = measured_step(config, options.samples)
    frames = f"{config.data.frames} frames of " if config.data.frames else ""
    print(f"{found['parameters']:,} parameters, {frames}{config.data.resolution} pixels: loss {found['loss']:.4f}")
    print(f"gradient norm {found['gradient_norm']:.3f}, peak of memory {found['memory_gib']['peak']:.2f} GiB")
    print(", ".join(f"{name} {seconds:.1f} s" for name, seconds in found["seconds"].items()))
    write_report(options.out, ("torch",), device=device_name(), threads=torch.get_num_threads(), results=found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
