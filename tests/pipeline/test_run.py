"""A chain goes on where it stopped, does nothing twice, and loses nothing to a kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from swinv2_train.launch.lock import RunLock
from swinv2_train.launch.status import read_status
from tests.pipeline.conftest import Chain
from tests.pipeline.train_stub import WEIGHTS
from tests.runs import environment, until

pytestmark = pytest.mark.usefixtures("default_signals")


def value(arguments: list[str], key: str) -> str:
    return next(item for item in arguments if item.startswith(f"{key}=")).split("=", 1)[1].strip('"')


def waiting(chain: Chain, *more: str) -> subprocess.Popen[str]:
    """The chain in a process of its own, once its stage waits for a signal."""
    command = [sys.executable, "-m", "swinv2_train.cli.pipeline", *chain.arguments(*more)]
    process = subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    until(lambda: read_status(chain.directory / "second").get("status") == "running")
    return process


@pytest.mark.slow
def test_stages_run_in_order_from_the_right_weights_and_never_twice(
    chain: Chain, capsys: pytest.CaptureFixture[str]
) -> None:
    assert chain.run() == 0
    assert chain.names() == ["first", "second", "plain"]
    first, second, plain = chain.started()
    best = chain.directory / "first" / "checkpoints" / "step-00000020"
    assert value(second, "init_from") == str(best)
    assert not any(item.startswith("init_from") for item in first)
    assert {"init_from=null", "init.label_map=null"} <= set(plain)
    assert "optim.lr=2e-3" in second
    assert "optim.lr=2e-3" in plain
    state = json.loads((chain.directory / "pipeline.json").read_text())
    assert state["stages"]["second"]["weights"] == str(best)
    output = capsys.readouterr().out
    assert "eval/loss  0.4500  0.4000" in output
    assert "first, step-00000020" in output
    assert "with pretraining  without" in output

    assert chain.run() == 0
    assert len(chain.started()) == 3
    assert "second: finished at step 30, eval/loss 0.45" in capsys.readouterr().out


@pytest.mark.slow
def test_a_stage_that_dies_ends_the_chain_and_the_same_command_goes_on(
    chain: Chain, capsys: pytest.CaptureFixture[str]
) -> None:
    chain.does("second", "die")
    assert chain.run() == 1
    assert "second: died of signal 9; the same command resumes it" in capsys.readouterr().out
    chain.does("second", "finish")
    assert chain.run() == 0
    assert chain.names() == ["first", "second", "second", "plain"]
    assert value(chain.started()[1], "init_from") == value(chain.started()[2], "init_from")


@pytest.mark.slow
def test_a_stage_killed_before_its_first_checkpoint_takes_the_present_weights(chain: Chain) -> None:
    chain.does("second", "refuse")
    assert chain.run() == 2
    second = chain.directory / "second"
    second.mkdir()
    (second / "status.json").write_text('{"status": "running", "step": 0}')
    chain.does("second", "finish")
    chain.does("first", "finish, best first")
    assert chain.run("--redo", "first") == 0
    assert value(chain.started()[-2], "init_from").endswith("first/checkpoints/step-00000010")


def test_a_rejected_stage_is_a_usage_error(chain: Chain) -> None:
    chain.does("first", "refuse")
    assert chain.run() == 2
    assert chain.names() == ["first"]


@pytest.mark.distributed
@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGINT])
def test_a_stop_signal_stops_the_stage_after_saving(chain: Chain, number: signal.Signals) -> None:
    chain.does("second", "wait")
    process = waiting(chain)
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 75
    assert "second: stopped at step 10" in output
    assert chain.names() == ["first", "second"]
    chain.does("second", "finish")
    if number == signal.SIGUSR1:
        assert chain.run() == 0
        assert chain.names() == ["first", "second", "second", "plain"]


@pytest.mark.distributed
def test_a_killed_pipeline_leaves_no_stage_behind_and_loses_nothing(chain: Chain) -> None:
    chain.does("second", "wait")
    process = waiting(chain)
    process.kill()
    process.wait()
    process.stdout.close()  # type: ignore[union-attr]
    until(lambda: read_status(chain.directory / "second").get("status") == "stopped")
    chain.does("second", "finish")
    assert chain.run() == 0
    assert chain.names() == ["first", "second", "second", "plain"]


def test_a_second_pipeline_in_the_directory_is_refused(chain: Chain, capsys: pytest.CaptureFixture[str]) -> None:
    chain.directory.mkdir()
    lock = RunLock(chain.directory)
    assert chain.run() == 2
    lock.release()
    assert "another swinv2-pipeline is using" in capsys.readouterr().err
    assert chain.started() == []


@pytest.mark.slow
def test_a_changed_recipe_is_reported_and_rerun_only_on_request(
    chain: Chain, capsys: pytest.CaptureFixture[str]
) -> None:
    assert chain.run() == 0
    file = chain.directory / "pipeline.json"
    state = json.loads(file.read_text())
    state["stages"]["first"]["recipe"]["sweep.direction"] = "minimize"  # earlier versions stored one
    file.write_text(json.dumps(state))
    changed = "stages.second.optim.weight_decay=0.1"
    assert chain.run(changed, "tracking.log_every_steps=7") == 0
    output = capsys.readouterr().out
    assert "second: changed since it ran: optim.weight_decay 0.05 -> 0.1; it is kept" in output
    assert "plain: changed since it ran" in output  # a baseline has the same recipe
    assert "log_every_steps" not in output
    assert "sweep.direction" not in output
    assert len(chain.started()) == 3

    (chain.directory / "second" / "mark").write_text("")
    assert chain.run(changed, "--redo", "second") == 0
    assert chain.names()[3:] == ["second"]
    assert (chain.directory / "second.old-1" / "mark").exists()
    assert not (chain.directory / "second" / "mark").exists()


@pytest.mark.slow
def test_stages_from_replaced_weights_are_reported_and_rerun_with_redo_changed(
    chain: Chain, capsys: pytest.CaptureFixture[str]
) -> None:
    assert chain.run() == 0
    assert chain.run("--redo", "first") == 0
    assert "second: changed since it ran: first was rerun since" in capsys.readouterr().out
    assert chain.names()[3:] == ["first"]
    assert chain.run("--redo-changed") == 0
    assert chain.names()[4:] == ["second"]
    assert chain.run("--redo-changed") == 0
    assert len(chain.started()) == 5


@pytest.mark.slow
def test_without_its_state_the_directories_still_say_what_is_done(
    chain: Chain, capsys: pytest.CaptureFixture[str]
) -> None:
    assert chain.run() == 0
    state = chain.directory / "pipeline.json"
    for content in (
        b"{",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"pipeline": "chain", "stages": {"first": 5}}',
    ):
        state.write_bytes(content)
        assert chain.run() == 0
        assert "pipeline.json is damaged (" in capsys.readouterr().out
    assert len(list(chain.directory.glob("pipeline.json.unreadable*"))) == 4
    state.unlink()
    state.mkdir()
    assert chain.run() == 0
    assert len(chain.started()) == 3
    assert chain.run("stages.second.optim.weight_decay=0.1") == 0
    assert "second: changed since it ran" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(("does", "code"), [("refuse", 2), ("refuse behind torchrun", 1)])
def test_a_refused_change_is_not_taken_for_the_recipe(
    chain: Chain, capsys: pytest.CaptureFixture[str], does: str, code: int
) -> None:
    chain.does("second", "die")
    assert chain.run() == 1
    assert "--redo" not in capsys.readouterr().out  # what died is gone on with
    before = json.loads((chain.directory / "pipeline.json").read_text())["stages"]["second"]
    changed = "stages.second.seed=3"
    chain.does("second", does)
    assert chain.run(changed) == code
    output = capsys.readouterr().out
    assert "seed 0 -> 3" in output
    assert "--redo second reruns it" in output
    assert json.loads((chain.directory / "pipeline.json").read_text())["stages"]["second"] == before

    chain.does("second", "finish")
    assert chain.run(changed, "--redo-changed") == 0
    assert (chain.directory / "second.old-1").is_dir()
    assert json.loads((chain.directory / "pipeline.json").read_text())["stages"]["second"]["recipe"]["seed"] == 3


@pytest.mark.slow
def test_a_change_that_the_run_accepts_is_its_recipe(chain: Chain, capsys: pytest.CaptureFixture[str]) -> None:
    chain.does("second", "die")
    assert chain.run() == 1
    chain.does("second", "finish")
    assert chain.run("stages.second.optim.weight_decay=0.1") == 0
    assert "second: resumes with these changes since it began: optim.weight_decay 0.05 -> 0.1" in (
        capsys.readouterr().out
    )
    assert chain.run("stages.second.optim.weight_decay=0.1", "--redo-changed") == 0
    assert not (chain.directory / "second.old-1").exists()


@pytest.mark.slow
def test_damaged_weights_are_skipped_for_the_next_best(chain: Chain, capsys: pytest.CaptureFixture[str]) -> None:
    """A changed byte in the best, a file cut off in the next: neither the sizes nor the newest are all there is."""
    chain.does("second", "refuse")
    assert chain.run() == 2
    checkpoints = chain.directory / "first" / "checkpoints"
    chain.does("second", "finish")
    (checkpoints / "step-00000020" / WEIGHTS).write_text("[]")
    capsys.readouterr()
    assert chain.run("--redo", "plain") == 0
    assert value(chain.started()[2], "init_from") == str(checkpoints / "step-00000030")
    output = capsys.readouterr().out
    assert f"first: skipped step-00000020: {WEIGHTS} has been changed (its hash differs)" in output
    assert "second: starts from step-00000030 instead" in output

    (checkpoints / "step-00000030" / WEIGHTS).write_text("")
    assert chain.run("--redo", "second") == 0
    assert value(chain.started()[-1], "init_from") == str(checkpoints / "step-00000010")
    assert f"first: skipped step-00000030: {WEIGHTS} has 0 bytes instead of 2" in capsys.readouterr().out


@pytest.mark.slow
def test_damaged_newest_weights_are_skipped_too(chain: Chain, capsys: pytest.CaptureFixture[str]) -> None:
    path = chain.root / "conf" / "pipeline" / "chain.yaml"
    path.write_text(path.read_text().replace("weights: best", "weights: newest"))
    chain.does("second", "refuse")
    assert chain.run() == 2
    checkpoints = chain.directory / "first" / "checkpoints"
    (checkpoints / "step-00000030" / WEIGHTS).write_text("[]")
    (checkpoints / "step-00000010" / "manifest.json").write_text("{}")
    chain.does("second", "finish")
    assert chain.run() == 0
    assert value(chain.started()[2], "init_from") == str(checkpoints / "step-00000020")
    output = capsys.readouterr().out
    assert "skipped step-00000030" in output
    assert "step-00000010" not in output  # nobody asked for it


@pytest.mark.slow
def test_a_source_without_a_whole_checkpoint_is_one_sentence(chain: Chain, capsys: pytest.CaptureFixture[str]) -> None:
    chain.does("second", "refuse")
    assert chain.run() == 2
    for path in (chain.directory / "first" / "checkpoints").iterdir():
        (path / "manifest.json").write_text("{}")
    assert chain.run() == 1
    assert "first contains no complete checkpoint" in capsys.readouterr().err.replace(str(chain.directory) + os.sep, "")


@pytest.mark.slow
def test_a_directory_of_another_pipeline_is_refused(chain: Chain, capsys: pytest.CaptureFixture[str]) -> None:
    path = chain.root / "conf" / "pipeline" / "other.yaml"
    path.write_text((path.parent / "chain.yaml").read_text().replace("name: chain", "name: other"))
    assert chain.run() == 0
    assert chain.run("pipeline=other") == 2
    assert "contains the pipeline chain, not other" in capsys.readouterr().err


def test_a_launcher_that_is_not_there_is_one_sentence(chain: Chain, capsys: pytest.CaptureFixture[str]) -> None:
    assert chain.run("launcher=/no/such/launcher") == 2
    assert "launcher=/no/such/launcher: cannot be started" in capsys.readouterr().err


@pytest.mark.slow
def test_a_dry_run_starts_nothing_and_writes_nothing(
    chain: Chain, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    commands: list[list[str]] = []
    monkeypatch.setattr("swinv2_train.pipeline.run.run_command", lambda command, signals: commands.append(command) or 0)
    assert chain.run("launch.dry_run=true") == 0
    assert [value(command, "run.dir") for command in commands] == [
        str(chain.directory / name) for name in ("first", "second", "plain")
    ]
    assert all("launch.dry_run=true" in command for command in commands)
    assert value(commands[1], "init_from") == str(chain.directory / "first")
    assert not Path(chain.directory).exists()
    assert "stage 3 of 3: plain" in capsys.readouterr().out
