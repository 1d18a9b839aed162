"""Georeference of a GeoTIFF, to be copied to a map of the same pixels (OGC GeoTIFF 1.1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import tifffile

_SCALE, _TIEPOINT, _TRANSFORMATION, _KEYS, _DOUBLES, _TEXT = 33550, 33922, 34264, 34735, 34736, 34737
_COPIED = (_SCALE, _TIEPOINT, _TRANSFORMATION, _KEYS, _DOUBLES, _TEXT)
NODATA = 42113
"""Tag GDAL_NODATA: the value of pixels without data, a number as text."""
_ASCII = 2
_MODEL_TYPE, _GEOGRAPHIC = 1024, 2
Tag = tuple[int, int, int, Any, bool]
"""Number, type, count, value, and whether only the first page gets it, as tifffile writes tags."""


@dataclass(frozen=True)
class GeoTags:
    """The place of an image on a map."""

    tags: tuple[Tag, ...]
    """ModelPixelScale, ModelTiepoint, ModelTransformation, GeoKeyDirectory, GeoDoubleParams, GeoAsciiParams."""
    pixel_area: float | None
    """Area of a pixel in squared units of the map; None if the units are degrees, or the file has no scale."""

    @classmethod
    def of(cls, page: tifffile.TiffPage) -> GeoTags | None:
        """Return the georeference of a page; None if it has none."""
        found = {number: page.tags[number] for number in _COPIED if number in page.tags}
        if not found:
            return None
        tags = tuple(_tag(number, tag) for number, tag in found.items())
        values = {number: tag.value for number, tag in found.items() if isinstance(tag.value, tuple)}
        return cls(tags, _pixel_area(values))


def nodata_tag(value: int) -> Tag:
    """Return the tag for the value of pixels without data."""
    return (NODATA, _ASCII, 0, str(value), True)


def _tag(number: int, tag: tifffile.TiffTag) -> Tag:
    if int(tag.dtype) == _ASCII:
        return (number, _ASCII, 0, tag.value, True)
    count = len(tag.value) if isinstance(tag.value, tuple) else 1
    return (number, int(tag.dtype), count, tag.value, True)


def _pixel_area(values: dict[int, tuple[Any, ...]]) -> float | None:
    keys = values.get(_KEYS, ())
    model_type = next((keys[at + 3] for at in range(4, len(keys) - 3, 4) if keys[at] == _MODEL_TYPE), None)
    if model_type == _GEOGRAPHIC:
        return None
    area = 0.0
    if len(values.get(_SCALE, ())) >= 2:
        area = abs(values[_SCALE][0] * values[_SCALE][1])
    elif len(values.get(_TRANSFORMATION, ())) == 16:
        m = values[_TRANSFORMATION]
        area = abs(m[0] * m[5] - m[1] * m[4])
    return area if 0 < area < float("inf") else None
