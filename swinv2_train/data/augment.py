"""Crops, flips, erasing, and normalization of images. All randomness comes from the generator that is passed in."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from swinv2_train.config.schema import AugmentConfig
from swinv2_train.data.geometry import draw_crop, fixed_crop
from swinv2_train.data.sample import Sample


def train_image(sample: Sample, size: tuple[int, int], config: AugmentConfig, rng: np.random.Generator) -> Tensor:
    """Return a random resized and flipped crop of a sample's image, (C, *size), decoding no more than it needs.

    Raises BrokenSample.
    """
    part, crop = sample.part(sample.aligned(draw_crop(sample.size, size, config, rng)))
    return crop.image(part, config.interpolation)


def eval_crop(image: Tensor, size: tuple[int, int], crop_pct: float, crop_mode: str, interpolation: str) -> Tensor:
    """Return the input of an evaluation, (C, H, W) -> (C, *size), same dtype; see `geometry.fixed_crop`.

    Raises:
        ConfigError: if `crop_mode` is neither center nor squash.
    """
    crop = fixed_crop((image.shape[-2], image.shape[-1]), size, crop_pct, crop_mode)
    return crop.image(image, interpolation)


_ERASED_AREA = (0.02, 1 / 3)
_ERASED_ASPECT = (0.3, 1 / 0.3)


def random_erase(
    image: Tensor, probability: float, mean: Sequence[float], std: Sequence[float], rng: np.random.Generator
) -> Tensor:
    """Put noise into a random rectangle, (C, H, W) -> (C, H, W) (arXiv 1708.04896, with the numbers of timm).

    The noise is normal, with the data's mean and deviation per channel, cut to the range of the dtype.
    """
    if rng.random() >= probability:
        return image
    channels, height, width = image.shape
    for _ in range(10):
        area = height * width * rng.uniform(*_ERASED_AREA)
        aspect = math.exp(rng.uniform(math.log(_ERASED_ASPECT[0]), math.log(_ERASED_ASPECT[1])))
        tall, wide = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < tall < height and 0 < wide < width:
            top, left = int(rng.integers(0, height - tall + 1)), int(rng.integers(0, width - wide + 1))
            largest = 255 if image.dtype == torch.uint8 else 65535
            noise = rng.standard_normal((channels, tall, wide), dtype=np.float32)
            noise = noise * np.array(std, np.float32)[:, None, None] + np.array(mean, np.float32)[:, None, None]
            erased = image.numpy().copy()  # numpy, because not every version of torch can write into uint16
            erased[:, top : top + tall, left : left + wide] = np.rint(np.clip(noise, 0, 1) * largest)
            return torch.from_numpy(erased)
    return image


def normalise(images: Tensor, mean: Sequence[float], std: Sequence[float], sizes: Tensor | None = None) -> Tensor:
    """(..., C, H, W) uint8 or uint16, on any device -> float32 with (x / largest value - mean) / std per channel.

    Args:
        sizes: (..., 2) height and width of images that are padded at the bottom and right. The padding becomes zero,
            the mean color: as a pixel value, zero would be black, about -2 after normalization.
    """
    largest = {torch.uint8: 255.0, torch.uint16: 65535.0}[images.dtype]
    shift, scale = _constants(tuple(mean), tuple(std), largest, images.device)
    normalised = images.to(torch.float32).sub_(shift).div_(scale)
    return normalised if sizes is None else normalised.masked_fill_(_padding(sizes, images), 0.0)


def _padding(sizes: Tensor, images: Tensor) -> Tensor:
    """(..., 1, H, W) bool: True outside the true size of an image. Made on the device, so that nothing waits for it."""
    height, width = images.shape[-2:]
    rows = torch.arange(height, device=images.device)[:, None]
    columns = torch.arange(width, device=images.device)
    sizes = sizes.to(images.device)[..., None, None, None]  # (..., 2, 1, 1, 1)
    return (rows >= sizes[..., 0, :, :, :]) | (columns >= sizes[..., 1, :, :, :])


@lru_cache(maxsize=32)
def _constants(
    mean: tuple[float, ...], std: tuple[float, ...], largest: float, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Made once per device: a new tensor in every step would be a copy to the device in every step."""
    shift, scale = torch.tensor([mean, std], dtype=torch.float32, device=device)[..., None, None] * largest
    return shift, scale
