"""One training step of every detector at full size: loss, parameters, memory, and time, on this machine's device.

    python scripts/bench/detection_step.py --out results.json

SwinV2-T at 512 pixels, 80 classes, with masks, random weights and pixels, in fp32. Each detector runs in a process of
its own, because the peak of the memory of a process never falls. A step is forward, the loss as a run normalizes it,
backward, and an update by AdamW.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from measured import measured_step
from report import device_name, write_report

from swinv2_train.config.compose import compose

_HTC = ("task.detector=htc", "task.class_agnostic=true", "task.box_loss=smooth_l1", "task.box_weight=1")
DETECTORS = {
    "mask_rcnn": ("task.detector=mask_rcnn", "task.box_head=2fc", "task.box_loss=smooth_l1", "task.box_weight=1"),
    "cascade": ("task.detector=cascade",),
    "htc": (*_HTC, "task.semantic_classes=183"),
    "htc++": (*_HTC, "task.semantic_classes=183", "task.global_attention=true"),
}
"""Config keys of the detectors of the sources."""


def detector_step(name: str, overrides: list[str], images: int) -> dict[str, Any]:
    """Return the results of `measured_step` for a detector.

    Args:
        overrides: config keys, which begin with the experiment.
    """
    config = compose([*overrides, *DETECTORS[name], "engine.precision=fp32"])
    config.task.complete({}, None)
    return measured_step(config, images)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiment", default="coco_tiny_cascade")
    parser.add_argument("--detectors", nargs="*", default=list(DETECTORS), choices=DETECTORS)
    parser.add_argument("--images", type=int, default=1)
    parser.add_argument("--resolution", type=int, default=512)
    parser.add_argument("--overrides", nargs="*", default=[], help="config keys, such as task.num_classes=365")
    parser.add_argument("--out", type=Path, help="JSON file for the results")
    options = parser.parse_args()
    canvas = ["task.scaling=jitter", "task.crop_sides=[]", f"data.resolution={options.resolution}"]
    overrides = [f"+experiment={options.experiment}", *canvas, *options.overrides]
    print("detector    parameters     loss   gradient   GiB at the peak   forward, backward, update")
    results = {}
    for name in options.detectors:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
            found = process.submit(detector_step, name, overrides, options.images).result()
        results[name] = found
        seconds = ", ".join(f"{each:.1f} s" for each in found["seconds"].values())
        numbers = f"{found['loss']:8.4f} {found['gradient_norm']:10.2f} {found['memory_gib']['peak']:17.2f}"
        print(f"{name:9} {found['parameters']:12,} {numbers}   {seconds}")
    write_report(options.out, ("torch",), device=device_name(), threads=torch.get_num_threads(), results=results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
