"""Image or video files that a user names, and synthetic images to compare two models on."""

from __future__ import annotations

import glob
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from swinv2_train.config.checks import resolution
from swinv2_train.config.paths import user_path
from swinv2_train.data.errors import BrokenSample, DataError
from swinv2_train.data.image_files import image_extensions, scan_folder
from swinv2_train.data.pyav import load_av
from swinv2_train.data.samples import IMAGE, VIDEO
from swinv2_train.data.video_files import VIDEO_FILES, scan_videos
from swinv2_train.text import counted

if TYPE_CHECKING:  # finding images does without torch
    from torch import Tensor

    from swinv2_train.interop.load import LoadedModel


@dataclass
class FoundImages:
    """Image or video files that a user named."""

    files: list[Path] = field(default_factory=list)
    """In the order of the names, each file once."""
    notes: list[str] = field(default_factory=list)
    """Contents of the folders that are not read, one line each."""
    lost: bool = False
    """True if these may contain images or videos."""


def find_images(paths: Sequence[str], skip: Sequence[Path] = (), kind: str = IMAGE) -> FoundImages:
    """Find the image or video files named by files, folders (at any depth), and patterns.

    In folders, only files with an extension of the kind are used; a file that is named explicitly may have any name.

    Args:
        skip: files and folders that folders and patterns do not find, such as outputs of the caller.
        kind: `image` or `video`.

    Raises:
        ConfigError: as `user_path`.
        DataError: if one of them matches nothing, or if videos cannot be decoded.
    """
    if kind == VIDEO:
        load_av()
    found = FoundImages()
    files: dict[Path, None] = {}
    left_out = {each.resolve() for each in skip}
    for text in paths:
        path = user_path(text)
        if path.is_dir():
            matches = (_videos if kind == VIDEO else _images)(path, skip, found)
        elif path.exists():
            matches = [path]
        else:
            matches = [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]
            matches = [match for match in matches if match.is_file() and not _is_below(match, left_out)]
            if not matches and not glob.has_magic(str(path)):
                raise DataError(f"{text} does not exist")
        if not matches:
            where = "holds" if path.is_dir() else "matches"
            others = "".join(f"; {line}" for line in found.notes if line.startswith(str(path)))
            extensions = ", ".join(VIDEO_FILES if kind == VIDEO else image_extensions())
            raise DataError(f"{text} {where} no {kind} ({extensions}){others}")
        files.update(dict.fromkeys(matches))
    found.files = list(files)
    return found


def _images(path: Path, skip: Sequence[Path], found: FoundImages) -> list[Path]:
    """Return the image files of a folder, and add to `found` what is not read."""
    scan = scan_folder(path, skip)
    found.notes += scan.notes()
    found.lost |= scan.lost
    return [Path(image) for image in scan.images]


def _videos(path: Path, skip: Sequence[Path], found: FoundImages) -> list[Path]:
    """Return the video files of a folder, and add to `found` what is not read: images, and folders of frames."""
    scan = scan_videos(path, skip)
    folders = [name for name in scan.images if Path(name).is_dir()]
    loose, scan.num_loose = scan.num_loose, 0  # next to videos, they are probably pictures of them
    found.notes += scan.notes()
    found.lost |= scan.lost
    if loose:
        found.notes.append(f"{path}: {counted(loose, 'image', ',')} not read, such as {scan.loose[0]}")
    if folders:
        fix = "swinv2-data pack --video reads folders of frames"
        found.notes.append(
            f"{path}: {counted(len(folders), 'folder', ',')} of images not read, such as {folders[0]}: {fix}"
        )
    return [Path(name) for name in scan.images if name not in set(folders)]


def made_images(loaded: LoadedModel, count: int, seed: int = 0) -> Tensor:
    """Return synthetic images, normalized (count, C, H, W) float32, with photo-like statistics: shapes, detail, grain.
    For a model of clips, every frame of (count, C, T, H, W) is one.

    Args:
        seed: the same seed returns the same images.
    """
    import numpy as np
    import torch
    import torch.nn.functional as F

    from swinv2_train.data.augment import normalise

    height, width = resolution(loaded.config)
    channels, frames = loaded.config.model.in_channels, loaded.config.data.frames
    if frames:
        count *= frames
    rng = np.random.default_rng(seed)
    image = torch.zeros(count, channels, height, width)
    for cells, strength in ((3, 0.5), (9, 0.25), (31, 0.12)):
        coarse = torch.from_numpy(rng.uniform(-1, 1, (count, channels, cells, cells))).float()
        image += strength * F.interpolate(coarse, size=(height, width), mode="bicubic", align_corners=False)
    image += torch.from_numpy(rng.normal(0, 0.02, tuple(image.shape))).float()
    pixels = ((image.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    made = normalise(pixels, loaded.mean, loaded.std)
    return made.unflatten(0, (-1, frames)).transpose(1, 2).contiguous() if frames else made


def _is_below(path: Path, places: Collection[Path]) -> bool:
    """Return whether a file is one of some resolved places, or below one."""
    resolved = path.resolve()
    return any(place in places for place in (resolved, *resolved.parents))


def encoded_images(paths: Sequence[Path], loaded: LoadedModel) -> list[bytes]:
    """Return the bytes of image files.

    Raises:
        DataError: naming the first file that cannot be used.
    """
    for path in paths:
        _decoded(path, loaded)
    return [path.read_bytes() for path in paths]


def _decoded(path: Path, loaded: LoadedModel) -> Tensor:
    from swinv2_train.data.decode import DecodeOptions
    from swinv2_train.data.image_input import read_image

    try:
        options = DecodeOptions.of(loaded.config.data, loaded.mean)
        return read_image(path, loaded.config.model.in_channels, options)
    except BrokenSample as error:
        raise DataError(f"{path}: {error}") from error
