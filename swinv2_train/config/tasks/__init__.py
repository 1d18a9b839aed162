"""The `task` section: one dataclass per task, selected by its `name`.

A section is the torch-free interface of its task: everything that other code needs before the model exists.
"""

from swinv2_train.config.tasks.base import (
    DETECTIONS,
    FEATURES,
    LOGITS,
    LOSS,
    PIXEL_LOGITS,
    Description,
    Metric,
    TaskConfig,
)
from swinv2_train.config.tasks.classification import ClassificationConfig
from swinv2_train.config.tasks.detection import DetectionConfig
from swinv2_train.config.tasks.registry import TASK_SECTIONS, module_of, sections_of, task_section
from swinv2_train.config.tasks.segmentation import SegmentationConfig
from swinv2_train.config.tasks.simmim import SimMIMConfig
from swinv2_train.config.tasks.video import VideoConfig

__all__ = [
    "DETECTIONS",
    "FEATURES",
    "LOGITS",
    "LOSS",
    "PIXEL_LOGITS",
    "TASK_SECTIONS",
    "ClassificationConfig",
    "Description",
    "DetectionConfig",
    "Metric",
    "SegmentationConfig",
    "SimMIMConfig",
    "TaskConfig",
    "VideoConfig",
    "module_of",
    "sections_of",
    "task_section",
]
