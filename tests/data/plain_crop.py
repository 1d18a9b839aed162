"""The crops of training and evaluation in one piece, as they were before drawing and applying were separated."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from swinv2_train.config.schema import AugmentConfig


def train_crop(image: Tensor, size: tuple[int, int], config: AugmentConfig, rng: np.random.Generator) -> Tensor:
    top, left, height, width = _box(image.shape[-2], image.shape[-1], config, rng)
    image = resize(image[..., top : top + height, left : left + width], size, config.interpolation)
    horizontal, vertical = rng.random(2).tolist()
    dims = [-1] * (horizontal < config.hflip) + [-2] * (vertical < config.vflip)
    return torch.from_numpy(np.flip(image.numpy(), dims).copy())


def eval_crop(image: Tensor, size: tuple[int, int], crop_pct: float, crop_mode: str, interpolation: str) -> Tensor:
    if crop_mode == "squash":
        return resize(image, size, interpolation)
    height, width = image.shape[-2:]
    tall, wide = (int(side / crop_pct) for side in size)
    if tall * width >= wide * height:
        tall, wide = tall, width * tall // height
    else:
        tall, wide = height * wide // width, wide
    image = resize(image, (tall, wide), interpolation)
    top, left = round((tall - size[0]) / 2), round((wide - size[1]) / 2)
    return image[..., top : top + size[0], left : left + size[1]]


def resize(image: Tensor, size: tuple[int, int], interpolation: str) -> Tensor:
    mode = InterpolationMode(interpolation)
    if image.dtype != torch.uint16:
        return tv.resize(image, list(size), interpolation=mode, antialias=True)
    resized = tv.resize(image.to(torch.float32), list(size), interpolation=mode, antialias=True)
    return resized.round().clamp(0, 65535).to(torch.uint16)


def _box(height: int, width: int, config: AugmentConfig, rng: np.random.Generator) -> tuple[int, int, int, int]:
    scale, ratio = config.scale, config.ratio
    for _ in range(10):
        area = height * width * rng.uniform(scale[0], scale[1])
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        crop_width, crop_height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            top = int(rng.integers(0, height - crop_height + 1))
            left = int(rng.integers(0, width - crop_width + 1))
            return top, left, crop_height, crop_width
    crop_height, crop_width = height, width
    if width / height < ratio[0]:
        crop_height = round(width / ratio[0])
    elif width / height > ratio[1]:
        crop_width = round(height * ratio[1])
    return (height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width
