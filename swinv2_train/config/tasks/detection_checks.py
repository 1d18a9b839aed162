"""Checks of the training settings of detection, for `DetectionConfig.validate`."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

from swinv2_train.config.checks import at_least, resolution
from swinv2_train.config.choices import check_choice
from swinv2_train.config.errors import ConfigError, percent
from swinv2_train.config.tasks.detection_doubts import SHORT

if TYPE_CHECKING:
    from swinv2_train.config.data import DataConfig
    from swinv2_train.config.schema import Config
    from swinv2_train.config.tasks.detection import DetectionConfig

MASK_RCNN, CASCADE, HTC = "mask_rcnn", "cascade", "htc"
"""Values of `DetectionConfig.detector`."""
MOST_STAGES = 3
"""Stages whose deviations of the box offsets the sources define."""
_LABEL = r"([\w-]+\.)*json"
_MAP = r"([\w-]+\.)*(png|tif|tiff)"


def check_training(task: DetectionConfig, config: Config) -> None:
    """Check classes, members, detector, samples, and augmentation.

    Raises:
        ConfigError: for the first error.
    """
    _check_labels(task, config.data)
    _check_detector(task)
    _check_samples(task)
    _check_anchors(task, config)
    _check_augmentation(task, config.data)
    _check_pairs(task, config.optim.global_batch)


def _check_labels(task: DetectionConfig, data: DataConfig) -> None:
    at_least("task.num_classes", task.num_classes, 0)
    ids = task.category_ids
    if ids is not None and (len(set(ids)) < len(ids) or (task.num_classes and len(ids) != task.num_classes)):
        hint = "must have a different id for each class of task.num_classes, in their order"
        raise ConfigError("task.category_ids", ids, hint)
    if not re.fullmatch(_LABEL, task.label):
        raise ConfigError("task.label", task.label, "must be a member with objects, such as objects.json")
    if data.label is not None:
        hint = "is for classes of entire images; task.label names the member with the objects"
        raise ConfigError("data.label", data.label, hint)
    at_least("task.semantic_classes", task.semantic_classes, 0)
    if not re.fullmatch(_MAP, task.semantic_label) or task.semantic_label == data.image:
        hint = "must be a member with a label map, such as seg.png, and not the image"
        raise ConfigError("task.semantic_label", task.semantic_label, hint)
    if task.semantic_classes and task.detector != HTC:
        hint = f"the semantic branch is a part of task.detector=htc, and this is {task.detector}; set it to 0"
        raise ConfigError("task.semantic_classes", task.semantic_classes, hint)
    if task.semantic_classes > 255:
        hint = "must be at most 255, because label maps of 8 bits have 255 for pixels without a class"
        raise ConfigError("task.semantic_classes", task.semantic_classes, hint)


def _check_detector(task: DetectionConfig) -> None:
    for key in ("detector", "box_head", "head_norm", "box_loss", "scaling"):
        check_choice(f"task.{key}", getattr(task, key))
    for key in ("channels", "box_hidden", "mask_channels"):
        at_least(f"task.{key}", getattr(task, key), 1)
    _above_zero("box_weight", task.box_weight)
    if task.semantic_classes:
        _above_zero("semantic_weight", task.semantic_weight)


def _check_samples(task: DetectionConfig) -> None:
    for key in ("rpn_samples", "roi_samples", "proposals", "max_objects"):
        at_least(f"task.{key}", getattr(task, key), 1)
    if not 1 <= len(task.stage_ious) <= MOST_STAGES or not all(0 < iou < 1 for iou in task.stage_ious):
        fix = f"must be 1 to {MOST_STAGES} numbers between 0 and 1, such as [0.5,0.6,0.7]"
        raise ConfigError("task.stage_ious", task.stage_ious, fix)
    if len(task.stage_weights) < task.stages or not all(0 < weight < math.inf for weight in task.stage_weights):
        fix = f"must be {task.stages} numbers above 0, one for each stage of task.stage_ious"
        raise ConfigError("task.stage_weights", task.stage_weights, fix)


def _check_anchors(task: DetectionConfig, config: Config) -> None:
    _above_zero("anchor_scale", task.anchor_scale)
    if not task.anchor_ratios or not all(0 < ratio < math.inf for ratio in task.anchor_ratios):
        raise ConfigError("task.anchor_ratios", task.anchor_ratios, "must be numbers above 0, such as [0.5,1.0,2.0]")
    height, width = resolution(config)
    side = task.anchor_scale * config.model.patch_size
    fits = any(side * ratio**0.5 < height and side / ratio**0.5 < width for ratio in task.anchor_ratios)
    if not fits and not task.outside_anchors:
        fix = (
            f"the smallest anchors have sides of {side:g} pixels, and none of them fits in data.resolution="
            f"{height}x{width}; set task.outside_anchors=true or a smaller task.anchor_scale"
        )
        raise ConfigError("task.anchor_scale", task.anchor_scale, fix)


def _check_augmentation(task: DetectionConfig, data: DataConfig) -> None:
    if len(task.scale) != 2 or not 0 < task.scale[0] <= task.scale[1] < math.inf:
        raise ConfigError(
            "task.scale", task.scale, "must be a pair [low, high] of factors above 0, low first, such as [0.1,2.0]"
        )
    for key, example in (("short_sides", "[480,512,544]"), ("crop_short_sides", "[400,500,600]")):
        sides = getattr(task, key)
        if not sides or not all(side >= 1 for side in sides):
            raise ConfigError(f"task.{key}", sides, f"must be sides in pixels, such as {example}")
    if task.scaling == SHORT and task.long_side < max(task.short_sides):
        fix = f"must be at least the largest of task.short_sides, {max(task.short_sides)}"
        raise ConfigError("task.long_side", task.long_side, fix)
    crop = task.crop_sides
    if crop and not (len(crop) == 2 and 1 <= crop[0] <= crop[1]):
        raise ConfigError(
            "task.crop_sides", crop, "must be a pair [low, high] of pixels, low first, such as [384,600], or []"
        )
    if not 0 <= task.copy_paste <= 1:
        fix = f"must be a fraction of the images, from 0 to 1{percent(task.copy_paste)}"
        raise ConfigError("task.copy_paste", task.copy_paste, fix)
    if task.copy_paste and task.masks is False:
        hint = "pastes objects by their masks, and task.masks=false has none; set it to 0"
        raise ConfigError("task.copy_paste", task.copy_paste, hint)
    if data.augment.transform is not None:
        hint = "makes an image whose geometry the boxes cannot follow: set data.augment.transform=null"
        raise ConfigError("data.augment.transform", data.augment.transform, hint)


def _check_pairs(task: DetectionConfig, global_batch: int) -> None:
    if task.copy_paste and global_batch % 2:
        fix = f"must be even, because task.copy_paste pairs the samples of a step; use {global_batch + 1}"
        raise ConfigError("optim.global_batch", global_batch, fix)


def _above_zero(key: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise ConfigError(f"task.{key}", value, "must be a number above 0")
