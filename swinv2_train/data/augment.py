"""Crops, flips, erasing, and normalization of images. All randomness comes from the generator that is passed in."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from swinv2_train.config import own_parts
from swinv2_train.config.checks import check_statistics
from swinv2_train.config.errors import ConfigError
from swinv2_train.config.schema import AugmentConfig, DataConfig
from swinv2_train.data.card import Card
from swinv2_train.data.geometry import draw_crop, fixed_crop
from swinv2_train.data.sample import Sample

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_DTYPES = (torch.uint8, torch.uint16)


def train_image(sample: Sample, size: tuple[int, int], config: AugmentConfig, rng: np.random.Generator) -> Tensor:
    """Return the training image of a sample, (C, *size) uint8 or uint16: `random_crop`, or the user's own transform.

    Raises:
        BrokenSample: if the sample cannot be used.
        ValueError: if an own transform returns anything else.
    """
    if config.transform is None:
        return random_crop(sample, size, config, rng)
    image = own_parts.function_of(own_parts.parts("transforms")[config.transform])(sample, size, config, rng)
    if not isinstance(image, Tensor) or image.dtype not in _DTYPES or image.ndim != 3 or image.shape[1:] != size:
        found = f"{tuple(image.shape)} {image.dtype}" if isinstance(image, Tensor) else type(image).__name__
        expected = f"a uint8 or uint16 tensor (C, {size[0]}, {size[1]})"
        raise ValueError(f"data.augment.transform={config.transform} returned {found}, not {expected}")
    return image


def random_crop(sample: Sample, size: tuple[int, int], config: AugmentConfig, rng: np.random.Generator) -> Tensor:
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


def resolve_statistics(config: DataConfig, card: Card | None, channels: int) -> tuple[list[float], list[float]]:
    """Per-channel mean and standard deviation for `normalise`.

    Raises ConfigError if `data.mean` or `data.std` does not match the channels, or if the card does not contain them.
    """
    mean = _resolve("data.mean", config.mean, IMAGENET_MEAN, 0, card, channels)
    std = _resolve("data.std", config.std, IMAGENET_STD, 1, card, channels)
    if min(std) <= 0:
        raise ConfigError("data.std", config.std, "a standard deviation must be above 0; is one channel constant?")
    check_statistics("data.mean", mean)
    check_statistics("data.std", std)
    return mean, std


def _resolve(
    key: str, value: object, imagenet: Sequence[float], which: int, card: Card | None, channels: int
) -> list[float]:
    if value == "imagenet":
        if channels != 3:
            raise ConfigError(
                key, value, f"ImageNet has 3 channels, not {channels}: use `dataset` or a list of {channels} numbers"
            )
        return list(imagenet)
    if value == "dataset":
        statistics = card.statistics(channels) if card is not None else None
        if statistics is None:
            why = "the shards have no dataset card" if card is None else f"the card knows no {channels}-channel images"
            raise ConfigError(key, value, f"{why}: pack them with swinv2-data, or set a list of {channels} numbers")
        return statistics[which]
    if isinstance(value, (list, tuple)) and all(isinstance(number, (int, float)) for number in value):
        if len(value) != channels:
            raise ConfigError(key, value, f"{len(value)} numbers for {channels} channels")
        return [float(number) for number in value]
    raise ConfigError(key, value, f"must be a list of {channels} numbers in [0, 1], `imagenet` or `dataset`")
