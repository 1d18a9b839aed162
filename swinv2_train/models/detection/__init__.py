"""Detectors: feature pyramid, region proposals, and heads for boxes and masks."""

from swinv2_train.models.detection.detector import Detector
from swinv2_train.models.detection.structures import Bitmaps, Detections, Targets

__all__ = ["Bitmaps", "Detections", "Detector", "Targets"]
