"""The weights of a checkpoint, read by the safetensors library: nothing of the package's own readers is in it."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from safetensors import safe_open

from swinv2_train.checkpoint.layout import rank_file, read_manifest, tensor_key


def load_weights(path: Path, *, ema: bool = False) -> dict[str, torch.Tensor]:
    """The whole fp32 weights of a checkpoint by parameter name, or their moving average."""
    manifest = read_manifest(path)
    kind, part = ("ema", "ema") if ema else ("model", "weight")
    weights = {name: torch.full((math.prod(shape),), float("nan")) for name, shape in manifest.shapes.items()}
    for record in manifest.fragments:
        with safe_open(path / rank_file(kind, record.rank, manifest.world_size), framework="pt") as file:
            run = file.get_tensor(tensor_key(record.name, record.start, part))
        weights[record.name][record.start : record.start + record.count] = run
    return {name: flat.view(manifest.shapes[name]) for name, flat in weights.items()}
