"""JSON files next to exported weights: config.json of timm or Hugging Face, and preprocessor_config.json."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from swinv2_train.checkpoint.errors import CheckpointError
from swinv2_train.config.values import VALUE_KEYS
from swinv2_train.interop.metadata import Windows, windows_from_config, windows_from_name
from swinv2_train.interop.peers import OWN_INPUT
from swinv2_train.reading import UnreadableError, read_object

_RESAMPLING = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}
"""PIL's numbers."""
_VIT = {
    "size": {"height": 224, "width": 224},
    "do_center_crop": False,
    "resample": 2,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}
"""Defaults of Hugging Face's ViTImageProcessor, which its SwinV2 models use, for keys that a file does not set."""
_BIT = {
    "size": {"shortest_edge": 224},
    "crop_size": {"height": 224, "width": 224},
    "do_center_crop": True,
    "resample": 3,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}
"""Defaults of BitImageProcessor and CLIPImageProcessor."""


@dataclass(frozen=True)
class Sidecar:
    """Content of the files next to the weights; empty for files that do not exist."""

    directory: Path
    config: Mapping[str, Any] = field(default_factory=dict)
    preprocessor: Mapping[str, Any] = field(default_factory=dict)

    @property
    def pretrained_cfg(self) -> Mapping[str, Any]:
        """timm's record of the input; older files have it at the top level. Empty for other files."""
        inner = self.config.get("pretrained_cfg")
        if isinstance(inner, Mapping):
            return inner
        return self.config if "architecture" in self.config else {}


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        CheckpointError: if the file does not contain one.
    """
    try:
        return read_object(path)
    except (OSError, UnreadableError) as error:
        raise CheckpointError(f"{path} cannot be read ({error})") from error


def read(directory: Path) -> Sidecar:
    """Read the files next to the weights in a directory.

    Raises:
        CheckpointError: if one of the files is broken.
    """
    paths = [directory / name for name in ("config.json", "preprocessor_config.json")]
    return Sidecar(directory, *(read_json(path) if path.is_file() else {} for path in paths))


def windows(files: Sidecar, training_config: Any) -> Windows | None:
    """Return the windows from the files next to the weights, or from the config in an official training checkpoint.

    timm's file names an architecture and the differences from it: the arguments of the model take precedence, then the
    input size, then the architecture.

    Raises:
        CheckpointError: if config.json has invalid windows or sizes.
    """
    config = files.config
    try:
        found = windows_from_config(config)
        if found is None and (files.pretrained_cfg or config.get("model_args")):
            found = windows_from_config(_timm_model(files))
    except (TypeError, ValueError, IndexError, OverflowError) as error:
        raise CheckpointError(f"{files.directory / 'config.json'} has an invalid window or size ({error})") from error
    return found or _official_windows(training_config)


def _timm_model(files: Sidecar) -> dict[str, Any]:
    named = windows_from_name(str(files.config.get("architecture"))) or Windows()
    model: dict[str, Any] = {"img_size": named.resolution}
    if named.window:
        model["window_size"] = named.window[0]
    if named.pretrained:
        model["pretrained_window_sizes"] = named.pretrained
    if files.pretrained_cfg.get("input_size"):
        model["img_size"] = files.pretrained_cfg["input_size"][1:]
    saved = files.config.get("model_args")
    return {**model, **(saved if isinstance(saved, Mapping) else {})}


def _official_windows(config: Any) -> Windows | None:
    try:
        model, data = config["MODEL"]["SWINV2"], config["DATA"]
        found = windows_from_config(
            {
                "window_size": model["WINDOW_SIZE"],
                "image_size": data["IMG_SIZE"],
                "pretrained_window_sizes": model.get("PRETRAINED_WINDOW_SIZES"),
            }
        )
    except (KeyError, TypeError, AttributeError, ValueError, IndexError):
        return None
    if found:
        found.origin = "the config inside it"
    return found


def put_preprocessing(metadata: dict[str, Any], files: Sidecar) -> list[str]:
    """Write mean, standard deviation, crop, and interpolation of a model into its metadata, as far as they are known.

    The official code uses the center crop, and no crop for 384 pixels or more. A crop or interpolation that this
    package does not have is recorded under its own name, and rejected when images are prepared.

    Returns:
        Lines for the user.

    Raises:
        CheckpointError: if a file has something other than a number where one is required.
    """
    data, crop = metadata["data"], metadata["preprocess"]
    resolution = data.get("resolution")
    if resolution and max(resolution) >= 384:
        crop["crop_mode"] = "squash"
    notes: list[str] = []
    place = "preprocessor_config.json"
    try:
        if files.preprocessor:
            notes += _put_processor(data, crop, files.preprocessor, metadata["model"]["in_channels"])
        place = "config.json"
        if files.pretrained_cfg:
            _put_timm(data, crop, files.pretrained_cfg)
    except (TypeError, ValueError, KeyError, IndexError, OverflowError, ZeroDivisionError) as error:
        raise CheckpointError(f"{files.directory / place} is broken ({type(error).__name__}: {error})") from error
    for given in (files.preprocessor, files.config):
        _put_own(crop, given.get(OWN_INPUT))
    channels = metadata["model"]["in_channels"]
    for key in ("mean", "std"):
        if len(data[key]) != channels:  # unknown for this number of channels; better absent than wrong
            del data[key]
    return notes


def _put_own(crop: dict[str, Any], given: Any) -> None:
    """Read the part of the input that this package writes for itself into the files of other libraries."""
    if not isinstance(given, Mapping):
        return
    bits = given.get("bits")
    if isinstance(bits, list) and bits in ([8], [16], [8, 16]):
        crop["bits"] = bits
    if given.get("background") is not None:
        crop["background"] = given["background"]
    if given.get("crop_mode") == "native":
        crop["crop_mode"] = "native"
    crop.update({key: given[key] for key in VALUE_KEYS if given.get(key) is not None})


def _put_timm(data: dict[str, Any], crop: dict[str, Any], timm: Mapping[str, Any]) -> None:
    for key in ("mean", "std"):
        data[key] = [float(value) for value in timm.get(key) or data[key]]
    crop["crop_pct"] = float(timm.get("crop_pct") or crop["crop_pct"])
    crop["crop_mode"] = timm.get("crop_mode") or "center"
    if crop["crop_mode"] == "squash" and crop["crop_pct"] != 1:
        crop["crop_mode"] = "squash-and-crop"  # timm's squash also crops, by this fraction; this package's does not
    crop["interpolation"] = timm.get("interpolation") or "bicubic"
    if timm.get("input_size"):
        data.setdefault("resolution", [int(side) for side in timm["input_size"][1:]])


def _put_processor(data: dict[str, Any], crop: dict[str, Any], given: Mapping[str, Any], channels: int) -> list[str]:
    """Read the input that an image processor of Hugging Face creates.

    With any rescale_factor, mean and standard deviation as fractions of the largest pixel value are the same numbers.
    """
    kind = str(given.get("image_processor_type") or given.get("feature_extractor_type") or "")
    processor = {**(_BIT if kind.startswith(("Bit", "CLIP")) else _VIT), **given}
    notes = []
    given_factor = processor.get("rescale_factor")
    factor = 1 / 255 if given_factor is None else float(given_factor)
    factor = factor if processor.get("do_rescale", True) else 1.0
    bits = 16 if factor < 1 / 4096 else 8
    share = factor * (2**bits - 1)
    normalized = processor.get("do_normalize", True)
    mean, std = (processor["image_mean"], processor["image_std"]) if normalized else ([0.0], [1.0])
    # One number for all channels, or one per channel; exactly those of the file if the factor is the usual one.
    scale = 1.0 if math.isclose(share, 1, rel_tol=1e-3) else share
    for key, values in (("mean", mean), ("std", std)):
        listed = values if isinstance(values, (list, tuple)) else [values]
        numbers = [float(value) / scale for value in listed]
        data[key] = numbers * channels if len(numbers) == 1 else numbers
    if bits == 16:
        crop["bits"] = [16]
    if scale != 1:
        notes.append(
            f"its processor multiplies pixels by {factor:.6g}: mean and standard deviation refer to pixels in [0, 1]"
        )
    crop["interpolation"] = _RESAMPLING.get(processor["resample"], str(processor["resample"]))
    crop["crop_mode"], made = _processor_crop(processor, crop)
    if made is not None:
        if data.get("resolution") not in (None, list(made)):
            height, width = data["resolution"]
            notes.append(
                f"its processor creates images of {made[0]}x{made[1]} pixels, but its model is for {height}x{width}, "
                f"which is used; data.resolution=[{made[0]},{made[1]}] follows the processor"
            )
        data.setdefault("resolution", list(made))
    if crop["crop_mode"] == "center":
        notes.append(
            "its processor rounds the margin of the crop down and this package to the nearest even number of pixels, "
            "so that some images are cropped one pixel apart"
        )
    return notes


def _processor_crop(processor: Mapping[str, Any], crop: dict[str, Any]) -> tuple[str, tuple[int, int] | None]:
    """Return a processor's crop under this package's name, or its own if there is none, and the size of its result."""
    if not processor.get("do_resize", True):
        return "no-resize", None
    size, cropped = processor["size"], bool(processor.get("do_center_crop"))
    if isinstance(size, int):
        size = {"shortest_edge": size} if cropped else {"height": size, "width": size}
    if not isinstance(size, Mapping):
        raise ValueError(f"size={size!r}")
    wanted = processor.get("crop_size") or {}
    if isinstance(wanted, int):
        wanted = {"height": wanted, "width": wanted}
    target = (int(wanted["height"]), int(wanted["width"])) if cropped and wanted else None
    if "height" in size:
        made = (int(size["height"]), int(size["width"]))
        return ("squash", made) if target in (None, made) else ("squash-and-crop", target)
    if "shortest_edge" not in size or "longest_edge" in size or target is None:
        return "shortest-edge", None
    if target[0] != target[1]:
        return "shortest-edge-and-crop", target
    crop["crop_pct"] = _share(target[0], int(size["shortest_edge"]), crop, processor)
    return ("center" if int(size["shortest_edge"]) >= target[0] else "pad"), target


def _share(side: int, edge: int, crop: Mapping[str, Any], processor: Mapping[str, Any]) -> float:
    """Return the crop_pct for which an image is resized to this edge before the crop: one that the file or the official
    code uses, if it matches."""
    for share in (processor.get("crop_pct"), crop["crop_pct"], side / edge, math.nextafter(side / edge, 0)):
        if share and int(side / float(share)) == edge:
            return float(share)
    return side / edge


def class_names(files: Sidecar, num_classes: int) -> list[str] | None:
    """Return the class names if the files next to the weights have one for each class."""
    named = files.config.get("id2label")
    if isinstance(named, Mapping):
        names = [named.get(str(index)) for index in range(num_classes)]
        invented = all(name == f"LABEL_{index}" for index, name in enumerate(names))
        return None if invented or None in names or not names else [str(name) for name in names]
    listed = files.config.get("label_names") or files.pretrained_cfg.get("label_names")
    return [str(name) for name in listed] if isinstance(listed, list) and len(listed) == num_classes else None
