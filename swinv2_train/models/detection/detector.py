"""Detectors: Mask R-CNN, Cascade Mask R-CNN, and HTC on a Swin Transformer V2.

Structure and constants follow Swin-Transformer-Object-Detection and mmdetection. Samples are drawn from the seed of an
image, and losses are divided by numbers of the config, so an image does not depend on its neighbors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from swinv2_train.config.errors import ConfigError
from swinv2_train.config.model import ModelConfig
from swinv2_train.config.tasks.detection import SEMANTIC, DetectionConfig
from swinv2_train.models.backbone import SwinTransformerV2
from swinv2_train.models.detection.global_attention import GlobalAttention
from swinv2_train.models.detection.pooler import BoxFeatures
from swinv2_train.models.detection.proposals import ProposalNetwork
from swinv2_train.models.detection.pyramid import BoxPyramid
from swinv2_train.models.detection.roi_heads import RoiHeads, Step
from swinv2_train.models.detection.sampling import branch_noise
from swinv2_train.models.detection.semantic import SemanticBranch
from swinv2_train.models.detection.structures import Targets, check_finite
from swinv2_train.models.drop_path import branch_scales
from swinv2_train.models.init import init_weights
from swinv2_train.models.layers import InputError, LayerNorm


class Detector(nn.Module):
    """Boxes, and masks unless `task.masks` is False, of the objects in images of any size.

    Stages 1 to 3 get a fresh LayerNorm, as in Swin's detection code; stage 4 has the final norm of the backbone.

    Args:
        resolution: see `SwinTransformerV2`.

    Raises:
        ConfigError: for a model that cannot be built.
    """

    NOT_IN_PROGRAMS = ("rpn", "semantic", "heads")
    """Parts that exported programs do not contain."""

    def __init__(
        self,
        config: ModelConfig,
        task: DetectionConfig,
        num_classes: int,
        resolution: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        if num_classes < 1:
            raise ConfigError("num_classes", num_classes, "must be at least 1")
        self.stride, self.drop_path = config.patch_size, config.drop_path
        self.backbone = SwinTransformerV2(config, resolution)
        dims = self.backbone.dims
        self.norms = nn.ModuleList(LayerNorm(dim) for dim in dims[:-1])
        self.global_attention = GlobalAttention(dims[-1], config.num_heads[-1]) if task.global_attention else None
        self.pyramid = BoxPyramid(dims, task.channels)
        self.rpn = ProposalNetwork(task, self.stride)
        self.semantic = SemanticBranch(task, len(dims) + 1, 2 * self.stride) if task.semantic_classes else None
        self.heads = RoiHeads(task, num_classes)
        for part in (self.norms, self.global_attention, self.pyramid, self.rpn, self.semantic, self.heads):
            if part is not None:
                init_weights(part)

    def forward(
        self,
        images: Tensor,
        sizes: Tensor,
        targets: Sequence[Targets] | None = None,
        *,
        noise: Tensor | None = None,
        seeds: Tensor | None = None,
        semantic: Tensor | None = None,
    ) -> Any:
        """Return the loss in training, else the detections.

        Args:
            images: (B, in_channels, H, W), normalized, any size; zero beyond the size of an image.
            sizes: (B, 2) int64: height and width of each image on its canvas.
            targets: objects of each image. None: return detections.
            noise: as in the backbone.
            seeds: (B,) int64, one per sample, from which the samples of the loss and the stochastic depth of global
                attention are drawn; None draws them from torch's global generator.
            semantic: (B, H, W) class numbers for the semantic branch, 255 for none.

        Returns:
            With targets the terms of `DetectionConfig.terms` by name, each a scalar in at least float32, the sum over
            the images. Without targets a list of one `Detections` per image.

        Raises:
            InputError: if an argument does not fit the model or the images.
            FloatingPointError: without targets, if an output of any part is not finite: such boxes would vanish
                silently.
        """
        if len(sizes) != len(images) or (targets is not None and len(targets) != len(images)):
            raise InputError(f"{len(images)} images need as many sizes and targets")
        if targets is not None and seeds is None:
            seeds = torch.randint(1 << 62, (len(images),), device=images.device)
        levels = self.levels(images, noise=noise, seeds=seeds)
        embedding, logits = (None, None) if self.semantic is None else self.semantic(levels)
        features = BoxFeatures(levels[:-1], self.stride, embedding)
        found = self.rpn(levels)
        if targets is None:
            check_finite(found.logits, found.offsets)
        proposals = [boxes for boxes, _ in self.rpn.proposals(found, sizes)]
        if targets is None:
            return self.heads.detections(features, proposals, sizes)
        assert seeds is not None
        terms = self.rpn.losses(found, targets, sizes, seeds)
        step = Step(targets, sizes, seeds, (images.shape[2], images.shape[3]))
        terms |= self.heads.losses(features, proposals, step)
        if self.semantic is not None:
            if semantic is None:
                raise InputError("the model has a semantic branch, which needs label maps: pass semantic")
            terms[SEMANTIC] = self.semantic.loss(logits, semantic)
        return terms

    def levels(self, images: Tensor, *, noise: Tensor | None = None, seeds: Tensor | None = None) -> list[Tensor]:
        """Return the five levels of the feature pyramid, (B, channels, H_i, W_i); arguments as for `forward`."""
        maps = self.backbone(images, noise=noise)
        maps = [*(norm(x) for norm, x in zip(self.norms, maps, strict=False)), maps[-1]]
        if self.global_attention is not None:
            maps[-1] = self.global_attention(maps[-1], self._branches(maps[-1], seeds))
        return self.pyramid([x.permute(0, 3, 1, 2) for x in maps])

    def _branches(self, x: Tensor, seeds: Tensor | None) -> Tensor | None:
        """Return the factors of both branches of global attention, (B, 2), or None if none is dropped."""
        if not self.training or not self.drop_path:
            return None
        noise = torch.rand(len(x), 2, device=x.device) if seeds is None else branch_noise(seeds)
        return branch_scales(noise[:, None], [self.drop_path], x.dtype)[:, 0]
