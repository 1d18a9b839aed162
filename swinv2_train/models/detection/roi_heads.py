"""Heads of all stages: samples and losses of a training step, and detections."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import generalized_box_iou_loss

from swinv2_train.config.tasks.detection import HTC, DetectionConfig
from swinv2_train.config.tasks.detection_head import POSITIVE_SHARE
from swinv2_train.models.detection.box_heads import BoxHead, chosen
from swinv2_train.models.detection.boxes import areas, clip, decode, encode
from swinv2_train.models.detection.mask_heads import MaskHeads, mask_targets
from swinv2_train.models.detection.matching import match, without_crowd
from swinv2_train.models.detection.pooler import BoxFeatures
from swinv2_train.models.detection.proposals import DRAW
from swinv2_train.models.detection.sampling import candidate_noise, sample
from swinv2_train.models.detection.structures import Detections, Targets, check_finite
from swinv2_train.models.detection.suppression import decreasing, soften, suppress
from swinv2_train.models.layers import InputError

DEVIATIONS = ((0.1, 0.1, 0.2, 0.2), (0.05, 0.05, 0.1, 0.1), (0.033, 0.033, 0.067, 0.067))
"""Standard deviations of the offsets, by stage."""


@dataclass
class Samples:
    """Boxes of an image that a stage trains on, those with an object first."""

    boxes: Tensor
    """(S, 4)."""
    classes: Tensor
    """(S,) int64; K for the background."""
    objects: Tensor
    """(P,) int64: indices of the objects of the first P boxes."""
    goals: Tensor
    """(P, 4): boxes of these objects."""
    is_truth: Tensor
    """(S,) bool: True for boxes that are an object's own."""


@dataclass
class Step:
    """Inputs of the losses of a micro-batch."""

    targets: Sequence[Targets]
    sizes: Tensor
    """(B, 2): height and width of the images."""
    seeds: Tensor
    """(B,) int64, of the samples."""
    canvas: tuple[int, int]


class RoiHeads(nn.Module):
    """Box heads, and mask heads if there are masks, one of each per stage."""

    def __init__(self, task: DetectionConfig, num_classes: int) -> None:
        super().__init__()
        self.task, self.num_classes = task, num_classes
        self.box_heads = nn.ModuleList(BoxHead(task, num_classes) for _ in range(task.stages))
        self.mask_heads = MaskHeads(task, num_classes) if task.with_masks else None

    def losses(self, features: BoxFeatures, proposals: Sequence[Tensor], step: Step) -> dict[str, Tensor]:
        """Return the terms of all stages, summed over the images.

        Each stage starts from the boxes of the one before. In HTC, masks train on the boxes of their own stage.

        Args:
            proposals: (P_i, 4) of each image.
        """
        terms: dict[str, Tensor] = {}
        boxes: Sequence[Tensor] = proposals
        interleaved = self.task.detector == HTC and self.mask_heads is not None
        for stage in range(self.task.stages):
            number = stage + 1
            samples = self._samples(boxes, step, stage, draw=DRAW + 1 + 2 * stage)
            logits, offsets = self._predict(features, [each.boxes for each in samples], stage)
            terms[f"class_{number}"], terms[f"box_{number}"] = self._box_losses(logits, offsets, samples, stage)
            if interleaved or number < self.task.stages:
                boxes = self._refined(logits, offsets, samples, step.sizes, stage)
            if self.mask_heads is not None:
                if interleaved:
                    samples = self._samples(boxes, step, stage, draw=DRAW + 2 + 2 * stage)
                terms[f"mask_{number}"] = self._mask_loss(self.mask_heads, features, samples, step, stage)
        return terms

    def detections(self, features: BoxFeatures, proposals: Sequence[Tensor], sizes: Tensor) -> list[Detections]:
        """Return the detections of each image: boxes of the last stage with the mean logits of all stages.

        Raises:
            FloatingPointError: if an output of any stage is not finite.
        """
        boxes = list(proposals)
        logits, offsets = self._predict(features, boxes, 0)
        check_finite(logits, offsets)
        total = logits
        for stage in range(1, self.task.stages):
            best = logits[:, : self.num_classes].argmax(dim=1)
            boxes = _moved(boxes, chosen(offsets, best), sizes, stage - 1)
            logits, offsets = self._predict(features, boxes, stage)
            check_finite(logits, offsets)
            total = total + logits
        scores = (total / self.task.stages).softmax(dim=1)[:, : self.num_classes]
        counts = [len(each) for each in boxes]
        found = [
            self._select(*parts)
            for parts in zip(boxes, scores.split(counts), offsets.split(counts), sizes, strict=True)
        ]
        if self.mask_heads is not None:
            self._add_masks(self.mask_heads, features, found)
        return found

    def _predict(self, features: BoxFeatures, boxes: Sequence[Tensor], stage: int) -> tuple[Tensor, Tensor]:
        """Return logits and offsets of the boxes of all images. The head runs even if there are none."""
        logits, offsets = self.box_heads[stage](features.of_boxes(boxes))
        count = sum(map(len, boxes))
        return logits[:count], offsets[:count]

    def _samples(self, boxes: Sequence[Tensor], step: Step, stage: int, draw: int) -> list[Samples]:
        """Choose the boxes that a stage trains on, among those given and the objects' own."""
        task, result = self.task, []
        for own, target, seed in zip(boxes, step.targets, step.seeds, strict=True):
            truths = (areas(target.boxes) > 0).nonzero().flatten()
            candidates = torch.cat([target.boxes[truths].to(own.dtype), own])
            threshold = task.stage_ious[stage]
            matched = match(candidates, target.boxes, threshold, threshold)
            matched[: len(truths)] = truths
            if task.ignore_crowd:
                matched = without_crowd(matched, candidates, target.crowd)
            noise = candidate_noise(seed, draw, len(candidates))
            positives, negatives = sample(matched, noise, task.roi_samples, 1 / POSITIVE_SHARE)
            order, objects = torch.cat([positives, negatives]), matched[positives]
            background = torch.full_like(negatives, self.num_classes)
            classes = torch.cat([target.classes[objects], background])
            goals = target.boxes[objects]
            result.append(Samples(candidates[order], classes, objects, goals, order < len(truths)))
        return result

    def _box_losses(
        self, logits: Tensor, offsets: Tensor, samples: Sequence[Samples], stage: int
    ) -> tuple[Tensor, Tensor]:
        """Return the terms of class and box. Both are divided by the configured number of samples of an image."""
        task, classes = self.task, torch.cat([each.classes for each in samples])
        scored = F.cross_entropy(logits, classes, reduction="sum")
        places = (classes < self.num_classes).nonzero().flatten()
        boxes, goals = torch.cat([each.boxes for each in samples])[places], torch.cat([each.goals for each in samples])
        moves = chosen(offsets[places], classes[places])
        if task.box_loss == "giou":
            moved = decode(boxes, moves, DEVIATIONS[stage])
            missed = generalized_box_iou_loss(moved, goals.to(moved.dtype), reduction="sum")
        else:
            wanted = encode(boxes, goals, DEVIATIONS[stage])
            missed = F.smooth_l1_loss(moves, wanted.to(moves.dtype), reduction="sum")
        return scored / task.roi_samples, missed / task.roi_samples

    @torch.no_grad()
    def _refined(
        self, logits: Tensor, offsets: Tensor, samples: Sequence[Samples], sizes: Tensor, stage: int
    ) -> list[Tensor]:
        """Return the boxes that the next stage starts from: moved by their own class, or for the background by the best
        one; without the objects' own."""
        classes = torch.cat([each.classes for each in samples])
        best = torch.where(classes < self.num_classes, classes, logits[:, : self.num_classes].argmax(dim=1))
        moved = _moved([each.boxes for each in samples], chosen(offsets, best), sizes, stage)
        return [boxes[~each.is_truth] for boxes, each in zip(moved, samples, strict=True)]

    def _mask_loss(
        self, heads: MaskHeads, features: BoxFeatures, samples: Sequence[Samples], step: Step, stage: int
    ) -> Tensor:
        """Return the cross-entropy of the masks, of each image the mean over its boxes with an object."""
        boxes, classes, wanted, weights = [], [], [], []
        for each, target in zip(samples, step.targets, strict=True):
            if target.masks is None and len(target.boxes):
                raise InputError("an image has objects without masks, and the model predicts masks")
            own, objects = each.boxes[: len(each.objects)], each.objects
            if target.masks is not None:
                places = target.masks.present[objects].nonzero().flatten()
                own, objects = own[places], objects[places]
                wanted.append(mask_targets(target.masks, objects, own, step.canvas))
            boxes.append(own)
            classes.append(target.classes[objects])
            weights.append(torch.full_like(own[:, 0], 1 / max(1, len(own))))
        every = torch.cat(classes)
        # The heads also run without boxes, so that all ranks have the same graph.
        logits = heads.of_stage(features.of_masks(boxes), stage, every if len(every) else every.new_zeros(1))
        if not len(every):
            return logits[:0].sum()
        each_loss = F.binary_cross_entropy_with_logits(logits, torch.cat(wanted).to(logits.dtype), reduction="none")
        return (each_loss.mean(dim=(1, 2)) * torch.cat(weights)).sum()

    def _select(self, boxes: Tensor, scores: Tensor, offsets: Tensor, size: Tensor) -> Detections:
        """Choose the detections of an image by their scores, after suppression within each class.

        Soft-NMS of one of several views only chooses: the scores are lowered once, when all views are together.

        Args:
            boxes: (P, 4), which `offsets` (P, K or 1, 4) move.
            scores: (P, K).
        """
        task = self.task
        place, classes = (scores >= task.view_threshold).nonzero(as_tuple=True)
        score = scores[place, classes]
        order = decreasing(score)
        place, classes, score = place[order], classes[order], score[order]
        found = clip(decode(boxes[place], chosen(offsets[place], classes), DEVIATIONS[task.stages - 1]), size)
        visible = areas(found) > 0
        found, classes, score = found[visible], classes[visible], score[visible]
        if task.soft_nms:
            kept, softened = soften(found, score, classes, task.nms)
            kept, softened = kept[: task.max_detections], softened[: task.max_detections]
            if task.several_views:
                kept = kept.sort().values  # the candidates are in the order of their scores
            else:
                score = score.index_copy(0, kept, softened)
        else:
            kept = suppress(found, classes, task.nms)[: task.max_detections]
        return Detections(found[kept], score[kept], classes[kept])

    def _add_masks(self, heads: MaskHeads, features: BoxFeatures, found: Sequence[Detections]) -> None:
        classes = torch.cat([each.classes for each in found])
        count = len(classes)
        x = features.of_masks([each.boxes for each in found])
        masks = heads.probabilities(x, classes if count else classes.new_zeros(1))[:count]
        check_finite(masks)
        for each, part in zip(found, masks.split([len(each.classes) for each in found]), strict=True):
            each.masks = part


def _moved(boxes: Sequence[Tensor], offsets: Tensor, sizes: Tensor, stage: int) -> list[Tensor]:
    """Move the boxes (N_i, 4) of each image by the offsets (sum of N_i, 4) of a stage, and clip them to the image.

    Offsets that are not finite make boxes without area: the loss of the stage reports them.
    """
    moved = decode(torch.cat(list(boxes)), offsets, DEVIATIONS[stage]).split([len(each) for each in boxes])
    return [clip(each.nan_to_num(0.0), size) for each, size in zip(moved, sizes, strict=True)]
