"""Checkpoints of arbitrary ranks, and all that is in them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from swinv2_train.checkpoint.fragment import Fragment
from swinv2_train.checkpoint.layout import read_manifest, step_name
from swinv2_train.checkpoint.load import load_fragments
from swinv2_train.checkpoint.save import save
from tests.checkpoint.ranks import SHAPES, ThreadRanks, on_ranks

Tensors = dict[str, dict[str, torch.Tensor]]
STATE = {
    "train": {"step": 10, "guard": {"losses": [0.5, None], "norms": list(range(128))}},
    "optimizer": {"adam_steps": 9},
}


def values(shapes: dict[str, tuple[int, ...]] = SHAPES, *, seed: int = 0, ema: bool = True) -> Tensors:
    """Random weights, moments and averages, flattened; among them bit patterns that a conversion would change."""
    generator = torch.Generator().manual_seed(seed)
    parts = ("weight", "exp_avg", "exp_avg_sq", "ema") if ema else ("weight", "exp_avg", "exp_avg_sq")
    tensors = {
        name: {part: torch.randn(math.prod(shape), generator=generator) for part in parts}
        for name, shape in shapes.items()
    }
    odd = torch.tensor([0x7FA00001, -0x80000000, 1], dtype=torch.int64).to(torch.int32).view(torch.float32)
    next(iter(tensors.values()))["exp_avg"][:3] = odd  # a NaN that carries bits, -0.0, the smallest number
    return tensors


def write(
    directory: Path,
    step: int = 10,
    *,
    shapes: dict[str, tuple[int, ...]] = SHAPES,
    tensors: Tensors | None = None,
    cuts: Sequence[float] = (0.3, 0.31, 0.9),
    metrics: dict[str, float] | None = None,
    ema: bool = True,
    train: dict[str, Any] | None = None,
) -> Path:
    """Save parameters that are laid end to end and cut at these shares of their length: one rank more than cuts.

    Args:
        train: the state of the training, instead of that in `STATE`.
    """
    tensors = tensors or values(shapes, seed=step, ema=ema)
    total = sum(math.prod(shape) for shape in shapes.values())
    bounds = [0, *(int(cut * total) for cut in cuts), total]

    def work(ranks: ThreadRanks) -> object:
        fragments, offset = [], 0
        for name, shape in shapes.items():
            start = max(bounds[ranks.rank] - offset, 0)
            stop = min(bounds[ranks.rank + 1] - offset, math.prod(shape))
            if start < stop:
                runs = {part: flat[start:stop] for part, flat in tensors[name].items()}
                fragments.append(Fragment(name, shape, start, **runs))
            offset += math.prod(shape)
        state = {**STATE, "train": train or {**STATE["train"], "step": step}}
        metadata = {"task": {"name": "simmim"}, "model": {"embed_dim": 5}}
        return save(
            directory, step, fragments=fragments, state=state, metadata=metadata, ranks=ranks, metrics=metrics or {}
        )

    for outcome in on_ranks(len(bounds) - 1, work):
        if isinstance(outcome, Exception):
            raise outcome
    return directory / step_name(step)


def read(path: Path) -> dict[tuple[str, str], bytes]:
    """The bytes of every part of every parameter, through the loader that a run uses."""
    manifest, contents = read_manifest(path), {}
    parts = ("weight", "exp_avg", "exp_avg_sq", "ema") if manifest.has_ema else ("weight", "exp_avg", "exp_avg_sq")
    for name, shape in manifest.shapes.items():
        runs = {part: torch.full((math.prod(shape),), -1.0) for part in parts}
        load_fragments(path, [Fragment(name, tuple(shape), 0, **runs)])
        contents.update({(name, part): run.numpy().tobytes() for part, run in runs.items()})
    return contents
