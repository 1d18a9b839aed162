"""Images of any type of values for the tests: TIFF and arrays of NumPy."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import tifffile

GDAL_NODATA = 42113


def values(seed: int, channels: int, dtype: str, height: int = 20, width: int = 30) -> np.ndarray:
    """(C, H, W), with negative values if the type has them, different for every seed."""
    rng = np.random.default_rng(seed)
    kind = np.dtype(dtype)
    if kind.kind == "f":
        return (40 * rng.standard_normal((channels, height, width))).astype(kind)
    low, high = max(np.iinfo(kind).min, -(2**31)), min(np.iinfo(kind).max, 2**33)
    return rng.integers(low, high, (channels, height, width), dtype=kind, endpoint=True)


def geotiff(planes: np.ndarray, nodata: str | None = None, **options: Any) -> bytes:
    """(C, H, W) -> the bytes of a TIFF with a geographic tag and, if it is given, the tag GDAL_NODATA."""
    tags = [(33550, "d", 3, (10.0, 10.0, 0.0), True)]  # ModelPixelScaleTag
    if nodata is not None:
        tags.append((GDAL_NODATA, "s", 0, nodata, True))
    buffer = io.BytesIO()
    shaped = planes[0] if len(planes) == 1 else planes
    layout = {} if len(planes) == 1 else {"planarconfig": "separate"}
    tifffile.imwrite(buffer, shaped, photometric="minisblack", metadata=None, extratags=tags, **layout, **options)
    return buffer.getvalue()


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def npz(**arrays: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()
