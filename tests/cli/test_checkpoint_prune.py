"""`swinv2-checkpoint prune` removes what the policy does not keep, only when told, and never the last valid one."""

from __future__ import annotations

from pathlib import Path

import pytest

from swinv2_train.exit_codes import FAILED, FINISHED, WRONG_USE
from swinv2_train.launch.lock import RunLock
from tests.cli.checkpoints import flip_a_byte, run, steps
from tests.cli.checkpoints import made as made
from tests.cli.checkpoints import refused as refused


def test_prune_lists_and_with_yes_removes(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (made / "checkpoints" / ".saving-step-00000050").mkdir()
    options = ("prune", made, "--keep-last", 1, "--keep-best", 1)
    code, out, err = run(capsys, *options)
    assert (code, err) == (FINISHED, "")
    assert [line.split(":")[0] for line in out.splitlines()[:3]] == [
        "step-00000030",
        "step-00000010",
        ".saving-step-00000050",
    ]
    assert out.splitlines()[3].startswith("3 to remove, ")
    assert "--yes removes them" in out
    assert steps(made) == [40, 30, 20, 10]
    assert not (made / ".lock").exists()
    code, out, err = run(capsys, *options, "--yes")
    assert (code, err) == (FINISHED, "")
    assert out.splitlines()[3].startswith("3 removed, ")
    assert steps(made) == [40, 20]
    assert not list((made / "checkpoints").glob(".*"))
    assert run(capsys, *options, "--yes")[1] == f"nothing to remove in {made / 'checkpoints'}\n"
    assert run(capsys, "verify", made)[0] == FINISHED
    RunLock(made).release()


def test_prune_keeps_every_kth(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "prune", made, "--keep-last", 1, "--keep-every-steps", 20, "--yes")[0] == FINISHED
    assert steps(made) == [40, 20]


def test_prune_waits_for_no_run(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lock = RunLock(made)
    for path in (made, made / "checkpoints"):
        code, out, err = run(capsys, "prune", path, "--keep-last", 1, "--yes")
        assert (code, out) == (WRONG_USE, "")
        assert err == f"swinv2-checkpoint: a run is training in {made}; stop it first, or wait for its end\n"
    assert steps(made) == [40, 30, 20, 10]
    lock.release()


def test_prune_leaves_a_valid_checkpoint_or_does_nothing(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flip_a_byte(next((made / "checkpoints" / "step-00000040").glob("model/*")))
    code, _, err = run(capsys, "prune", made, "--keep-last", 1, "--yes")
    assert code == FAILED
    assert "nothing was removed, because no valid checkpoint would stay: step-00000040 is damaged: model/" in err
    assert err.count("\n") == 1
    assert steps(made) == [40, 30, 20, 10]
    code, _, err = run(capsys, "prune", made, "--keep-last", 2, "--yes")
    assert code == FINISHED
    assert err.startswith("warning: step-00000040 is damaged: ")
    assert steps(made) == [40, 30]


def test_prune_brings_back_what_a_crash_left_half_replaced(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoints = made / "checkpoints"
    (checkpoints / "step-00000040").rename(checkpoints / ".replaced-step-00000040")
    out = run(capsys, "ls", made)[1]
    assert ".replaced-step-00000040: " in out
    assert run(capsys, "prune", made, "--keep-last", 1, "--yes")[0] == FINISHED
    assert steps(made) == [40]


@pytest.mark.parametrize("where", ["", "checkpoints"])
def test_prune_keeps_what_a_replay_needs(refused: Path, capsys: pytest.CaptureFixture[str], where: str) -> None:
    kept = "step-00000020: kept for a replay of the latest incident"
    options = ("prune", refused / where, "--keep-last", 1)
    for more, end in (((), "2 to remove, "), (("--yes",), "2 removed, ")):
        code, out, err = run(capsys, *options, *more)
        assert (code, err) == (FINISHED, "")
        lines = out.splitlines()
        assert lines[0] == kept
        assert [line.split(":")[0] for line in lines[1:3]] == ["step-00000030", "step-00000010"]
        assert lines[3].startswith(end)
    assert steps(refused) == [40, 20]
    assert run(capsys, *options, "--yes")[1].splitlines() == [kept, f"nothing to remove in {refused / 'checkpoints'}"]
    assert kept not in run(capsys, "prune", refused, "--keep-last", 2)[1]  # the policy keeps it anyway


def test_prune_elsewhere_knows_of_no_incident(refused: Path, capsys: pytest.CaptureFixture[str]) -> None:
    archive = (refused / "checkpoints").rename(refused / "archive")
    out = run(capsys, "prune", archive, "--keep-last", 1)[1]
    assert "kept" not in out
    assert "3 to remove" in out


def test_prune_by_an_unknown_metric_removes_nothing(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("prune", made, "--keep-last", 1, "--keep-best", 1, "--best-metric", "eval/los", "--yes")
    code, _, err = run(capsys, *options)
    assert code == WRONG_USE
    assert f"no checkpoint in {made / 'checkpoints'} has it; they have eval/loss" in err
    assert steps(made) == [40, 30, 20, 10]
