"""A run that loses its memory or its directory ends with one sentence and code 1."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from swinv2_train.engine import loop
from swinv2_train.engine.loop import Trainer
from swinv2_train.exit_codes import FAILED, FINISHED
from swinv2_train.launch.status import read_status
from tests.runs import run_here, tiny_run

SHORT = (
    "optim.steps=4",
    "data.num_workers=0",
    "eval.every_steps=0",
    "eval.figure_every_steps=0",
    "checkpoint.retries=0",
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore"),
            ("GPU", "engine.micro_batch"),
        ),
        (MemoryError(), ("the host is out of memory", "data.num_workers")),
    ],
    ids=["gpu", "host"],
)
def test_a_run_that_is_out_of_memory_says_what_to_change(
    shards: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: Exception,
    words: tuple[str, ...],
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(loop, "forward_backward", fail)
    assert run_here(tiny_run(shards, tmp_path / "run", *SHORT)) == FAILED
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("swinv2-train: ")
    log = (tmp_path / "run" / "log.txt").read_text()
    for word in words:
        assert word in last
        assert word in log
    assert read_status(tmp_path / "run")["status"] == "failed"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("when", "how"), [("in the middle", "moved"), ("in the middle", "replaced"), ("at the end", "removed")]
)
def test_a_run_whose_directory_is_gone_does_not_count_as_finished(
    shards: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    when: str,
    how: str,
) -> None:
    """Also if another directory is in its place, as TensorBoard makes one, and if all is saved already."""
    run_dir, count = tmp_path / "run", Trainer.finish_saving if when == "at the end" else Trainer.count

    def lose(self: Trainer, **options: bool) -> None:
        if when == "at the end":
            self.checkpoints.begin(self.state, self.metrics)
            self.checkpoints.saver.close()
        if run_dir.exists() and not (tmp_path / "elsewhere").exists() and self.state.step >= 2:
            shutil.move(run_dir, tmp_path / "elsewhere")
            if how == "removed":
                shutil.rmtree(tmp_path / "elsewhere")
            if how == "replaced":
                run_dir.mkdir()
        count(self, **options)

    monkeypatch.setattr(Trainer, "finish_saving" if when == "at the end" else "count", lose)
    assert run_here(tiny_run(shards, run_dir, *SHORT)) == FAILED
    assert f"run.dir={run_dir} was moved or removed during the run" in capsys.readouterr().err
    monkeypatch.undo()
    if how == "moved":
        assert run_here(tiny_run(shards, tmp_path / "elsewhere", *SHORT)) == FINISHED
