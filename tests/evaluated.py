"""Weights in files and labeled shards, for the tests of evaluation and analysis, without training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from swinv2_train.config.compose import to_dict
from swinv2_train.config.model import ModelConfig
from swinv2_train.config.schema import Config
from swinv2_train.config.tasks import ClassificationConfig, SimMIMConfig, TaskConfig, VideoConfig
from tests.data.samples import jpeg, write_tar

SIZE = 32
TINY: dict[str, Any] = {"embed_dim": 16, "depths": [1, 1, 2, 1], "num_heads": [1, 2, 4, 8], "window": 4}


def labelled_shards(folder: Path, count: int, num_classes: int, *, broken: tuple[int, ...] = (), seed: int = 0) -> Path:
    """A tar of JPEGs named img00000, ... whose label is their number modulo `num_classes`."""
    members = []
    for number in range(count):
        data = b"\xff\xd8\xff broken" if number in broken else jpeg(seed + number)
        members += [(f"img{number:05d}.jpg", data), (f"img{number:05d}.cls", str(number % num_classes).encode())]
    return write_tar(folder / "val-000000.tar", members)


def with_label(path: Path, label: Any) -> Path:
    """Set the `data.label` that a file of weights records."""
    with safe_open(path, "pt") as file:
        geometry = json.loads(file.metadata()["geometry"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    geometry["data"]["label"] = label
    save_file(tensors, path, metadata={"geometry": json.dumps(geometry)})
    return path


def lively(model: nn.Module, seed: int = 0) -> nn.Module:
    """The model with weights in which every parameter has a say; fresh ones would make every block an identity."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            values = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.2 * values if name.endswith("norm.weight") else 0.3 * values)
    return model.eval()


def save_weights(
    path: Path, task: TaskConfig, names: list[str] | None = None, seed: int = 0, frames: int = 0, **model: Any
) -> Path:
    """A safetensors file as the package writes it, of a tiny model with random weights; with `frames`, of clips."""
    config = ModelConfig(**{**TINY, **model})
    built = task.implementation().model_of(Config(model=config, task=task), (SIZE, SIZE))
    metadata = {
        "task": to_dict(task),
        "model": to_dict(config),
        "data": {
            "resolution": [SIZE, SIZE],
            "mean": [0.5] * config.in_channels,
            "std": [0.25] * config.in_channels,
            **({"frames": frames, "frame_stride": 2} if frames else {}),
        },
        "preprocess": {"crop_pct": 0.875, "crop_mode": "center", "interpolation": "bilinear"},
        "classes": names,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: value.detach().contiguous() for name, value in lively(built, seed).named_parameters()}
    save_file(tensors, path, metadata={"geometry": json.dumps(metadata)})
    return path


def classifier(path: Path, num_classes: int = 3, names: list[str] | None = None, **model: Any) -> Path:
    """A file of a classifier."""
    return save_weights(path, ClassificationConfig(num_classes=num_classes), names, **model)


def clip_classifier(path: Path, names: list[str] | None = None, **task: Any) -> Path:
    """A file of a classifier of clips: 8 frames at stride 2, windows of 3 of the 4 tokens in time."""
    section = VideoConfig(**{"num_classes": 3, "dropout": 0.0, **task})
    return save_weights(path, section, names, frames=8, temporal_patch=2, temporal_window=3, depths=[1, 2, 1, 1])


def encoder(path: Path) -> Path:
    """A file of a SimMIM model."""
    return save_weights(path, SimMIMConfig(mask_patch_size=16))
