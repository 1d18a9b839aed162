"""A refused step and its replay, for the tests of every task."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from swinv2_train.exit_codes import FINISHED
from swinv2_train.tasks.task import Losses, Task
from tests.runs import run_here


def refuse_and_replay(
    monkeypatch: pytest.MonkeyPatch, task: type[Task], term: str, position: int, overrides: list[str]
) -> None:
    """Run with a term of the loss that is not a number for one sample; the replay must find that sample, and draw it.

    Args:
        overrides: of a run that skips bad steps; it may continue another one.
    """
    real = task.loss

    def poisoned(self: Task, model: torch.nn.Module, batch: dict[str, Any]) -> Losses:
        terms = real(self, model, batch).terms
        bad = float("nan") if position in batch["position"].tolist() else 1.0
        return Losses({**terms, term: terms[term] * bad})

    monkeypatch.setattr(task, "loss", poisoned)
    refuse_and_replay_poisoned(position, overrides)


def refuse_and_replay_poisoned(position: int, overrides: list[str]) -> None:
    """The same with a loss that is already not a number for that sample."""
    assert run_here(overrides) == FINISHED
    (run_dir,) = (each.removeprefix("run.dir=") for each in overrides if each.startswith("run.dir="))
    (incident,) = (Path(run_dir) / "incidents").glob("*.json")
    assert run_here([f"replay={incident}"]) == FINISHED
    report = json.loads((incident.with_suffix("") / "replay.json").read_text())
    assert report["same_to_the_bit"]
    assert report["worst_samples"][0]["position"] == position
    assert list(incident.with_suffix("").rglob("*worst-samples-*.png"))
