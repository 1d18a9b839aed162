"""Exit codes: usage errors are found before a run begins, and all ranks end with one code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from swinv2_train.checkpoint.errors import CheckpointError
from swinv2_train.cli.ending import run_command
from swinv2_train.config.errors import ConfigError
from swinv2_train.data.errors import BrokenSample, DataError, UnreachableData
from swinv2_train.data.retries import with_retries
from swinv2_train.data.shards import ShardSet
from swinv2_train.engine.guard import mostly_skipped
from swinv2_train.engine.state import TrainState
from swinv2_train.errors import MainRankError, RunError
from swinv2_train.exit_codes import FAILED, FINISHED, STOPPED, WRONG_USE, code_of
from swinv2_train.launch.failures import begun, on_main, together
from swinv2_train.launch.launcher import outcome
from swinv2_train.launch.status import read_status, write_status
from swinv2_train.tasks.simmim import SimMIM
from swinv2_train.tasks.task import Losses
from tests.engine.threads import on_ranks
from tests.runs import metrics, run_here, tiny_run

CODES = [
    (ConfigError("", "x", "wrong"), WRONG_USE),
    (DataError("wrong"), WRONG_USE),
    (UnreachableData("wrong"), FAILED),
    (CheckpointError("wrong"), FAILED),
    (RunError("wrong"), FAILED),
    (MainRankError("wrong", WRONG_USE), WRONG_USE),
    (OSError("wrong"), FAILED),
]
SHORT = ("data.num_workers=0", "eval.figure_every_steps=0", "eval.every_steps=0")


@pytest.mark.parametrize(("error", "code"), CODES, ids=lambda value: type(value).__name__)
def test_the_code_of_an_error(error: Exception, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> int:
        raise error

    assert code_of(error) == code
    assert run_command("command", fail) == code
    assert capsys.readouterr().err == ("" if isinstance(error, MainRankError) else "command: wrong\n")
    assert code_of(ValueError("a mistake of the program")) is None


@pytest.mark.parametrize("error", [error for error, _ in CODES if not isinstance(error, OSError)], ids=str)
def test_errors_after_the_start_are_not_usage_errors(error: Exception) -> None:
    with pytest.raises(RuntimeError, match="wrong") as caught, begun():
        raise error
    assert code_of(caught.value) == FAILED
    assert isinstance(caught.value, MainRankError) == isinstance(error, MainRankError)


@pytest.mark.parametrize("where", [0, 1])
@pytest.mark.parametrize("agree", [on_main, together])
@pytest.mark.parametrize(("error", "code"), CODES[:5], ids=lambda value: type(value).__name__)
def test_all_ranks_end_with_the_code_of_the_rank_that_failed(
    error: Exception, code: int, agree: Any, where: int
) -> None:
    def on_rank(ranks: Any) -> int | None:
        def work() -> None:
            if ranks.rank == where:
                raise error

        try:
            agree(ranks, work)
        except Exception as caught:
            return code_of(caught)
        return None

    expected = None if agree is on_main and where else code
    assert on_ranks(2, on_rank) == [expected, expected]


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        ("starting", WRONG_USE, WRONG_USE),
        ("running", WRONG_USE, FAILED),
        ("failed", WRONG_USE, FAILED),
        ("failed", FAILED, FAILED),
        ("finished", FAILED, FINISHED),
        ("stopped", STOPPED, STOPPED),
    ],
)
def test_the_launcher_ends_a_run_that_had_begun_as_failed(
    tmp_path: Path, status: str, code: int, expected: int
) -> None:
    write_status(tmp_path, status, 3)
    assert outcome(tmp_path, code, "", stopped=False) == expected


@pytest.mark.slow
@pytest.mark.parametrize("error", [DataError("the shard is gone"), ConfigError("data.x", 1, "is gone")], ids=str)
def test_data_that_fails_in_mid_run_is_a_failure_and_at_the_start_a_usage_error(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception
) -> None:
    real, reads = ShardSet.read, []

    def read(self: ShardSet, index: int, *members: Any) -> Any:
        reads.append(index)
        if len(reads) > 24:
            raise error
        return real(self, index, *members)

    monkeypatch.setattr(ShardSet, "read", read)
    run = tmp_path / "run"
    assert run_here(tiny_run(shards, run, *SHORT, "checkpoint.every_steps=1", "optim.steps=6")) == FAILED
    assert capsys.readouterr().err.count("is gone") == 1
    assert read_status(run)["status"] == "failed"
    assert run_here(tiny_run(tmp_path / "none", run, *SHORT)) == WRONG_USE


def test_a_server_that_does_not_answer_is_a_failure() -> None:
    def refuse() -> None:
        raise ConnectionError("refused")

    with pytest.raises(UnreachableData):
        with_retries("https://example.org/a.tar", refuse, retries=1, backoff=0.0)
    assert not isinstance(BrokenSample("x"), DataError)


@pytest.mark.slow
def test_a_run_most_of_whose_steps_were_skipped_fails_and_keeps_its_checkpoint(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = SimMIM.loss

    def poisoned(self: SimMIM, model: Any, batch: Any) -> Losses:
        losses = real(self, model, batch)
        return (
            Losses.single(losses.terms["loss"] * float("nan"))
            if int(batch["position"][0]) // 12 in (0, 1, 3)
            else losses
        )

    monkeypatch.setattr(SimMIM, "loss", poisoned)
    run = tmp_path / "run"
    arguments = tiny_run(shards, run, *SHORT, "checkpoint.every_steps=0", "optim.steps=4", "optim.warmup_steps=1")
    for _ in range(2):  # the same command again says it again, and not that all is done
        assert run_here(arguments) == FAILED
        assert "3 of 4 steps were skipped" in capsys.readouterr().err
        assert read_status(run)["status"] == "failed"
    assert (run / "checkpoints" / "step-00000004" / "manifest.json").exists()
    assert metrics(run)[-1]["skipped_steps"] == 3
    assert mostly_skipped(TrainState(step=4, skipped_steps=2)) is None
    assert mostly_skipped(TrainState()) is None
