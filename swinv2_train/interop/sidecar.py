"""The JSON files beside exported weights: config.json of timm or Hugging Face, and preprocessor_config.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from swinv2_train.checkpoint.errors import CheckpointError
from swinv2_train.interop.geometry import Windows, windows_from_config, windows_from_name

_RESAMPLING = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}
"""PIL's numbers."""


@dataclass(frozen=True)
class Sidecar:
    """What stands beside the weights; empty where there is no such file."""

    config: Mapping[str, Any] = field(default_factory=dict)
    preprocessor: Mapping[str, Any] = field(default_factory=dict)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        CheckpointError: if it is none.
    """
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read ({error})") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is no JSON object")
    return content


def read(directory: Path) -> Sidecar:
    """What stands beside the weights in a directory.

    Raises:
        CheckpointError: if one of the files is broken.
    """
    paths = [directory / name for name in ("config.json", "preprocessor_config.json")]
    return Sidecar(*(read_json(path) if path.is_file() else {} for path in paths))


def windows(beside: Sidecar, training_config: Any) -> Windows | None:
    """From the files beside the weights, or from the config that an official training checkpoint holds."""
    config = beside.config
    found = windows_from_config(config)
    if found is None and isinstance(config.get("model_args"), Mapping):
        found = windows_from_config({**_timm_input(config), **config["model_args"]})
    if found is None and isinstance(config.get("architecture"), str):
        found = windows_from_name(config["architecture"])
    return found or _official_windows(training_config)


def _timm_input(config: Mapping[str, Any]) -> dict[str, Any]:
    size = (config.get("pretrained_cfg") or {}).get("input_size")
    return {"img_size": size[1:]} if size else {}


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
    except (KeyError, TypeError, AttributeError):
        return None
    if found:
        found.origin = "the config inside it"
    return found


def put_preprocessing(geometry: dict[str, Any], beside: Sidecar) -> None:
    """Write mean, deviation, crop and interpolation of a model into its geometry, as far as they are known.

    timm says all of it. Hugging Face's preprocessor resizes to the input without a crop, unless it says otherwise. The
    official code takes the centre, and no crop from 384 pixels on. What this program has no such crop or interpolation
    for is written down under its own name, and refused where images are to be prepared.
    """
    data, crop = geometry["data"], geometry["preprocess"]
    timm, processor = beside.config.get("pretrained_cfg") or {}, beside.preprocessor
    resolution = data.get("resolution")
    if resolution and max(resolution) >= 384:
        crop["crop_mode"] = "squash"
    if processor:
        data["mean"] = list(processor.get("image_mean") or data["mean"])
        data["std"] = list(processor.get("image_std") or data["std"])
        crop["crop_mode"] = "center" if processor.get("do_center_crop") else "squash"
        crop["crop_pct"] = float(processor.get("crop_pct") or crop["crop_pct"])
        resample = processor.get("resample")
        crop["interpolation"] = _RESAMPLING.get(resample, str(resample)) if resample is not None else "bicubic"
    if timm:
        data["mean"] = list(timm.get("mean") or data["mean"])
        data["std"] = list(timm.get("std") or data["std"])
        crop["crop_pct"] = float(timm.get("crop_pct") or crop["crop_pct"])
        crop["crop_mode"] = timm.get("crop_mode") or "center"
        if crop["crop_mode"] == "squash" and crop["crop_pct"] != 1:
            crop["crop_mode"] = "squash-and-crop"  # timm's squash also crops, by this share; ours does not
        crop["interpolation"] = timm.get("interpolation") or "bicubic"
        if timm.get("input_size"):
            data.setdefault("resolution", list(timm["input_size"][1:]))
    channels = geometry["model"]["in_channels"]
    for key in ("mean", "std"):
        if len(data[key]) != channels:  # nobody has said; better absent than wrong
            del data[key]


def class_names(beside: Sidecar, num_classes: int) -> list[str] | None:
    """The names of the classes, where the files beside the weights have one for each."""
    named = beside.config.get("id2label")
    if isinstance(named, Mapping):
        names = [named.get(str(index)) for index in range(num_classes)]
        invented = all(name == f"LABEL_{index}" for index, name in enumerate(names))
        return None if invented or None in names or not names else [str(name) for name in names]
    listed = beside.config.get("label_names")
    return [str(name) for name in listed] if isinstance(listed, list) and len(listed) == num_classes else None
