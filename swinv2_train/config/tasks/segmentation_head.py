"""Sizes of the decoders of segmentation by formula: parameters, multiply-accumulates, and bytes saved for backward.

They follow `models/segmenter.py` and the loss; tests compare them with both.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from swinv2_train.config.model import StageGeometry
from swinv2_train.config.tasks.convolution import Convolution

if TYPE_CHECKING:
    from swinv2_train.config.tasks.segmentation import SegmentationConfig

STRIP_BYTES = 64 << 20
"""Bytes of the enlarged logits that the loss computes at a time."""


def head_parameters(stages: list[StageGeometry], task: SegmentationConfig) -> int:
    """Return the parameters of what a segmenter has in addition to the backbone.

    LayerNorms on stages 1 to 3, the decoder, and the auxiliary decoder. While the number of classes is unknown, the
    classifiers have none.
    """
    norms = 2 * sum(stage.dim for stage in stages[:-1])
    return norms + sum(each.parameters for each in _convolutions(stages, task))


def head_macs(stages: list[StageGeometry], task: SegmentationConfig) -> int:
    """Return the multiply-accumulates of the same, for one image. Resizing does not count."""
    norms = sum(_positions(stage) * stage.dim for stage in stages[:-1])
    return norms + sum(each.macs for each in _convolutions(stages, task))


def head_bytes(stages: list[StageGeometry], task: SegmentationConfig, element: int) -> int:
    """Return the bytes that they and the loss save for backward, for one image, without the label map.

    The loss saves the logits as the classifiers compute them, because it enlarges them again in backward.

    Args:
        element: bytes of an element of the activations.
    """
    norms = sum(_positions(stage) * (element * stage.dim + 8) for stage in stages[:-1])
    logits = _positions(stages[0]) + (_positions(stages[2]) if task.auxiliary_weight else 0)
    convolutions = sum(each.saved(element) for each in _convolutions(stages, task))
    return norms + convolutions + element * task.num_classes * logits


def _convolutions(stages: list[StageGeometry], task: SegmentationConfig) -> list[Convolution]:
    channels, classes = task.channels, task.num_classes
    large, last, third = _positions(stages[0]), _positions(stages[3]), _positions(stages[2])
    kept = not task.dropout  # with dropout, a classifier has an input of its own
    found = []
    if task.auxiliary_weight:
        width = task.auxiliary_channels
        read = task.decoder != "linear" or kept
        found.append(Convolution(third, stages[2].dim, width, 3, normed=True, shared=read))
        found.append(Convolution(third, width, classes, biased=True, shared=kept))
    if task.decoder == "linear":
        # One layer on the joined maps, which is applied to each of them.
        parts = [Convolution(_positions(stage), stage.dim, classes) for stage in stages]
        return [*found, *parts[:-1], Convolution(last, stages[3].dim, classes, biased=True)]
    for stage in stages[:-1]:
        found.append(Convolution(_positions(stage), stage.dim, channels, normed=True))
        found.append(Convolution(_positions(stage), channels, channels, 3, normed=True))
    if task.decoder == "fpn":
        found.append(Convolution(last, stages[3].dim, channels, normed=True))
        return [*found, Convolution(large, channels, classes, biased=True)]
    for side in task.pool_sizes:
        found.append(Convolution(side**2, stages[3].dim, channels, normed=True))
    joined = stages[3].dim + len(task.pool_sizes) * channels
    found.append(Convolution(last, joined, channels, 3, normed=True))
    found.append(Convolution(large, len(stages) * channels, channels, 3, normed=True))
    return [*found, Convolution(large, channels, classes, biased=True, shared=kept)]


def _positions(stage: StageGeometry) -> int:
    return stage.height * stage.width
