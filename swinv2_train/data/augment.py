"""Crops, flips, erasing and normalisation. All randomness comes from the generator that is handed in."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from swinv2_train.config.checks import check_statistics
from swinv2_train.config.errors import ConfigError
from swinv2_train.config.schema import AugmentConfig, DataConfig
from swinv2_train.data.card import Card

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def train_crop(image: Tensor, size: tuple[int, int], config: AugmentConfig, rng: np.random.Generator) -> Tensor:
    """Random resized crop and flips: (C, H, W) -> (C, *size), same dtype."""
    image = random_resized_crop(image, size, config.scale, config.ratio, config.interpolation, rng)
    # Both numbers are always drawn, so that switching one flip off leaves the other as it was.
    horizontal, vertical = rng.random(2).tolist()
    return _flip(image, horizontal < config.hflip, vertical < config.vflip)


def random_resized_crop(
    image: Tensor,
    size: tuple[int, int],
    scale: Sequence[float],
    ratio: Sequence[float],
    interpolation: str,
    rng: np.random.Generator,
) -> Tensor:
    """A random part of the image, resized: (C, H, W) -> (C, *size)."""
    top, left, height, width = random_crop_box(image.shape[-2], image.shape[-1], scale, ratio, rng)
    return resize(image[..., top : top + height, left : left + width], size, interpolation)


def random_crop_box(
    height: int, width: int, scale: Sequence[float], ratio: Sequence[float], rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """Top, left, height and width of a crop with random area and aspect ratio.

    The algorithm of torchvision's RandomResizedCrop: ten tries, then the largest central crop of an allowed ratio.
    """
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


def eval_crop(image: Tensor, size: tuple[int, int], crop_pct: float, crop_mode: str, interpolation: str) -> Tensor:
    """The input of an evaluation: (C, H, W) -> (C, *size), same dtype.

    Args:
        crop_pct: the share of the resized image's tighter side that a centre crop covers.
        crop_mode: `center`: resize so that the crop covers that share, then take the centre; for square sizes this is
            the official transform, Resize(int(S / 0.875)) and CenterCrop(S). `squash`: resize to `size`, whatever the
            aspect, and ignore `crop_pct`, as the official 384-pixel models do.

    Raises:
        ConfigError: for another `crop_mode`.
    """
    if crop_mode == "squash":
        return resize(image, size, interpolation)
    if crop_mode != "center":
        raise ConfigError("data.crop_mode", crop_mode, "take one of center, squash")
    height, width = image.shape[-2:]
    tall, wide = (int(side / crop_pct) for side in size)
    if tall * width >= wide * height:
        tall, wide = tall, width * tall // height
    else:
        tall, wide = height * wide // width, wide
    image = resize(image, (tall, wide), interpolation)
    top, left = round((tall - size[0]) / 2), round((wide - size[1]) / 2)
    return image[..., top : top + size[0], left : left + size[1]].contiguous()


def resize(image: Tensor, size: tuple[int, int], interpolation: str) -> Tensor:
    """Antialiased resize, (C, H, W) -> (C, *size) contiguous; 16 bit images go through float32 and are rounded back."""
    mode = InterpolationMode(interpolation)
    if image.dtype != torch.uint16:
        return tv.resize(image, list(size), interpolation=mode, antialias=True).contiguous()
    resized = tv.resize(image.to(torch.float32), list(size), interpolation=mode, antialias=True)
    return resized.round().clamp(0, 65535).to(torch.uint16).contiguous()


def _flip(image: Tensor, horizontal: bool, vertical: bool) -> Tensor:
    dims = [-1] * horizontal + [-2] * vertical
    if not dims:
        return image
    if image.dtype == torch.uint16:  # the same bits: not every version of torch can flip uint16
        return image.view(torch.int16).flip(dims).view(torch.uint16)
    return image.flip(dims)


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


def normalise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(..., C, H, W) uint8 or uint16, on any device -> float32 with (x / largest value - mean) / std per channel."""
    largest = {torch.uint8: 255.0, torch.uint16: 65535.0}[images.dtype]
    shift, scale = _constants(tuple(mean), tuple(std), largest, images.device)
    return images.to(torch.float32).sub_(shift).div_(scale)


@lru_cache(maxsize=32)
def _constants(
    mean: tuple[float, ...], std: tuple[float, ...], largest: float, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Made once per device: a new tensor in every step would be a copy to the device in every step."""
    shift, scale = torch.tensor([mean, std], dtype=torch.float32, device=device)[..., None, None] * largest
    return shift, scale


def resolve_statistics(config: DataConfig, card: Card | None, channels: int) -> tuple[list[float], list[float]]:
    """Per-channel mean and standard deviation for `normalise`.

    Raises ConfigError where `data.mean` or `data.std` does not fit the channels or the card cannot tell.
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
                key, value, f"ImageNet has 3 channels, not {channels}: give `dataset` or a list of {channels} numbers"
            )
        return list(imagenet)
    if value == "dataset":
        statistics = card.statistics(channels) if card is not None else None
        if statistics is None:
            why = "the shards have no dataset card" if card is None else f"the card knows no {channels}-channel images"
            raise ConfigError(key, value, f"{why}: pack them with swinv2-data, or give a list of {channels} numbers")
        return statistics[which]
    if isinstance(value, (list, tuple)) and all(isinstance(number, (int, float)) for number in value):
        if len(value) != channels:
            raise ConfigError(key, value, f"{len(value)} numbers for {channels} channels")
        return [float(number) for number in value]
    raise ConfigError(key, value, f"give a list of {channels} numbers in [0, 1], `imagenet` or `dataset`")
