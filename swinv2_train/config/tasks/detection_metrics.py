"""Metrics of detection: the twelve numbers of COCO, for boxes and for masks."""

from __future__ import annotations

from swinv2_train.config.tasks.base import Metric

_TITLES = {
    "ap": "AP",
    "ap50": "AP at IoU 0.5",
    "ap75": "AP at IoU 0.75",
    "ap_small": "AP of small objects",
    "ap_medium": "AP of medium objects",
    "ap_large": "AP of large objects",
    "ar_1": "recall with 1 detection per image",
    "ar_10": "recall with 10 detections per image",
    "ar_100": "recall with 100 detections per image",
    "ar_small": "recall of small objects",
    "ar_medium": "recall of medium objects",
    "ar_large": "recall of large objects",
}
"""Numbers of a COCO evaluation in its order."""
BOX = tuple(f"box_{name}" for name in _TITLES)
MASK = tuple(f"mask_{name}" for name in _TITLES)
METRICS: dict[str, Metric] = {
    f"{kind}_{name}": Metric("max", f"{kind} {title}", share=True)
    for kind in ("box", "mask")
    for name, title in _TITLES.items()
}
