"""Crops, flips, erasing, and normalization of images. All randomness comes from the generator that is passed in."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from swinv2_train.config import own_parts
from swinv2_train.config.schema import AugmentConfig
from swinv2_train.data.geometry import Crop, draw_crop, fixed_crop
from swinv2_train.data.pixels import largest_value
from swinv2_train.data.sample import Sample


def train_image(sample: Sample, size: tuple[int, int], config: AugmentConfig, rng: np.random.Generator) -> Tensor:
    """Return the training image of a sample, (C, *size): `random_crop`, or the user's own transform.

    It is uint8, uint16, or with `data.scale` float32 in [0, 1].

    Raises:
        BrokenSample: if the sample cannot be used.
        ValueError: if an own transform returns anything else.
    """
    if config.transform is None:
        return random_crop(sample, size, config, rng)
    image = own_parts.function_of(own_parts.parts("transforms")[config.transform])(sample, size, config, rng)
    dtypes = (torch.float32,) if sample.scaled else (torch.uint8, torch.uint16)
    if not isinstance(image, Tensor) or image.dtype not in dtypes or image.ndim != 3 or image.shape[1:] != size:
        found = f"{tuple(image.shape)} {image.dtype}" if isinstance(image, Tensor) else type(image).__name__
        kind = "float32" if sample.scaled else "uint8 or uint16"
        expected = f"a {kind} tensor (C, {size[0]}, {size[1]})"
        raise ValueError(f"data.augment.transform={config.transform} returned {found}, not {expected}")
    return image


def random_crop(sample: Sample, size: tuple[int, int], config: AugmentConfig, rng: np.random.Generator) -> Tensor:
    """Return a random resized and flipped crop of a sample's image, (C, *size), decoding no more than it needs.

    Raises BrokenSample.
    """
    return cropped(sample, sample.aligned(draw_crop(sample.size, size, config, rng)), config.interpolation)


def cropped(sample: Sample, crop: Crop, interpolation: str) -> Tensor:
    """Return a part of a sample's image, (C, *crop.size), decoding no more than it needs.

    Args:
        crop: drawn for `sample.size`, and `sample.aligned`.

    Raises:
        BrokenSample: if the image cannot be decoded.
    """
    part, crop = sample.part(crop)
    return in_range(crop.image(part, interpolation))


def eval_crop(image: Tensor, size: tuple[int, int], crop_pct: float, crop_mode: str, interpolation: str) -> Tensor:
    """Return the input of an evaluation, (C, H, W) -> (C, *size), same dtype; see `geometry.fixed_crop`.

    Raises:
        ConfigError: for an unknown `crop_mode`.
    """
    crop = fixed_crop((image.shape[-2], image.shape[-1]), size, crop_pct, crop_mode)
    return in_range(crop.image(image, interpolation))


def in_range(image: Tensor) -> Tensor:
    """Clip scaled values, which bicubic filters overshoot; integers are clipped where they are rounded."""
    return image.clamp_(0, 1) if image.is_floating_point() else image


_ERASED_AREA = (0.02, 1 / 3)
_ERASED_ASPECT = (0.3, 1 / 0.3)


def random_erase(
    image: Tensor, probability: float, mean: Sequence[float], std: Sequence[float], rng: np.random.Generator
) -> Tensor:
    """Put noise into a random rectangle, (C, ..., H, W) -> the same shape (arXiv 1708.04896, with the numbers of timm).

    The noise is normal, with the data's mean and deviation per channel, cut to the range of the dtype. All frames of a
    clip (C, T, H, W) get the same.
    """
    if rng.random() >= probability:
        return image
    channels, (height, width) = len(image), image.shape[-2:]
    for _ in range(10):
        area = height * width * rng.uniform(*_ERASED_AREA)
        aspect = math.exp(rng.uniform(math.log(_ERASED_ASPECT[0]), math.log(_ERASED_ASPECT[1])))
        tall, wide = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < tall < height and 0 < wide < width:
            top, left = int(rng.integers(0, height - tall + 1)), int(rng.integers(0, width - wide + 1))
            largest = largest_value(image)
            noise = rng.standard_normal((channels, tall, wide), dtype=np.float32)
            noise = noise * np.array(std, np.float32)[:, None, None] + np.array(mean, np.float32)[:, None, None]
            noise = np.clip(noise, 0, 1) * largest
            erased = image.numpy().copy()  # numpy, because not every version of torch can write into uint16
            noise = noise.reshape(channels, *[1] * (image.ndim - 3), tall, wide)
            erased[..., top : top + tall, left : left + wide] = noise if image.is_floating_point() else np.rint(noise)
            return torch.from_numpy(erased)
    return image


def normalise(images: Tensor, mean: Sequence[float], std: Sequence[float], sizes: Tensor | None = None) -> Tensor:
    """Return (x / largest value - mean) / std per channel: (..., C, H, W) on any device -> the same shape in float32.

    Args:
        images: uint8, uint16, or float32 in [0, 1].
        sizes: (..., 2) height and width of images that are padded at the bottom and right. The padding becomes zero,
            the mean color: as a pixel value, zero would be black, about -2 after normalization.
    """
    shift, scale = _constants(tuple(mean), tuple(std), largest_value(images), images.device)
    normalised = images.to(torch.float32, copy=True).sub_(shift).div_(scale)
    return normalised if sizes is None else normalised.masked_fill_(_padding(sizes, images), 0.0)


def normalise_clips(clips: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Return clips (..., C, T, H, W) normalized like images, with the same shape in float32."""
    return normalise(clips.transpose(-4, -3), mean, std).transpose(-4, -3)


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
