"""Sizes of the heads of detection by formula: parameters, multiply-accumulates, and bytes saved for backward.

They follow `models/detection/`, and count a training image with all its samples; tests compare them with the model.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from swinv2_train.config.model import StageGeometry
from swinv2_train.config.tasks.convolution import Convolution

if TYPE_CHECKING:
    from swinv2_train.config.tasks.detection import DetectionConfig

BOX_SIDE, MASK_SIDE = 7, 14
"""Sides of the features of a box head and of a mask head."""
CONVOLUTIONS = 4
"""Convolutions of a 4conv1fc head, a mask head, and the semantic branch."""
POSITIVE_SHARE = 4
"""One in this number of the samples of a stage is an object at most."""
_FP32 = 4


def head_parameters(stages: list[StageGeometry], task: DetectionConfig) -> int:
    """Return the parameters of what a detector has in addition to the backbone.

    LayerNorms on stages 1 to 3, global attention, feature pyramid, region proposals, and the heads of every stage.
    While the number of classes is unknown, the classifiers have only the background.
    """
    norms, last = 2 * sum(stage.dim for stage in stages[:-1]), stages[-1].dim
    attention = 12 * last**2 + 15 * last if task.global_attention else 0
    layers = [*_pyramid(stages, task), *_semantic(stages, task)]
    # The levels and samples share their layers, so the layers of one of each count.
    layers += [*_proposal_layers(1, task)]
    for stage in range(task.stages):
        layers += [*_box_layers(1, task), *_mask_layers(1, task, stage, with_former=False)]
    norms += task.stages * task.mask_channels if task.with_masks else 0  # the biases of the upsampling
    return norms + attention + sum(layer.parameters for layer in layers)


def head_macs(stages: list[StageGeometry], task: DetectionConfig) -> int:
    """Return the multiply-accumulates of the same, for one image. Pooling and resizing do not count."""
    found = sum(_positions(stage) * stage.dim for stage in stages[:-1])  # LayerNorms
    if task.global_attention:
        tokens, dim = _positions(stages[-1]), stages[-1].dim
        found += tokens * dim * (12 * dim + 2 * tokens + 3)  # with three LayerNorms
    return found + sum(layer.macs for layer in _layers(stages, task))


def head_bytes(stages: list[StageGeometry], task: DetectionConfig, element: int) -> int:
    """Return the bytes that they and the loss save for backward, for one image.

    Args:
        element: bytes of an element of the activations.
    """
    found = sum(_positions(stage) * (element * stage.dim + 8) for stage in stages[:-1])
    if task.global_attention:
        # Three LayerNorms, q, k, v, the input of each linear layer, and the hidden map before and after its GELU.
        found += _positions(stages[-1]) * (element * 17 * stages[-1].dim + 24)
    found += sum(layer.saved(element) for layer in _layers(stages, task))
    positives, scores = task.roi_samples // POSITIVE_SHARE, task.num_classes + 1
    for stage in range(task.stages):
        # The output of the last linear layer, and the logarithms of the scores.
        found += task.roi_samples * (element * task.box_hidden + _FP32 * scores)
        if task.with_masks:
            side = 2 * MASK_SIDE
            # The outputs of the last convolution and of the upsampling, logits and targets of one class.
            found += positives * (element * (side**2 + MASK_SIDE**2) * task.mask_channels + 2 * _FP32 * side**2)
            if task.detector == "htc":  # the outputs of the layers between heads
                found += positives * element * MASK_SIDE**2 * task.channels * stage
    if task.semantic_classes:
        levels = _levels(stages)
        # The outputs of the laterals, of the last convolution, and of the embedding; the logarithms of the scores.
        found += element * task.channels * (sum(levels) + 2 * levels[1]) + _FP32 * levels[1] * task.semantic_classes
    return found


def head_transient(stages: list[StageGeometry], task: DetectionConfig, element: int) -> int:
    """Return the bytes of the largest tensors that their backward creates at a time, for one image.

    These are the gradients of the pooled levels in fp32, and of the input and output of the widest layer of a head.
    """
    levels = _FP32 * task.channels * sum(_positions(stage) for stage in stages)
    widest = task.roi_samples * BOX_SIDE**2 * task.channels
    if task.with_masks:
        widest = max(widest, task.roi_samples // POSITIVE_SHARE * (2 * MASK_SIDE) ** 2 * task.mask_channels)
    return levels + 2 * element * widest


def _layers(stages: list[StageGeometry], task: DetectionConfig) -> Iterator[Convolution]:
    """Yield every application of a layer to one image in training."""
    yield from _pyramid(stages, task)
    for positions in _levels(stages):
        yield from _proposal_layers(positions, task)
    for stage in range(task.stages):
        yield from _box_layers(task.roi_samples, task)
        yield from _mask_layers(task.roi_samples // POSITIVE_SHARE, task, stage, with_former=True)
    yield from _semantic(stages, task)


def _pyramid(stages: list[StageGeometry], task: DetectionConfig) -> Iterator[Convolution]:
    for stage in stages:
        yield Convolution(_positions(stage), stage.dim, task.channels, biased=True)
        yield Convolution(_positions(stage), task.channels, task.channels, 3, biased=True)


def _proposal_layers(positions: int, task: DetectionConfig) -> Iterator[Convolution]:
    anchors = len(task.anchor_ratios)
    yield Convolution(positions, task.channels, task.channels, 3, biased=True)
    yield Convolution(positions, task.channels, anchors, biased=True)
    yield Convolution(positions, task.channels, 4 * anchors, biased=True, shared=True)


def _box_layers(samples: int, task: DetectionConfig) -> Iterator[Convolution]:
    cells, normed = BOX_SIDE**2, task.head_norm == "group"
    hidden = task.box_hidden
    if task.box_head == "4conv1fc":
        for number in range(CONVOLUTIONS):
            after = normed and number > 0  # the norm before has saved its input
            sizes = (samples * cells, task.channels, task.channels, 3)
            yield Convolution(*sizes, normed=normed, biased=not normed, shared=after)
        yield Convolution(samples, cells * task.channels, hidden, biased=True, shared=normed)
    else:
        yield Convolution(samples, cells * task.channels, hidden, biased=True)
        yield Convolution(samples, hidden, hidden, biased=True)
    boxes = 4 * (1 if task.class_agnostic else task.num_classes)
    for outputs in (task.num_classes, 1, boxes):
        yield Convolution(samples, hidden, outputs, biased=True, shared=True)


def _mask_layers(samples: int, task: DetectionConfig, stage: int, *, with_former: bool) -> Iterator[Convolution]:
    """Yield the layers of a mask head.

    Args:
        with_former: with the layers of the heads before it that it runs, those of htc.
    """
    if not task.with_masks:
        return
    cells, width, flows = MASK_SIDE**2, task.mask_channels, task.detector == "htc"
    for former in range(0 if flows and with_former else stage, stage + 1):
        if flows and former > 0:
            yield Convolution(samples * cells, width, task.channels, biased=True)
        for number in range(CONVOLUTIONS):
            inputs = width if number else task.channels
            yield Convolution(samples * cells, inputs, width, 3, biased=True)
    yield Convolution(samples * cells, width, 4 * width, shared=True)
    yield Convolution(4 * samples * cells, width, task.num_classes, biased=True, shared=True)


def _semantic(stages: list[StageGeometry], task: DetectionConfig) -> Iterator[Convolution]:
    if not task.semantic_classes:
        return
    levels = _levels(stages)
    for positions in levels:
        yield Convolution(positions, task.channels, task.channels, biased=True, shared=True)
    for _ in range(CONVOLUTIONS):
        yield Convolution(levels[1], task.channels, task.channels, 3, biased=True)
    yield Convolution(levels[1], task.channels, task.channels, biased=True, shared=True)
    yield Convolution(levels[1], task.channels, task.semantic_classes, biased=True, shared=True)


def _levels(stages: list[StageGeometry]) -> list[int]:
    """Return the positions of the levels of the feature pyramid."""
    last = stages[-1]
    return [*(_positions(stage) for stage in stages), -(-last.height // 2) * -(-last.width // 2)]


def _positions(stage: StageGeometry) -> int:
    return stage.height * stage.width
