"""Models with a head, of images or of clips: classification and masked image modeling."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from swinv2_train.config.errors import ConfigError
from swinv2_train.config.model import ModelConfig, total_stride
from swinv2_train.models.backbone import SwinTransformerV2, backbone_of
from swinv2_train.models.channel_dropout import channel_factors
from swinv2_train.models.init import INITIAL_STD, draw_normal, init_weights
from swinv2_train.models.layers import InputError


def mean_of_tokens(features: Tensor) -> Tensor:
    """(B, *sides, C) -> (B, C)."""
    return features.mean(dim=tuple(range(1, features.ndim - 1)))


def pooled_features(model: nn.Module, images: Tensor) -> Tensor:
    """Return the mean over the tokens of the last stage after the final norm: the input of a classifier's head.

    Nothing is masked. In training mode, stochastic depth draws its own noise; for features, call `model.eval()` first.

    Args:
        model: a backbone, or any model that contains one, wrapped or not.
        images: (B, in_channels, H, W), or clips (B, in_channels, T, H, W), normalized.

    Returns:
        (B, 8C), in the dtype of the activations.

    Raises:
        InputError: if the images do not fit the model.
        ValueError: if the model does not contain exactly one backbone.
    """
    return mean_of_tokens(backbone_of(model)(images)[-1])


class LinearHead(nn.Linear):
    """Linear layer to the classes. Its weights start normal with standard deviation `std`, its bias at 0."""

    def __init__(self, dim: int, num_classes: int, std: float) -> None:
        super().__init__(dim, num_classes)
        self.std = std

    def init_parameters(self, generator: torch.Generator | None) -> None:
        """Set the initial values, see `init_weights`."""
        draw_normal(self.weight, generator, self.std)
        self.bias.zero_()


class ImageClassifier(nn.Module):
    """Backbone, mean over the tokens of the last stage, linear head: for images, or for clips (`temporal_patch`).

    Args:
        resolution: see `SwinTransformerV2`.
        dropout: rate at which channels of the mean are dropped in training.
        head_std: standard deviation of the initial weights of the head.

    Raises:
        ConfigError: for a model that cannot be built.
    """

    def __init__(
        self,
        config: ModelConfig,
        num_classes: int,
        resolution: tuple[int, int] | None = None,
        dropout: float = 0.0,
        head_std: float = INITIAL_STD,
    ) -> None:
        super().__init__()
        if num_classes < 1:
            raise ConfigError("num_classes", num_classes, "must be at least 1")
        self.dropout = dropout
        self.backbone = SwinTransformerV2(config, resolution)
        self.head = LinearHead(self.backbone.dims[-1], num_classes, head_std)
        init_weights(self.head)

    def forward(self, images: Tensor, noise: Tensor | None = None, dropout_noise: Tensor | None = None) -> Tensor:
        """Return the logits.

        Args:
            images: (B, in_channels, H, W), or clips (B, in_channels, T, H, W), normalized.
            noise: as in the backbone.
            dropout_noise: (B, 8C) uniform numbers in [0, 1) that decide which channels are dropped in training (see
                `channel_noise`); None draws them from torch's global generator. Not used in eval mode.

        Returns:
            (B, num_classes).

        Raises:
            InputError: if an argument does not fit the model or the images.
        """
        pooled = mean_of_tokens(self.backbone(images, noise=noise)[-1])
        if self.training and self.dropout:
            if dropout_noise is None:
                dropout_noise = torch.rand(pooled.shape, device=pooled.device)
            if dropout_noise.shape != pooled.shape:
                raise InputError(
                    f"dropout_noise of shape {tuple(dropout_noise.shape)}: the model needs {tuple(pooled.shape)} for "
                    "this batch"
                )
            pooled = (pooled * channel_factors(dropout_noise, self.dropout)).to(pooled.dtype)
        return self.head(pooled)


class MaskedImageModel(nn.Module):
    """SimMIM (arXiv 2111.09886, official code): masked tokens in, all pixels out, through one linear layer.

    Clips have the same mask at all times, a tube (arXiv 2203.12602). A token of the last stage predicts the pixels of
    its `temporal_patch` frames, frame by frame.

    Args:
        resolution: see `SwinTransformerV2`.

    Raises:
        ConfigError: for a model that cannot be built.
    """

    def __init__(self, config: ModelConfig, resolution: tuple[int, int] | None = None) -> None:
        super().__init__()
        stride, self.temporal_patch = total_stride(config), config.temporal_patch
        self.mask_token = nn.Parameter(torch.empty(1, 1, config.embed_dim))
        if not self.mask_token.is_meta:  # to draw on the meta device, torch imports its compiler
            with torch.no_grad():
                self.init_parameters(None)
        self.encoder = SwinTransformerV2(config, resolution)
        values = max(self.temporal_patch, 1) * config.in_channels * stride**2
        self.decoder = nn.Sequential(
            nn.Conv2d(self.encoder.dims[-1], values, kernel_size=1),
            nn.PixelShuffle(stride),
        )

    def init_parameters(self, generator: torch.Generator | None) -> None:
        """Set the initial values, see `init_weights`."""
        draw_normal(self.mask_token, generator)

    def forward(self, images: Tensor, token_mask: Tensor, noise: Tensor | None = None) -> Tensor:
        """Reconstruct the images.

        Args:
            images: (B, in_channels, H, W), or clips (B, in_channels, T, H, W), normalized.
            token_mask: (B, ceil(H / p), ceil(W / p)) bool, True if masked.
            noise: as in the backbone.

        Returns:
            The shape of the images, cropped if the tokens of the last stage extend beyond them.
        """
        features = self.encoder(images, mask_token=self.mask_token.flatten(), token_mask=token_mask, noise=noise)[-1]
        if not self.temporal_patch:
            pixels = self.decoder(features.permute(0, 3, 1, 2))
        else:
            batch, time = features.shape[:2]
            frames = self.decoder(features.flatten(0, 1).permute(0, 3, 1, 2))
            frames = frames.reshape(batch, time * self.temporal_patch, -1, *frames.shape[-2:])
            pixels = frames.transpose(1, 2)
        return pixels[..., : images.shape[-2], : images.shape[-1]]
