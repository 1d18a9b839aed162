"""Models with a head: image classification and masked image modeling."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from swinv2_train.config.errors import ConfigError
from swinv2_train.config.model import ModelConfig, total_stride
from swinv2_train.models.backbone import SwinTransformerV2, backbone_of
from swinv2_train.models.init import draw_normal, init_weights


def mean_of_tokens(features: Tensor) -> Tensor:
    """(B, H, W, C) -> (B, C)."""
    return features.mean(dim=(1, 2))


def pooled_features(model: nn.Module, images: Tensor) -> Tensor:
    """Return the mean over the tokens of the last stage after the final norm: the input of a classifier's head.

    Nothing is masked. In training mode, stochastic depth draws its own noise; for features, call `model.eval()` first.

    Args:
        model: a backbone, or any model that contains one, wrapped or not.
        images: (B, in_channels, H, W), normalized.

    Returns:
        (B, 8C), in the dtype of the activations.

    Raises:
        InputError: if the images do not fit the model.
        ValueError: if the model does not contain exactly one backbone.
    """
    return mean_of_tokens(backbone_of(model)(images)[-1])


class ImageClassifier(nn.Module):
    """Backbone, mean over the tokens of the last stage, linear head.

    Args:
        resolution: see `SwinTransformerV2`.

    Raises:
        ConfigError: for a model that cannot be built.
    """

    def __init__(self, config: ModelConfig, num_classes: int, resolution: tuple[int, int] | None = None) -> None:
        super().__init__()
        if num_classes < 1:
            raise ConfigError("num_classes", num_classes, "must be at least 1")
        self.backbone = SwinTransformerV2(config, resolution)
        self.head = nn.Linear(self.backbone.dims[-1], num_classes)
        init_weights(self.head)

    def forward(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        """(B, in_channels, H, W) -> logits (B, num_classes); `noise` as in the backbone."""
        return self.head(mean_of_tokens(self.backbone(images, noise=noise)[-1]))


class MaskedImageModel(nn.Module):
    """SimMIM (arXiv 2111.09886, official code): masked tokens in, all pixels out, through one linear layer.

    Args:
        resolution: see `SwinTransformerV2`.

    Raises:
        ConfigError: for a model that cannot be built.
    """

    def __init__(self, config: ModelConfig, resolution: tuple[int, int] | None = None) -> None:
        super().__init__()
        stride = total_stride(config)
        self.mask_token = nn.Parameter(torch.empty(1, 1, config.embed_dim))
        if not self.mask_token.is_meta:  # to draw on the meta device, torch imports its compiler
            with torch.no_grad():
                self.init_parameters(None)
        self.encoder = SwinTransformerV2(config, resolution)
        self.decoder = nn.Sequential(
            nn.Conv2d(self.encoder.dims[-1], config.in_channels * stride**2, kernel_size=1),
            nn.PixelShuffle(stride),
        )

    def init_parameters(self, generator: torch.Generator | None) -> None:
        """Set the initial values, see `init_weights`."""
        draw_normal(self.mask_token, generator)

    def forward(self, images: Tensor, token_mask: Tensor, noise: Tensor | None = None) -> Tensor:
        """Reconstruct the images.

        Args:
            images: (B, in_channels, H, W), normalized.
            token_mask: (B, ceil(H / p), ceil(W / p)) bool, True if masked.
            noise: as in the backbone.

        Returns:
            (B, in_channels, H, W), cropped if the tokens of the last stage extend beyond the image.
        """
        features = self.encoder(images, mask_token=self.mask_token.flatten(), token_mask=token_mask, noise=noise)[-1]
        pixels = self.decoder(features.permute(0, 3, 1, 2))
        return pixels[:, :, : images.shape[2], : images.shape[3]]
