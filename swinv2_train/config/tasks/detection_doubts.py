"""Warnings about settings of detection that can be run but were probably not intended."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from swinv2_train.config.checks import resolution
from swinv2_train.config.tasks.entire_images import without_effect

if TYPE_CHECKING:
    from swinv2_train.config.schema import Config
    from swinv2_train.config.tasks.detection import DetectionConfig

JITTER, SHORT = "jitter", "short"
"""Values of `DetectionConfig.scaling`."""
_FAR_ABOVE = 10


def doubts_of_data(task: DetectionConfig, facts: Any) -> list[str]:
    """Return a warning for every setting that does not fit the objects of the training data.

    Args:
        facts: `data.card_objects.ObjectFacts` of the training data.
    """
    if facts.nothing:
        return [f"data.shards: {facts.nothing}"]
    lines = []
    if facts.largest > task.max_objects:
        image = "an image" if facts.largest_image is None else f"the image {facts.largest_image}"
        lines.append(
            f"task.max_objects={task.max_objects}: {image} of data.shards has {facts.largest:,} objects; of such "
            "images, the largest objects are used"
        )
    if task.masks and not facts.all_masks:
        lines.append(
            f"task.masks=true: {facts.masks:,} of the {facts.total:,} objects of data.shards have a mask; the others "
            "train only boxes, and held-out images with such objects are skipped"
        )
    return lines


def doubts_of(task: DetectionConfig, config: Config) -> list[str]:
    """Return a warning for every setting that was probably not intended."""
    usual = {"giou": 10.0, "smooth_l1": 1.0}[task.box_loss]
    lines = without_effect(config.data, "detection", "scaling")
    unused = ("scale",) if task.scaling == SHORT else ("short_sides", "long_side", "crop_sides")
    default = type(task)()
    lines += [
        f"task.{key}={getattr(task, key)} has no effect with task.scaling={task.scaling}"
        for key in unused
        if getattr(task, key) != getattr(default, key)
    ]
    if not usual / _FAR_ABOVE < task.box_weight < usual * _FAR_ABOVE:
        lines.append(f"task.box_weight={task.box_weight:g} is far from the usual {usual:g} of {task.box_loss}")
    if task.semantic_classes and task.semantic_weight > 0.2 * _FAR_ABOVE:
        lines.append(f"task.semantic_weight={task.semantic_weight:g} is far above what is usual, 0.2")
    stages = task.stage_ious[: task.stages]
    if stages != sorted(stages):
        lines.append(f"task.stage_ious={stages} do not increase, although the boxes get better from stage to stage")
    size, short = resolution(config), max(task.short_sides)
    if task.scaling == SHORT and size[0] * size[1] < short * task.long_side / 2:
        lines.append(
            f"data.resolution={size[0]}x{size[1]}: memory and FLOPs are computed for this size, and images of "
            f"task.scaling=short have up to {short}x{task.long_side} pixels; set data.resolution=[{short},"
            f"{task.long_side}]"
        )
    if config.engine.compile and (task.scaling == SHORT or config.data.eval_shards):
        lines.append(
            "engine.compile=true compiles the blocks again for every size of image, for minutes each; images of "
            + ("a training" if task.scaling == SHORT else "an evaluation")
            + " have many sizes"
        )
    return lines
