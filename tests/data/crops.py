"""Training crops of decoded images."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from swinv2_train.config.schema import AugmentConfig
from swinv2_train.data.geometry import draw_crop


def train_crop(image: Tensor, size: tuple[int, int], config: AugmentConfig, rng: np.random.Generator) -> Tensor:
    """Apply the crop of `train_image` to a decoded image: (C, H, W) -> (C, *size), same dtype."""
    return draw_crop((image.shape[-2], image.shape[-1]), size, config, rng).image(image, config.interpolation)
