"""Semantic segmentation: backbone, a norm per stage, decoder, and an auxiliary decoder for training."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from swinv2_train.config.errors import ConfigError
from swinv2_train.config.model import ModelConfig
from swinv2_train.config.tasks.segmentation import SegmentationConfig
from swinv2_train.models.backbone import SwinTransformerV2
from swinv2_train.models.channel_dropout import channel_factors
from swinv2_train.models.decoders import Auxiliary, build_decoder
from swinv2_train.models.init import init_weights
from swinv2_train.models.layers import InputError, LayerNorm
from swinv2_train.models.resizing import enlarge_logits

_AUXILIARY_STAGE = 2
"""Index of the stage that the auxiliary decoder reads (mmsegmentation)."""


class Segmenter(nn.Module):
    """Scores of every class for every pixel, of images of any size.

    Stages 1 to 3 get a fresh LayerNorm, as in Swin's segmentation code; stage 4 has the final norm of the backbone.

    Args:
        resolution: see `SwinTransformerV2`.

    Raises:
        ConfigError: for a model that cannot be built.
    """

    NOT_IN_PROGRAMS: ClassVar = ("auxiliary",)
    """Parts that inference does not need; exported programs leave them out."""

    def __init__(
        self,
        config: ModelConfig,
        task: SegmentationConfig,
        num_classes: int,
        resolution: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        if num_classes < 1:
            raise ConfigError("num_classes", num_classes, "must be at least 1")
        self.stride = config.patch_size
        self.dropout = task.dropout
        self.backbone = SwinTransformerV2(config, resolution)
        dims = self.backbone.dims
        self.norms = nn.ModuleList(LayerNorm(dim) for dim in dims[:-1])
        self.decoder = build_decoder(task, dims, num_classes)
        self.auxiliary = Auxiliary(task, dims[_AUXILIARY_STAGE], num_classes) if task.auxiliary_weight > 0 else None
        for part in (self.norms, self.decoder, self.auxiliary):
            if part is not None:
                init_weights(part)

    @property
    def dropout_channels(self) -> int:
        """Channels whose dropout is drawn for a sample: those of the decoder, then those of the auxiliary decoder."""
        if not self.dropout:
            return 0
        return self.decoder.dropped + (self.auxiliary.dropped if self.auxiliary is not None else 0)

    def forward(
        self, images: Tensor, noise: Tensor | None = None, dropout: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Return logits per patch, and in training those of the auxiliary decoder.

        Args:
            images: (B, in_channels, H, W), normalized, any size.
            noise: as in the backbone.
            dropout: (B, dropout_channels) uniform numbers in [0, 1) that decide which channels are dropped in training
                (see `channel_noise`); None draws them from torch's global generator. Not used in eval mode.

        Returns:
            (B, K, ceil(H / p), ceil(W / p)); and (B, K, ceil(H / 4p), ceil(W / 4p)), or None in eval mode and without
            an auxiliary decoder. `enlarge_logits` resizes them to the images, with strides p and 4p.

        Raises:
            InputError: if an argument does not fit the model or the images.
        """
        features = self.backbone(images, noise=noise)
        normed = [*(norm(x) for norm, x in zip(self.norms, features, strict=False)), features[-1]]
        maps = [x.permute(0, 3, 1, 2) for x in normed]
        factors, auxiliary_factors = self._factors(images, dropout)
        logits = self.decoder(maps, factors)
        if self.auxiliary is None or not self.training:
            return logits, None
        return logits, self.auxiliary(maps[_AUXILIARY_STAGE], auxiliary_factors)

    def scores(self, images: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> logits (B, K, H, W) at the size of the images. Call this in eval mode."""
        return enlarge_logits(self(images)[0], (images.shape[2], images.shape[3]), self.stride)

    def _factors(self, images: Tensor, dropout: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """Return the factors of the channels before both classifiers, or None twice if nothing is dropped."""
        if not self.training or not self.dropout:
            return None, None
        shape = (images.shape[0], self.dropout_channels)
        if dropout is None:
            dropout = torch.rand(shape, device=images.device)
        if dropout.shape != shape:
            raise InputError(f"dropout of shape {tuple(dropout.shape)}: the model needs {shape} for this batch")
        factors = channel_factors(dropout, self.dropout)
        return factors[:, : self.decoder.dropped], factors[:, self.decoder.dropped :]
