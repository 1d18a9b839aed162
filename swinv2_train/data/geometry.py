"""Geometry of a sample: drawn once, then applied to the image, its label map, masks, and boxes.

Coordinates are in pixels. A box is (left, top, right, bottom), where right and bottom are the first coordinates outside
of it, so a box around one pixel is one pixel wide.
"""

from __future__ import annotations

import math
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from swinv2_train.config.errors import ConfigError
from swinv2_train.config.schema import AugmentConfig
from swinv2_train.data.batch import SIZE
from swinv2_train.data.errors import BrokenSample


@dataclass(frozen=True)
class Crop:
    """Part of an image, resized, cut, and flipped, in this order."""

    source: tuple[int, int]
    """Height and width of the image that it was drawn for."""
    box: tuple[int, int, int, int]
    """Top, left, height, and width of the part that is resized."""
    scaled: tuple[int, int]
    """Height and width that this part is resized to."""
    size: tuple[int, int]
    """Height and width of the result, which is cut out of the resized part."""
    corner: tuple[int, int] = (0, 0)
    """Top and left of the result in the resized part."""
    horizontal: bool = False
    """True if the result is mirrored left to right."""
    vertical: bool = False
    """True if the result is mirrored top to bottom."""

    def __post_init__(self) -> None:
        """Raises ValueError if the result reaches out of the resized part, or that part out of the image."""
        pairs = ((self.corner, self.size, self.scaled), (self.box[:2], self.box[2:], self.source))
        for start, size, extent in pairs:
            if any(first < 0 or first + length > end for first, length, end in zip(start, size, extent, strict=True)):
                raise ValueError(f"{size} pixels that start at {start} do not fit into {extent}, height first")

    def image(self, image: Tensor, interpolation: str) -> Tensor:
        """Apply it to an image: (..., H, W) -> (..., *size), same dtype, antialiased."""
        self._check(image, "image")
        top, left, height, width = self.box
        image = _resized(image[..., top : top + height, left : left + width], self.scaled, interpolation)
        (top, left), (height, width) = self.corner, self.size
        # numpy, because it copies faster than torch, and not every version of torch can flip uint16.
        array = image.numpy()[..., top : top + height, left : left + width]
        array = array[..., :: -1 if self.vertical else 1, :: -1 if self.horizontal else 1]
        return torch.from_numpy(array.copy())

    def label_map(self, labels: Tensor) -> Tensor:
        """Apply it to a label map or masks: (..., H, W) -> (..., *size), any dtype; each pixel is one of the source.

        It is the source pixel at the center of the new one, where the antialiased image has its weight as well.
        """
        self._check(labels, "label map or mask")
        rows, columns = self.source_pixels()
        # numpy, because torch indexes uint16 only on some devices. Rows first: they are copied whole.
        return torch.from_numpy(labels.numpy().take(rows, axis=-2).take(columns, axis=-1))

    def boxes(self, boxes: Tensor, min_size: float = 1.0) -> tuple[Tensor, Tensor]:
        """Apply it to boxes, which are cut at the border of the result.

        Args:
            boxes: (N, 4) left, top, right, bottom in the source.
            min_size: boxes that are narrower or lower than this many pixels of the result are dropped.

        Returns:
            (boxes that are left (K, 4) float32, numbers of these among the N (K,) int64, for their classes and masks).
        """
        top, left, height, width = self.box
        scale = torch.tensor([self.scaled[1] / width, self.scaled[0] / height] * 2, dtype=torch.float64)
        shift = torch.tensor([left, top] * 2, dtype=torch.float64)
        corner = torch.tensor(self.corner[::-1] * 2, dtype=torch.float64)
        moved = (boxes.to(torch.float64).reshape(-1, 4) - shift) * scale - corner
        extent = torch.tensor(self.size[::-1] * 2, dtype=torch.float64)
        moved = moved.clamp(torch.zeros(4, dtype=torch.float64), extent)
        if self.horizontal:
            moved[:, [0, 2]] = self.size[1] - moved[:, [2, 0]]
        if self.vertical:
            moved[:, [1, 3]] = self.size[0] - moved[:, [3, 1]]
        kept = ((moved[:, 2:] - moved[:, :2]) >= min_size).all(dim=1).nonzero()[:, 0]
        return moved[kept].to(torch.float32), kept

    def source_pixels(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the source row of every row of the result, and the source column of every column."""
        found = []
        for axis, mirrored in enumerate((self.vertical, self.horizontal)):
            first, part, scaled = self.box[axis], self.box[axis + 2], self.scaled[axis]
            wanted = np.arange(self.corner[axis], self.corner[axis] + self.size[axis])
            # The pixel under the center, (i + 1/2) * part / scaled, in integers: no rounding decides between two.
            taken = first + (2 * wanted + 1) * part // (2 * scaled)
            found.append(taken[::-1] if mirrored else taken)
        return found[0], found[1]

    def _check(self, content: Tensor, what: str) -> None:
        found = tuple(content.shape[-2:])
        if found != self.source:
            raise BrokenSample(
                f"its {what} is {found[1]} x {found[0]}, and its crop was drawn for {self.source[1]} x {self.source[0]}"
            )


def draw_crop(source: tuple[int, int], size: tuple[int, int], config: AugmentConfig, rng: np.random.Generator) -> Crop:
    """Draw the crop of a training sample: a random part of an image of height and width `source`, and flips."""
    box = random_crop_box(*source, config.scale, config.ratio, rng)
    # Both numbers are always drawn, so that switching one flip off does not affect the other.
    horizontal, vertical = rng.random(2).tolist()
    return Crop(source, box, size, size, horizontal=horizontal < config.hflip, vertical=vertical < config.vflip)


def random_crop_box(
    height: int, width: int, scale: Sequence[float], ratio: Sequence[float], rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """Return top, left, height and width of a crop with random area and aspect ratio.

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


def draw_part(
    source: tuple[int, int], size: tuple[int, int], factor: float, flips: tuple[bool, bool], rng: np.random.Generator
) -> Crop:
    """Draw the part of an image that is `size` large after scaling the image by `factor`.

    Where the scaled image is smaller than `size`, the result has its size, to be padded.

    Args:
        flips: left to right, top to bottom.
    """
    parts, sizes = [], []
    for side, wanted in zip(source, size, strict=True):
        parts.append(min(side, max(1, round(wanted / factor))))
        sizes.append(wanted if parts[-1] < side else min(wanted, max(1, round(side * factor))))
    top, left = (int(rng.integers(0, side - part + 1)) for side, part in zip(source, parts, strict=True))
    scaled = (sizes[0], sizes[1])
    return Crop(source, (top, left, parts[0], parts[1]), scaled, scaled, horizontal=flips[0], vertical=flips[1])


def fixed_crop(source: tuple[int, int], size: tuple[int, int], crop_pct: float, crop_mode: str) -> Crop:
    """Return the crop of an evaluation.

    Args:
        source: height and width of the image.
        crop_pct: the fraction of the resized image's tighter side that a center crop covers.
        crop_mode: `center`: resize so that the crop covers that fraction, then take the center; for square sizes this
            is the official transform, Resize(int(S / 0.875)) and CenterCrop(S). `squash`: resize to `size`, whatever
            the aspect, and ignore `crop_pct`, as the official 384-pixel models do.

    Raises:
        ConfigError: for another `crop_mode`.
    """
    height, width = source
    if crop_mode == "squash":
        return Crop(source, (0, 0, height, width), size, size)
    if crop_mode != "center":
        raise ConfigError("data.crop_mode", crop_mode, "must be one of center, squash")
    tall, wide = (int(side / crop_pct) for side in size)
    if tall * width >= wide * height:
        tall, wide = tall, width * tall // height
    else:
        tall, wide = height * wide // width, wide
    corner = round((tall - size[0]) / 2), round((wide - size[1]) / 2)
    return Crop(source, (0, 0, height, width), (tall, wide), size, corner)


def resize(image: Tensor, size: tuple[int, int], interpolation: str) -> Tensor:
    """Antialiased resize, (..., C, H, W) -> (..., C, *size) contiguous, same dtype: uint8, uint16, or floating point.

    The arithmetic of torchvision's resize, bit for bit, without its import (see `codecs`). torch resizes uint8 in
    integers if the CPU is fast at that. Everything else goes through float32 and is rounded.
    """
    return _resized(image, size, interpolation).contiguous()


def _resized(image: Tensor, size: tuple[int, int], interpolation: str) -> Tensor:
    """As `resize`, in any memory layout; it may be the image itself."""
    if tuple(image.shape[-2:]) == tuple(size):
        return image
    dtype = image.dtype
    images = _as_channels_last(image.reshape(-1, *image.shape[-3:]))
    if not dtype.is_floating_point and not (dtype == torch.uint8 and _resizes_in_integers(interpolation)):
        images = images.to(torch.float32)
    resized = interpolate(images, list(size), mode=interpolation, align_corners=False, antialias=True)
    if resized.dtype != dtype:  # bicubic filters overshoot
        resized = resized.round_().clamp_(0, torch.iinfo(dtype).max).to(dtype)
    return resized.reshape(*image.shape[:-2], *size)


@cache
def _resizes_in_integers(interpolation: str) -> bool:
    """True if torchvision has torch resize uint8 images as they are."""
    fast = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512") or platform.machine() in ("aarch64", "arm64")
    return interpolation == "bicubic" or fast


def _as_channels_last(images: Tensor) -> Tensor:
    """Return (N, C, H, W) with strides that torch recognizes as channels last, if the memory is laid out like this.

    A decoded image is. With the batch's stride of a view, torch would copy it (pytorch/pytorch issue 68430).
    """
    is_view = len(images) == 1 and images.stride(0) != images.numel()
    if is_view and images.is_contiguous(memory_format=torch.channels_last):
        return images.as_strided(images.shape, (images.numel(), *images.stride()[1:]))
    return images


def pad(image: Tensor, canvas: tuple[int, int], value: int = 0) -> Tensor:
    """Pad an image, a label map, or masks at the bottom and right: (..., H, W) -> (..., *canvas), same dtype.

    Args:
        value: of the padding, such as the ignored index of a label map. That of images does not matter, because
            `augment.normalise` replaces it if it knows their sizes, see `padded_image`.

    Raises:
        ValueError: if the image is larger than the canvas.
    """
    height, width = image.shape[-2:]
    if height > canvas[0] or width > canvas[1]:
        raise ValueError(f"an image of {width} x {height} does not fit on a canvas of {canvas[1]} x {canvas[0]}")
    padded = np.full((*image.shape[:-2], *canvas), value, dtype=image.numpy().dtype)
    padded[..., :height, :width] = image.numpy()
    return torch.from_numpy(padded)


def padded_image(image: Tensor, canvas: tuple[int, int]) -> dict[str, Tensor]:
    """Return the entries `image` (C, *canvas), padded at the bottom and right, and `size`: its height and width."""
    return {"image": pad(image, canvas), SIZE: torch.tensor(image.shape[-2:])}
