"""The prediction for one file, as `swinv2-predict` makes it and every output shows it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass
class Prediction:
    """Classes that a model predicts for one file."""

    path: Path
    classes: list[tuple[int, str, float]]
    """Number, name, and probability of the most likely classes, best first."""
