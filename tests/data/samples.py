"""Images and shards for the tests."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image


def pixels(seed: int, height: int = 24, width: int = 32, channels: int = 3, dtype: type = np.uint8) -> np.ndarray:
    """(H, W, C) smooth enough for JPEG, different for every seed."""
    rng = np.random.default_rng(seed)
    rows, columns = np.linspace(0, 1, height)[:, None, None], np.linspace(0, 1, width)[None, :, None]
    waves = np.sin(
        rng.uniform(1, 6, channels) * rows + rng.uniform(1, 6, channels) * columns + rng.uniform(0, 6, channels)
    )
    return ((waves + 1) / 2 * np.iinfo(dtype).max).astype(dtype)


def encoded(image: np.ndarray, kind: str = "JPEG", mode: str | None = None, **options: object) -> bytes:
    """The bytes of a PIL picture, by default a JPEG."""
    buffer = io.BytesIO()
    picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    (picture.convert(mode) if mode else picture).save(buffer, kind, **options)
    return buffer.getvalue()


def jpeg(seed: int, **shape: int) -> bytes:
    return encoded(pixels(seed, **shape), quality=95)


def write_tar(path: Path, members: Iterable[tuple[str, bytes]], **options: object) -> Path:
    """A tar as Python's tarfile writes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", **options) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def write_shards(folder: Path, sizes: Iterable[int], broken: Iterable[int] = ()) -> list[str]:
    """Write shards of JPEGs named img00000, img00001, ...; those in `broken` are not images."""
    paths, number = [], 0
    for i, size in enumerate(sizes):
        names = range(number, number + size)
        members = [(f"img{n:05d}.jpg", b"\xff\xd8\xff broken" if n in set(broken) else jpeg(n)) for n in names]
        paths.append(str(write_tar(folder / f"part-{i:06d}.tar", members)))
        number += size
    return paths


def write_folder(folder: Path, count: int, extension: str = "jpg", **shape: int) -> Path:
    """A folder of loose JPEGs in two subfolders."""
    for n in range(count):
        path = folder / ("cats" if n % 3 else "dogs") / f"img{n:03d}.{extension}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(n, **shape))
    return folder
