"""Preparation of a model's input as a few lines of Python for users without this package.

The README of every export contains these lines, and every export runs them before it is done (`input_check.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from swinv2_train.config.checks import resolution
from swinv2_train.data.value_range import ValueRange

if TYPE_CHECKING:
    from torch import Tensor

    from swinv2_train.interop.load import LoadedModel

_SQUASH = "    size = ({height}, {width})\n"
_CENTER = """\
    height, width = pixels.shape[-2:]
    if {tall} * width >= {wide} * height:
        size = ({tall}, width * {tall} // height)
    else:
        size = (height * {wide} // width, {wide})
"""
_NATIVE = """\
    height, width = pixels.shape[-2:]
    if height >= {height} and width >= {width}:
        size = (height, width)
    elif {height} * width >= {width} * height:
        size = ({height}, width * {height} // height)
    else:
        size = (height * {width} // width, {width})
"""
_CROP = """\
    top, left = round((size[0] - {height}) / 2), round((size[1] - {width}) / 2)
    pixels = pixels[..., top : top + {height}, left : left + {width}]
"""
_CODE = """\
import torch
from torchvision.transforms.v2 import InterpolationMode, functional


def prepare(pixels):
    \"\"\"{given} -> {shape} float32.\"\"\"
    largest = 255 if pixels.dtype == torch.uint8 else 65535
{size}    if largest == 65535:
        pixels = pixels.float()
    pixels = functional.resize(pixels, list(size), interpolation=InterpolationMode("{interpolation}"), antialias=True)
    pixels = pixels.float().round().clamp(0, largest)
{crop}    mean, std = torch.tensor({mean}), torch.tensor({std})
    return {result}
"""
_GIVEN = "(channels, height, width) uint8 or uint16, upright and without alpha"
_RESULT = "(pixels - mean[:, None, None] * largest) / (std[:, None, None] * largest)"
_VALUES = """\
import torch
from torchvision.transforms.v2 import InterpolationMode, functional


def prepare(values):
    \"\"\"(channels, height, width) stored values of any type, upright -> {shape} float32. NaN: no data.\"\"\"
    low, high, fill = (torch.tensor(each).double()[:, None, None] for each in ({low}, {high}, {fill}))
    values = values.double()
    missing = ~(values.abs() <= torch.finfo(torch.float32).max){nodata}
    pixels = torch.where(missing, fill, ((values - low) / (high - low)).clamp(0, 1)).float()
{size}    filter = InterpolationMode("{interpolation}")
    pixels = functional.resize(pixels, list(size), interpolation=filter, antialias=True).clamp(0, 1)
{crop}    mean, std = torch.tensor({mean}), torch.tensor({std})
    return (pixels - mean[:, None, None]) / std[:, None, None]
"""


def input_code(loaded: LoadedModel) -> str:
    """Return Python code that defines `prepare(pixels)`: exactly the crop and the normalization of an evaluation.

    For a model of clips, its argument are the frames of a clip.

    With `data.scale`, its argument are the stored values.
    """
    data = loaded.config.data
    height, width = resolution(loaded.config)
    sides: dict[str, Any] = {"height": height, "width": width}
    if data.crop_mode == "squash":
        size, crop = _SQUASH.format(**sides), ""
    elif data.crop_mode == "native":
        size, crop = _NATIVE.format(**sides), _CROP.format(**sides)
    else:
        tall, wide = int(height / data.crop_pct), int(width / data.crop_pct)
        size, crop = _CENTER.format(tall=tall, wide=wide), _CROP.format(**sides)
    values, channels = ValueRange.of(data, loaded.mean), loaded.config.model.in_channels
    words = {"given": _GIVEN, "result": _RESULT, "shape": f"({channels}, {height}, {width})"}
    if data.frames:
        words = {
            "given": f"({data.frames} frames, channels, height, width) uint8, upright",
            "result": f"({_RESULT}).transpose(0, 1)",
            "shape": f"({channels}, {data.frames}, {height}, {width})",
        }
    return (_CODE if values is None else _VALUES).format(
        **({} if values is None else _range(values)),
        **words,
        size=size,
        crop=crop,
        interpolation=data.augment.interpolation,
        mean=loaded.mean,
        std=loaded.std,
    )


def _range(values: ValueRange) -> dict[str, Any]:
    """Return the parts of the code that convert stored values."""
    nodata = f" | (values == torch.tensor({list(values.nodata)}).double()[:, None, None])" if values.nodata else ""
    low, high = ([pair[end] for pair in values.pairs] for end in (0, 1))
    return {"low": low, "high": high, "fill": list(values.fill), "nodata": nodata}


def run_code(code: str) -> Callable[[Tensor], Tensor]:
    """Return the function that `input_code` defines."""
    scope: dict[str, Any] = {}
    exec(compile(code, "README.md", "exec"), scope)  # our own code; only numbers and two checked names are inserted
    return scope["prepare"]
