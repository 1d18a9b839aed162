"""Export of weights: directories that timm, Hugging Face, onnxruntime, or torch load without this package.

An export is verified before it is reported as done: the other side loads what was written, both sides process the same
images, and a difference above the tolerance removes everything again. A directory appears only once it is complete.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from swinv2_train.checkpoint import disk
from swinv2_train.checkpoint.errors import CheckpointError
from swinv2_train.checkpoint.tensor_file import write_safetensors
from swinv2_train.config.checks import resolution
from swinv2_train.config.errors import ConfigError
from swinv2_train.config.model import ModelConfig
from swinv2_train.config.tasks import DETECTIONS, FEATURES, LOGITS, PIXEL_LOGITS
from swinv2_train.interop import onnx, peers
from swinv2_train.interop.agreement import disagreement, is_installed
from swinv2_train.interop.clips import made_clips, prepared_clips
from swinv2_train.interop.export_facts import clip_facts, exported_metadata, preprocess_facts
from swinv2_train.interop.images import made_images
from swinv2_train.interop.input_check import check_input, made_pictures, prepared, recorded_bits
from swinv2_train.interop.model_card import Comparison, model_card
from swinv2_train.interop.names import FORMATS, HEAD, in_backbone
from swinv2_train.interop.target import (
    HUGGINGFACE,
    ONNX,
    OWN,
    PROGRAM_FILES,
    TIMM,
    TORCH_EXPORT,
    check_room,
    check_target,
)
from swinv2_train.models.state import named_state
from swinv2_train.shortage import remedied

if TYPE_CHECKING:
    from swinv2_train.interop.load import LoadedModel

WEIGHTS = "model.safetensors"
TOLERANCE = {OWN: 1e-5, TIMM: 1e-5, HUGGINGFACE: 1e-5, ONNX: 1e-4, TORCH_EXPORT: 1e-5}
"""Largest allowed difference of an output, relative to the largest output if that is above 1.

onnxruntime has its own kernels, which round differently; the others run the same ones.
"""
_PEERS = {TIMM: ("timm",), HUGGINGFACE: ("transformers",), ONNX: ("onnxruntime", "onnx"), OWN: ("swinv2-train",)}
_TORCH_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_STORED = "the model takes stored values of any type (data.scale)"
_BATCHES = (1, 2, 5)
"""Batch sizes that a program is tested with, because it is traced with one and must accept any."""
_WHOLE = 2
"""Number of images that other formats are compared on."""


@dataclass(frozen=True)
class Exported:
    """A finished export."""

    path: Path
    files: dict[str, int]
    """Name and size in bytes of each file."""
    compared: Comparison
    notes: list[str] = field(default_factory=list)
    """Lines for the user."""


@dataclass(frozen=True)
class _Job:
    """Input of a writer."""

    loaded: LoadedModel
    inference: onnx.Inference
    directory: Path
    dtype: str
    weights: str
    images: Tensor
    bits: list[int]
    """Bit depths of the images that the model is for."""


def check_request(loaded: LoadedModel, out: Path, layout: str, dtype: str) -> None:
    """Reject what cannot be exported, before anything is written.

    Args:
        layout: one of `EXPORTS`.
        dtype: a key of `DTYPES`.

    Raises:
        ConfigError: with the obstacle and the fix.
    """
    check_target(out, layout, dtype)
    config, size = loaded.config, resolution(loaded.config)
    if layout in FORMATS:
        FORMATS[layout].check(config.model)
    if layout == TIMM:
        peers.check_timm(config.model, size)
    elif layout == HUGGINGFACE:
        try:
            peers.check_huggingface(config.model, size, config.data.crop_mode)
        except ConfigError as error:
            other = TIMM if _timm_holds(config.model, size) else OWN
            raise ConfigError(error.key, error.value, f"{error.hint}; --format {other} can hold it") from None
    if layout in (TIMM, HUGGINGFACE) and (reason := disagreement(layout, config.model, size)):
        hint = f"{reason}; use another data.resolution or model.window, or --format {OWN}"
        raise ConfigError("model.window", config.model.window, hint)


def _timm_holds(model: ModelConfig, size: tuple[int, int]) -> bool:
    """Return whether this geometry can be exported to timm, as far as the installed version can tell."""
    try:
        FORMATS[TIMM].check(model)
        peers.check_timm(model, size)
    except ConfigError:
        return False
    return not is_installed(TIMM) or disagreement(TIMM, model, size) is None


def export(
    loaded: LoadedModel,
    out: Path,
    layout: str,
    *,
    dtype: str = "fp32",
    pictures: Sequence[bytes] | Sequence[Tensor] | None = None,
    bits: int | None = None,
    weights: str = "raw",
) -> Exported:
    """Write a model into a new directory, load it there, and compare the results of both on encoded images.

    Args:
        loaded: consumed: its weights are rounded to `dtype`, and for a program its position tables are fixed.
        out: the directory; must not exist. Its parents are created.
        layout: one of `EXPORTS`.
        dtype: dtype of the stored weights; a key of `DTYPES`. They are rounded to nearest.
        pictures: encoded images to compare on, or clips as `encoded_videos` returns them, in addition to the synthetic
            ones.
        bits: 8 or 16, the depth of the images that the model is for; None: what its weights record, or else 8.
        weights: `raw`, or `ema` if the moving average was loaded, for the records.

    Raises:
        ConfigError: if the format cannot represent the model, or `out` exists.
        CheckpointError: if the outputs differ, the other side cannot load it, or it cannot be written.
    """
    check_request(loaded, out, layout, dtype)
    inference = exported_part(loaded, layout)
    whole = loaded.model if layout == OWN else inference
    parameters = sum(parameter.numel() for parameter in whole.parameters())
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"{out.parent} cannot be created ({remedied(error)})") from error
    check_room(out, (tuple(tensor.shape) for _, tensor in named_state(loaded.model)), dtype)
    depths = _depths(loaded, bits)
    count = sum(_BATCHES) if layout in PROGRAM_FILES else _WHOLE
    pixels, images = _inputs(loaded, pictures or (), [8] if depths is None else depths)
    encoded = len(images)
    if encoded < count:
        images = torch.cat([images, made_images(loaded, count - encoded)])
    different = len(images)
    original = _outputs(inference, images)
    rounding = _round(loaded.model, dtype)
    expected = _outputs(inference, images) if rounding else original
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    try:
        partial.mkdir()
        _write(_Job(loaded, inference, partial, dtype, weights, images, [8] if depths is None else depths), layout)
        computed = _loaded_back(partial, layout, images)
        compared = Comparison(
            by=", ".join(map(peers.version_of, _PEERS.get(layout, ("torch",)))),
            images=different,
            difference=_difference(computed, expected, layout),
            largest=float(expected.abs().max()),
            rounding=float((expected - original).abs().max()) if rounding else None,
            output=inference.output,
            parameters=parameters,
            input=check_input(loaded, partial, layout, pixels, images[:encoded], expected[:encoded]),
        )
        notes = _notes(loaded, layout, compared, depths)
        card = model_card(loaded, layout, out.name, dtype=dtype, weights=weights, compared=compared, notes=notes)
        (partial / "README.md").write_text(card, encoding="utf-8")
        files = {path.name: path.stat().st_size for path in sorted(partial.iterdir())}
        for path in partial.iterdir():
            disk.flush(path)
        check_target(out, layout, dtype)
        partial.rename(out)
        disk.flush(out.parent)
    except OSError as error:
        raise CheckpointError(f"{out} cannot be written ({remedied(error)})") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Exported(out, files, compared, notes)


def _depths(loaded: LoadedModel, bits: int | None) -> list[int] | None:
    """Return the bit depths of the images that a model is for: none of stored values; None if nothing records them.

    Raises:
        ConfigError: if `bits` contradicts the model.
    """
    for key, found, what in (("frames", [8], "videos are decoded to 8 bits"), ("scale", [], _STORED)):
        if getattr(loaded.config.data, key):
            if bits:
                raise ConfigError("bits", bits, f"{what}: leave --bits out")
            return found
    return [bits] if bits else recorded_bits(loaded)


def _inputs(
    loaded: LoadedModel, pictures: Sequence[bytes] | Sequence[Tensor], depths: Sequence[int]
) -> tuple[list[Tensor], Tensor]:
    """Return the pixels that the code in the README takes, and this package's inputs of them."""
    if not loaded.config.data.frames:
        return prepared(loaded, [*pictures, *made_pictures(loaded, depths)])  # type: ignore[list-item]
    pixels: list[Tensor] = [*pictures, *made_clips(loaded)]  # type: ignore[list-item]
    return pixels, prepared_clips(loaded, pixels)


def exported_part(loaded: LoadedModel, layout: str) -> onnx.Inference:
    """Return the part of a model that a format can hold. For a program, the model loses what it does not contain."""
    output = loaded.config.task.OUTPUT
    if output in (PIXEL_LOGITS, DETECTIONS) and layout in (TIMM, HUGGINGFACE):  # they have classifiers of images only
        output = FEATURES
    if layout in PROGRAM_FILES:
        for part in getattr(loaded.model, "NOT_IN_PROGRAMS", ()):
            setattr(loaded.model, part, None)
    return onnx.Inference(loaded.model, output).eval()


def _outputs(inference: onnx.Inference, images: Tensor) -> Tensor:
    with torch.no_grad():
        return onnx.joined(inference(images))


def _round(model: torch.nn.Module, dtype: str) -> bool:
    """Round the weights to their values in the file; return whether that changed anything."""
    if dtype == "fp32":
        return False
    for name, tensor in named_state(model):
        low = tensor.detach().to(_TORCH_DTYPES[dtype])
        if torch.any(torch.isinf(low) & torch.isfinite(tensor)):
            raise CheckpointError(f"{name} has values beyond the range of {dtype}; use another dtype")
        tensor.data.copy_(low)
    return True


def _difference(computed: Tensor, expected: Tensor, layout: str) -> float:
    """Return the largest difference of the outputs of both sides.

    Raises:
        CheckpointError: if it is above the tolerance.
    """
    if computed.shape != expected.shape:
        raise CheckpointError(f"{layout} returns outputs of {tuple(computed.shape)} instead of {tuple(expected.shape)}")
    largest = float((computed - expected).abs().max())
    allowed = TOLERANCE[layout] * max(1.0, float(expected.abs().max()))
    if not largest <= allowed:  # also true for nan
        raise CheckpointError(
            f"the outputs of {layout} differ by {largest:.3g}, but only {allowed:.3g} is allowed; nothing was written"
        )
    return largest


def canonical(model: torch.nn.Module, output: str) -> dict[str, Tensor]:
    """Return the weights of a model that other libraries support, under canonical names (see `names.py`).

    Args:
        output: `LOGITS`: the backbone and the classification head; others: only the backbone.
    """
    tensors = FORMATS[OWN].read({name: tensor.detach() for name, tensor in named_state(model)})
    head = HEAD if output == LOGITS else ()
    return {name: tensor for name, tensor in tensors.items() if in_backbone(name) or name in head}


def _write_weights(path: Path, tensors: Mapping[str, Tensor], dtype: str, metadata: Mapping[str, str]) -> None:
    def portions() -> Iterator[memoryview]:
        for tensor in tensors.values():
            values = tensor.to(_TORCH_DTYPES[dtype]).contiguous().flatten()
            yield memoryview(values.view(torch.uint8).numpy())

    shapes = {name: (dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    write_safetensors(path, shapes, portions(), {"format": "pt", **metadata})


def _write_own(job: _Job) -> None:
    source = job.loaded.source
    header = {
        "weights": job.weights,
        "geometry": json.dumps(exported_metadata(job.loaded)),
        "metrics": json.dumps(source.metrics),
    }
    if source.step is not None:
        header["step"] = str(source.step)
    tensors = {name: tensor.detach() for name, tensor in named_state(job.loaded.model)}
    _write_weights(job.directory / WEIGHTS, tensors, job.dtype, header)


def _write_timm(job: _Job) -> None:
    _write_foreign(job, TIMM)
    config = peers.timm_config(job.loaded, _num_classes(job.loaded), resolution(job.loaded.config), job.bits)
    peers.write_json(job.directory / "config.json", config)


def _write_huggingface(job: _Job) -> None:
    _write_foreign(job, HUGGINGFACE)
    loaded, size = job.loaded, resolution(job.loaded.config)
    multi_label = loaded.config.task.multi_label
    config = peers.huggingface_config(loaded, _num_classes(loaded), size, multi_label=multi_label)
    peers.write_json(job.directory / "config.json", config)
    processor = peers.huggingface_preprocessor(loaded, size, job.bits)
    peers.write_json(job.directory / "preprocessor_config.json", processor)


def _write_foreign(job: _Job, layout: str) -> None:
    tensors = FORMATS[layout].write(canonical(job.loaded.model, job.inference.output), job.loaded.config.model)
    _write_weights(job.directory / WEIGHTS, tensors, job.dtype, {})


def _num_classes(loaded: LoadedModel) -> int:
    task = loaded.config.task
    return (task.classes or 0) if task.OUTPUT == LOGITS else 0


def _write_onnx(job: _Job) -> None:
    config = job.loaded.config
    facts = {"resolution": list(resolution(config)), **clip_facts(config), **preprocess_facts(job.loaded, job.bits)}
    if job.bits:
        facts["pixels_divided_by"] = [2**bits - 1 for bits in job.bits]
    if job.loaded.class_names:
        facts["classes"] = job.loaded.class_names
    metadata = {key: value if isinstance(value, str) else json.dumps(value) for key, value in facts.items()}
    onnx.write_onnx(_program(job), job.directory / PROGRAM_FILES[ONNX], job.inference.names, metadata)


def _write_program(job: _Job) -> None:
    onnx.write_program(_program(job), job.directory / PROGRAM_FILES[TORCH_EXPORT])


def _program(job: _Job) -> torch.export.ExportedProgram:
    example = torch.cat([job.images[:1]] * 2)  # a batch of one would be treated as a constant
    return onnx.trace(job.inference, job.loaded.config.model, example)


_WRITERS: dict[str, Callable[[_Job], None]] = {
    OWN: _write_own,
    TIMM: _write_timm,
    HUGGINGFACE: _write_huggingface,
    ONNX: _write_onnx,
    TORCH_EXPORT: _write_program,
}


def _write(job: _Job, layout: str) -> None:
    try:
        _WRITERS[layout](job)
    except (ConfigError, CheckpointError, OSError):
        raise
    except Exception as error:  # the exporters of torch may raise anything
        reason = " ".join(str(error).split())[:500] or type(error).__name__
        raise CheckpointError(f"this model cannot be written as {layout}: {reason}") from error


def _loaded_back(directory: Path, layout: str, images: Tensor) -> Tensor:
    """Return the outputs of the other side for what was written.

    Raises:
        CheckpointError: if it cannot load it.
    """
    try:
        if layout == OWN:
            return _run_own(directory, images)
        if layout == TIMM:
            return peers.run_timm(directory, images)
        if layout == HUGGINGFACE:
            return peers.run_huggingface(directory, images)
        run = onnx.run_onnx if layout == ONNX else onnx.run_program
        return torch.cat(run(directory / PROGRAM_FILES[layout], _batches(images)))
    except Exception as error:  # other libraries may raise anything here
        versions = ", ".join(map(peers.version_of, _PEERS.get(layout, ("torch",))))
        reason = " ".join(str(error).split()) or type(error).__name__
        raise CheckpointError(f"{versions} cannot load what was written, so it was removed: {reason}") from error


def _batches(images: Tensor) -> list[Tensor]:
    """Return images in batches of different sizes."""
    sizes = itertools.cycle(_BATCHES)
    parts, rest = [], images
    while len(rest):
        size = next(sizes)
        parts.append(rest[:size])
        rest = rest[size:]
    return parts


def _run_own(directory: Path, images: Tensor) -> Tensor:
    from swinv2_train.interop.load import load_model

    loaded = load_model(directory)
    return _outputs(onnx.Inference(loaded.model, loaded.config.task.OUTPUT).eval(), images)


def _notes(loaded: LoadedModel, layout: str, compared: Comparison, bits: list[int] | None) -> list[str]:
    """Return lines for the user.

    Args:
        bits: depths of the images that the model is for; None if they were assumed.
    """
    notes = []
    if compared.output == FEATURES and layout != OWN:
        task = loaded.config.task
        why = "has no classes" if task.classes is None else "has no plain classification head"
        notes.append(f"a {task.title} model {why}: exported as a feature extractor, without {task.EXTRA_PARTS}")
    if compared.output == DETECTIONS and layout in PROGRAM_FILES:
        notes.append(
            "the program contains backbone and feature pyramid of the detector; proposals and heads have sizes that "
            "depend on the image: use swinv2-predict for boxes"
        )
    if layout == HUGGINGFACE:
        notes.append(
            "transformers adds the mask of shifted windows twice (-200 instead of -100), which the difference includes"
        )
        if bits == [8, 16]:
            notes.append("the processor is for images of 8 bits; set rescale_factor=1/65535 for those of 16")
    if bits is None and layout in (HUGGINGFACE, ONNX):
        notes.append(
            "nothing records the depth of the images that this model was trained on: the files say 8 bits; --bits 16 "
            "writes them for 16"
        )
    return notes
