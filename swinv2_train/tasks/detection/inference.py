"""Detections in one image: of all views at several scales, mirrored or not, in pixels of the original."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from swinv2_train.config.tasks import DetectionConfig
from swinv2_train.models.detection import Detections
from swinv2_train.tasks.detection.merging import averaged, chosen, in_original, softened


@dataclass(frozen=True)
class Inference:
    """Settings for the detections in an image."""

    nms: float
    """Overlap (IoU) above which detections of a class are of one object."""
    soft_nms: bool = False
    most: int = 100
    flip: bool = False
    """Also look at the mirrored image, at every scale."""
    several: bool = False
    """The model returns the detections of one of several views, which are to be merged even if there is one."""
    threshold: float = 0.0
    """Lowest score of a merged detection."""

    @classmethod
    def of(cls, task: DetectionConfig) -> Inference:
        """Return the inference that a task section describes."""
        return cls(
            task.nms, task.soft_nms, task.max_detections, task.test_flip, task.several_views, task.score_threshold
        )


def detections(model: nn.Module, images: Sequence[Tensor], size: tuple[int, int], inference: Inference) -> Detections:
    """Return the detections in an image, in pixels of the original. Every view has a forward pass of its own.

    Args:
        images: the image at each size, (C, h, w) float32, normalized.

    Other arguments and errors as for `batch_detections`.
    """
    (found,) = batch_detections(model, [image[None] for image in images], size, inference)
    return found


@torch.no_grad()
def batch_detections(
    model: nn.Module, images: Sequence[Tensor], size: tuple[int, int], inference: Inference
) -> list[Detections]:
    """Return the detections in each of some images of the same size, in pixels of the originals.

    Those of several views are averaged, or with soft-NMS suppressed together.

    Args:
        model: a `Detector` in eval mode.
        images: the images at each size, (B, C, h, w) float32, normalized.
        size: height and width of the originals.

    Raises:
        FloatingPointError: if the outputs of the model are not finite.
    """
    views = []
    for batch in images:
        height, width = batch.shape[-2:]
        scale = (height / size[0], width / size[1])
        sides = torch.tensor([[height, width]] * len(batch), device=batch.device)
        for mirrored in (False, True) if inference.flip else (False,):
            found = model(batch.flip(-1) if mirrored else batch, sides)
            views.append([in_original(each, scale=scale, mirrored=width if mirrored else None) for each in found])
    return [_merged(each, inference) for each in zip(*views, strict=True)]


def _merged(views: Sequence[Detections], inference: Inference) -> Detections:
    """Return the detections of all views of an image."""
    if not inference.several:
        (found,) = views
        return found
    merge = softened if inference.soft_nms else averaged
    found = merge(views, inference.nms, most=inference.most)
    return chosen(found, found.scores >= inference.threshold)
