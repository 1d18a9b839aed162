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
import sys
from pathlib import Path

import torch
from measured import measured_step
from report import device_name, write_report

from swinv2_train.config.compose import compose


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
