"""Small models with random weights, as files of our own layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from swinv2_train.checkpoint.tensor_file import write_safetensors
from swinv2_train.config.compose import to_dict
from swinv2_train.config.model import ModelConfig
from swinv2_train.config.tasks import (
    ClassificationConfig,
    DetectionConfig,
    SegmentationConfig,
    SimMIMConfig,
    TaskConfig,
    VideoConfig,
)
from swinv2_train.models import ImageClassifier, MaskedImageModel, Segmenter
from swinv2_train.models.detection import Detector

CLASSES = [f"kind {number}" for number in range(6)]
MEAN, STD = [0.4, 0.45, 0.5, 0.55], [0.2, 0.25, 0.3, 0.35]
SMALL: dict[str, Any] = {
    "name": "small",
    "embed_dim": 8,
    "depths": [1, 2, 2, 1],
    "num_heads": [1, 2, 4, 8],
    "window": 4,
}


def write_model(
    path: Path,
    *,
    simmim: bool = False,
    segmentation: SegmentationConfig | None = None,
    detection: DetectionConfig | None = None,
    size: int | tuple[int, int] = 64,
    frames: int = 0,
    seed: int = 0,
    **model: Any,
) -> Path:
    """A model whose every parameter is random, so that none can be lost unseen; returns the path."""
    torch.manual_seed(seed)
    sides = (size, size) if isinstance(size, int) else size
    config = ModelConfig(**{**SMALL, **model})
    plain = VideoConfig if frames else ClassificationConfig
    task: TaskConfig = SimMIMConfig() if simmim else segmentation or plain(num_classes=len(CLASSES))
    built: torch.nn.Module = MaskedImageModel(config, sides) if simmim else ImageClassifier(config, len(CLASSES), sides)
    if segmentation is not None:
        segmentation.num_classes = len(CLASSES)
        built = Segmenter(config, segmentation, len(CLASSES), sides)
    if detection is not None:
        task, detection.num_classes = detection, len(CLASSES)
        built = Detector(config, detection, len(CLASSES), sides)
    tensors = {}
    for name, parameter in built.named_parameters():
        noise = torch.randn_like(parameter)
        values = parameter.detach() + 0.3 * noise if parameter.ndim < 2 else 0.15 * noise
        tensors[name] = (noise * 0.5 + 2.0 if name.endswith("logit_scale") else values).contiguous()
    clips = {"frames": frames, "frame_stride": 3} if frames else {}
    statistics = {"mean": MEAN[: config.in_channels], "std": STD[: config.in_channels]}
    metadata = {
        "task": to_dict(task),
        "model": to_dict(config),
        "data": {"resolution": list(sides), **statistics, **clips},
        "classes": None if simmim else CLASSES,
        "preprocess": {"crop_pct": 0.8, "crop_mode": "center", "interpolation": "bicubic"},
    }
    header = {"weights": "raw", "geometry": json.dumps(metadata), "metrics": '{"eval/top1": 0.75}', "step": "40"}
    shapes = {name: ("fp32", tuple(tensor.shape)) for name, tensor in tensors.items()}
    data = (memoryview(tensor.flatten().view(torch.uint8).numpy()) for tensor in tensors.values())
    write_safetensors(path, shapes, data, header)
    return path


def make_picture(path: Path, size: tuple[int, int] = (90, 70), seed: int = 0) -> Path:
    """A smooth random scene; returns the path."""
    cells = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    Image.fromarray(cells).resize(size, Image.Resampling.BICUBIC).save(path)
    return path
