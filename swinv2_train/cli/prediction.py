"""Prediction for one file, as every output of `swinv2-predict` shows it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass
class Prediction:
    """Classes that a model predicts for one file."""

    path: Path
    classes: list[tuple[int, str, float]]
    """Number, name, and probability of the most likely classes, best first."""
