"""The parts of a run are built from its config, or refused in a sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

from swinv2_train.exit_codes import WRONG_USE
from tests.runs import make_labelled_data, run_here, tiny_classification


def test_a_run_without_a_known_number_of_classes_says_what_to_give(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shards = make_labelled_data(tmp_path / "shards")
    assert run_here(tiny_classification(shards, tmp_path / "run", "task.num_classes=0")) == WRONG_USE
    assert "task.num_classes=0: " in capsys.readouterr().err
