"""Image files as a model wants them, and made images to compare two models on."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from swinv2_train.config.checks import resolution
from swinv2_train.data.augment import eval_crop, normalise
from swinv2_train.data.decode import decode
from swinv2_train.data.errors import BrokenSample, DataError

if TYPE_CHECKING:
    from swinv2_train.config.schema import Config
    from swinv2_train.interop.load import LoadedModel

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff")
"""Files of these names are taken from folders; a file that is named itself may be called anything."""


def find_images(paths: Sequence[str]) -> list[Path]:
    """The image files that files, folders (to any depth) and patterns name: in their order, each file once.

    Raises:
        DataError: if one of them names nothing.
    """
    found: dict[Path, None] = {}
    for text in paths:
        path = Path(text).expanduser()
        if path.is_dir():
            files = sorted(file for file in path.rglob("*") if _is_image(file))
        elif path.exists():
            files = [path]
        else:
            matches = [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]
            files = [match for match in matches if match.is_file()]
            if not files and not glob.has_magic(str(path)):
                raise DataError(f"{text} does not exist")
        if not files:
            where = "holds" if path.is_dir() else "matches"
            raise DataError(f"{text} {where} no image ({', '.join(suffix[1:] for suffix in SUFFIXES)})")
        found.update(dict.fromkeys(files))
    return list(found)


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and path.is_file() and not path.name.startswith(".")


def read_image(path: Path, channels: int) -> Tensor:
    """A file as (channels, H, W) uint8 or uint16.

    Raises:
        BrokenSample: if it cannot be read or decoded.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BrokenSample(f"it cannot be read ({error.strerror})") from error
    return decode(data, channels)


def prepare(image: Tensor, config: Config, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(C, H, W) uint8 or uint16 -> (C, h, w) float32: the crop and the normalisation of an evaluation."""
    data = config.data
    cropped = eval_crop(image, resolution(config), data.crop_pct, data.crop_mode, data.augment.interpolation)
    return normalise(cropped, mean, std)


def made_images(loaded: LoadedModel, count: int, seed: int = 0) -> Tensor:
    """Normalised (count, C, H, W) float32 images with the statistics of photographs: large shapes, finer ones, grain.

    Args:
        seed: the same seed makes the same images.
    """
    height, width = resolution(loaded.config)
    channels = loaded.config.model.in_channels
    rng = np.random.default_rng(seed)
    image = torch.zeros(count, channels, height, width)
    for cells, strength in ((3, 0.5), (9, 0.25), (31, 0.12)):
        coarse = torch.from_numpy(rng.uniform(-1, 1, (count, channels, cells, cells))).float()
        image += strength * F.interpolate(coarse, size=(height, width), mode="bicubic", align_corners=False)
    image += torch.from_numpy(rng.normal(0, 0.02, tuple(image.shape))).float()
    pixels = ((image.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return normalise(pixels, loaded.mean, loaded.std)


def encoded_images(paths: Sequence[Path], loaded: LoadedModel) -> list[bytes]:
    """The bytes of image files.

    Raises:
        DataError: naming the first that cannot be used.
    """
    for path in paths:
        _decoded(path, loaded)
    return [path.read_bytes() for path in paths]


def image_batch(paths: Sequence[Path], loaded: LoadedModel) -> Tensor:
    """Files as a normalised batch, (B, C, h, w).

    Raises:
        DataError: naming the first that cannot be used.
    """
    images = [_decoded(path, loaded) for path in paths]
    return torch.stack([prepare(image, loaded.config, loaded.mean, loaded.std) for image in images])


def _decoded(path: Path, loaded: LoadedModel) -> Tensor:
    try:
        return read_image(path, loaded.config.model.in_channels)
    except BrokenSample as error:
        raise DataError(f"{path}: {error}") from error
