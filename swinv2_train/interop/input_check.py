"""Verification of an export from the encoded image on: another library must prepare the same input as this package.

Equal logits for equal tensors do not show that the other side resizes, crops, and scales the same way. Therefore both
sides process encoded images of the bit depths that the model is for, and differences are measured and named.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from swinv2_train.checkpoint.errors import CheckpointError
from swinv2_train.config.checks import resolution
from swinv2_train.data.decode import DecodeOptions, decode, opaque, read_pixels
from swinv2_train.data.image_input import prepare
from swinv2_train.data.value_range import ValueRange
from swinv2_train.interop import peers
from swinv2_train.interop.input_code import input_code, run_code

if TYPE_CHECKING:
    from swinv2_train.interop.load import LoadedModel

TIMM, HUGGINGFACE = "timm", "huggingface"
PROCESSORS = {TIMM: "timm's transform", HUGGINGFACE: "AutoImageProcessor"}
"""Image preparation on the other side."""
_CLAMP = ".clamp(0, largest)"
ROUNDING = 3.0
"""Levels out of 255 by which libraries may differ because of rounding in their resizing."""
_SIZES = ((1.3, 1.7), (1.9, 1.1), (0.7, 0.9))
"""Heights and widths of synthetic images, relative to the input: wide, tall, and smaller than the input."""


@dataclass(frozen=True)
class InputCheck:
    """Comparison of both sides, from an encoded image to the input."""

    bits: list[int]
    """Bit depths of the images."""
    images: int
    processor: str | None
    """Processor of the other side; None if it has none and takes tensors."""
    levels: float | None = None
    """Largest difference of a pixel, in levels out of 255; None if the processor cannot read such images."""
    outputs: float | None = None
    """Largest difference of an output that results from it."""
    why: list[str] = field(default_factory=list)
    """Differences in the processor's algorithm; empty if the inputs agree."""

    noun: str = "image"
    """Name of one input: image or clip."""
    stored: bool = False
    """True if the images are stored values of any type (`data.scale`), which are checked as float32."""

    @property
    def agrees(self) -> bool:
        return not self.why

    def sentence(self, output: str) -> str:
        """Return the result for the model card and the console.

        Args:
            output: `logits` or `features`.
        """
        kind = "stored values, as float32" if self.stored else f"{_listed(self.bits)} bits"
        what = f"{self.images} {'encoded images' if self.noun == 'image' else 'clips'} of {kind}"
        if self.processor is None:
            return f"{what}: the code under Input creates the same tensors"
        if self.levels is None:
            return f"{what}: {'; '.join(self.why)}; use the code under Input, which creates the same tensors"
        apart = (
            f"{self.processor} creates pixels up to {self.levels:.2g} of 255 levels apart, and the {output} up "
            f"to {self.outputs:.2g}"
        )
        if self.agrees:
            return f"{what}: {apart}"
        return f"{what}: {apart} ({'; '.join(self.why)}); the code under Input creates the same tensors"


def _listed(bits: Sequence[int]) -> str:
    return " and ".join(map(str, bits))


def recorded_bits(loaded: LoadedModel) -> list[int] | None:
    """Return the depths of the images that a model was trained on, if recorded."""
    bits = loaded.source.metadata.get("preprocess", {}).get("bits")
    return list(map(int, bits)) if bits in ([8], [16], [8, 16]) else None


def made_pictures(loaded: LoadedModel, bits: Sequence[int]) -> list[bytes]:
    """Return encoded images with smooth shapes for each of the depths: odd sizes around that of the input, and one with
    a margin around its center crop that libraries round differently.

    A model of stored values (`data.scale`) gets float32 instead, some of them beyond the range, and some missing.
    """
    scale = ValueRange.of(loaded.config.data, loaded.mean)
    height, width = resolution(loaded.config)
    channels = loaded.config.model.in_channels
    rng = np.random.default_rng(0)
    sizes = [(int(height * tall) | 1, int(width * wide) | 1) for tall, wide in _SIZES]
    sizes.append((height, _width_of_odd_margin(loaded, height, width)))
    made = []
    for depth in bits if scale is None else (32,):
        for size in sizes:
            coarse = torch.from_numpy(rng.uniform(0, 1, (1, channels, 7, 9))).float()
            smooth = torch.nn.functional.interpolate(coarse, size=size, mode="bicubic", align_corners=False)[0]
            if scale is not None:
                low, high = (torch.tensor([pair[end] for pair in scale.pairs])[:, None, None] for end in (0, 1))
                stored = (low + (1.2 * smooth - 0.1) * (high - low)).float().numpy()
                stored[:, :3, : size[1] // 2] = np.nan if scale.nodata is None else scale.nodata[0]
                made.append(_encoded(stored))
                continue
            values = (smooth.clamp(0, 1) * (2**depth - 1)).round().numpy()
            made.append(_encoded(values.astype(np.uint8 if depth == 8 else np.uint16)))
    return made


def _width_of_odd_margin(loaded: LoadedModel, height: int, width: int) -> int:
    """Return a width for this height such that the margin of the center crop is 3 more than a multiple of 4."""
    tall = int(height / loaded.config.data.crop_pct)
    for wide in range(width + width // 4, 4 * width + 8):
        if (wide * tall // height - width) % 4 == 3:
            return wide
    return 2 * width


def _encoded(pixels: np.ndarray) -> bytes:
    """Return (C, H, W) as PNG if that supports such images, else as TIFF."""
    file = io.BytesIO()
    if pixels.dtype == np.uint8 and len(pixels) in (1, 3):
        from PIL import Image

        Image.fromarray(pixels[0] if len(pixels) == 1 else np.moveaxis(pixels, 0, 2).copy()).save(file, "PNG")
    else:
        import tifffile

        kind = "rgb" if len(pixels) == 3 else "minisblack"
        shaped = pixels[0] if len(pixels) == 1 else np.ascontiguousarray(np.moveaxis(pixels, 0, 2))
        options = {} if len(pixels) == 1 else {"planarconfig": "contig"}
        extra = {} if len(pixels) in (1, 3) else {"extrasamples": (0,) * (len(pixels) - 1)}
        tifffile.imwrite(file, shaped, photometric=kind, **options, **extra)
    return file.getvalue()


def prepared(loaded: LoadedModel, pictures: Sequence[bytes]) -> tuple[list[Tensor], Tensor]:
    """Return encoded images as the pixels that `input_code` takes, each (C, H, W), and as this package's normalized
    batch.

    Raises:
        BrokenSample: if one cannot be decoded.
    """
    options = DecodeOptions.of(loaded.config.data, loaded.mean)
    channels = loaded.config.model.in_channels
    decoded = [decode(picture, channels, options) for picture in pictures]
    ours = torch.stack([prepare(image, loaded.config, loaded.mean, loaded.std) for image in decoded])
    if options.values is None:
        return decoded, ours
    stored = [
        opaque(read_pixels(picture, options.max_pixels).as_stored(), channels, options.background)
        for picture in pictures
    ]
    return stored, ours


def check_input(
    loaded: LoadedModel, directory: Path, layout: str, pixels: Sequence[Tensor], ours: Tensor, expected: Tensor
) -> InputCheck:
    """Compare the input that the files of an export create from images with that of this package.

    Args:
        directory: the export.
        pixels: decoded images, each (C, H, W) uint8 or uint16, or their stored values, see `prepared`; or clips, each
            (T, C, H, W) uint8.
        ours: (B, C, h, w) or (B, C, T, h, w), the input that this package creates from them.
        expected: outputs for this input.

    Raises:
        CheckpointError: if the code in the README does not create the same input.
    """
    shown = run_code(input_code(loaded))
    theirs = torch.stack([shown(image.clone()) for image in pixels])
    apart = float((theirs - ours).abs().max())
    if not apart <= 1e-5 * max(1.0, float(ours.abs().max())):
        raise CheckpointError(f"the preparation code in the README differs by {apart:.3g}; nothing was written")
    bits = sorted({8 * image.element_size() for image in pixels})
    if layout not in PROCESSORS:
        noun = "clip" if loaded.config.data.frames else "image"
        return InputCheck(bits, len(pixels), None, stored=loaded.config.data.scale is not None, noun=noun)
    name = PROCESSORS[layout]
    if loaded.config.data.scale is not None:
        why = [f"{name} does not scale stored values (data.scale)"]
        return InputCheck(bits, len(pixels), name, why=why, stored=True)
    run = peers.timm_input if layout == TIMM else peers.huggingface_input
    try:
        made = run(directory, pixels)
    except Exception as error:  # other libraries may raise anything here
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        return InputCheck(bits, len(pixels), name, why=[f"{name} cannot read them: {reason}"])
    if made.shape != ours.shape:
        why = [f"{name} creates inputs of {tuple(made.shape[1:])} instead of {tuple(ours.shape[1:])}"]
        return InputCheck(bits, len(pixels), name, why=why)
    std = torch.tensor(loaded.std)[:, None, None]
    levels = float(((made - ours).abs() * std).max() * 255)
    compute = peers.run_timm if layout == TIMM else peers.run_huggingface
    outputs = float((compute(directory, made) - expected).abs().max())
    why = [] if levels <= ROUNDING else [_reason(loaded, layout, pixels, made)]
    return InputCheck(bits, len(pixels), name, levels, outputs, why)


def _reason(loaded: LoadedModel, layout: str, pixels: Sequence[Tensor], made: Tensor) -> str:
    """Return the step in which a processor differs, found by doing it that way here."""
    name, code = PROCESSORS[layout], input_code(loaded)
    down = code.replace("round((size[0]", "int((size[0]").replace("round((size[1]", "int((size[1]")
    crop = (
        "rounds the margin of its center crop down and this model rounds it to the nearest even number, so that images "
        "whose margin is 3 more than a multiple of 4 are cropped one pixel apart"
    )
    clip = "keeps the values beyond the range of pixels that the cubic filter overshoots to, and this model clips them"
    std = torch.tensor(loaded.std)[:, None, None]
    for changed, steps in (
        (down, [crop]),
        (code.replace(_CLAMP, ""), [clip]),
        (down.replace(_CLAMP, ""), [crop, clip]),
    ):
        other = torch.stack([run_code(changed)(image.clone()) for image in pixels])
        if float(((made - other).abs() * std).max() * 255) <= ROUNDING:
            return f"{name} {', and '.join(steps)}"
    return f"{name} resizes or crops differently"
