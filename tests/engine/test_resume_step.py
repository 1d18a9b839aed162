"""A run goes on from a checkpoint that was chosen, in a new directory, and with another global batch."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from swinv2_train.checkpoint.identity import same_run
from swinv2_train.checkpoint.layout import list_checkpoints, read_manifest
from swinv2_train.checkpoint.survey import survey
from swinv2_train.config.compose import compose
from swinv2_train.config.errors import ConfigError
from swinv2_train.config.plan import make_plan
from swinv2_train.config.validate import validate
from swinv2_train.engine.batch_change import change_lines, continued
from swinv2_train.engine.schedule import learning_rate
from swinv2_train.engine.state import TrainState
from swinv2_train.exit_codes import FAILED, FINISHED, WRONG_USE
from swinv2_train.tasks.simmim import SimMIM
from tests.checkpoint.weights import load_weights
from tests.runs import comparable, metrics, run_here, tiny_run

FIXED = [
    "data.num_workers=0", "eval.every_steps=4", "eval.at_start=false", "eval.figure_every_steps=0",
    "checkpoint.every_steps=2", "checkpoint.keep_last=9", "data.lanes=1",
]  # fmt: skip
HALF = ["optim.global_batch=6", "resume.allow=[optim.global_batch]"]


def command(shards: Path, run_dir: Path, *more: str) -> list[str]:
    return tiny_run(shards, run_dir, *FIXED, *more)


@pytest.fixture(scope="module")
def whole(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 8 steps with a checkpoint every 2."""
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    assert run_here(command(shards, run_dir)) == FINISHED
    return run_dir


def files_of(directory: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in directory.rglob("*") if path.is_file()}


def weights(run_dir: Path, step: int) -> Any:
    return load_weights(run_dir / "checkpoints" / f"step-{step:08d}")


@pytest.mark.slow
def test_a_branch_is_bitwise_the_run_that_it_leaves(
    whole: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, branch = files_of(whole), tmp_path / "branch"
    source = ["resume=step:4", f"resume.source={whole}"]
    branch.mkdir()
    (branch / "metrics.jsonl").write_text('{"step": 1, "loss": 9.0}\n')  # of a start that saved no checkpoint
    assert run_here(command(shards, branch, *source, "tracking.log_every_steps=3")) == FINISHED
    output = " ".join(capsys.readouterr().out.split())
    assert "resuming from" in output
    assert "metrics.jsonl of an earlier start that saved no checkpoint is now metrics.jsonl.unreadable" in output
    assert "tracking.log_every_steps 2 -> 3" in output
    assert comparable(branch) == comparable(whole)
    assert [path.name[-1] for path in list_checkpoints(branch / "checkpoints")] == ["8", "6", "4"]
    first, then = (read_manifest(one / "checkpoints" / "step-00000004") for one in (whole, branch))
    assert then.metrics == first.metrics != {}
    expected = weights(whole, 8)
    assert all(value.equal(expected[name]) for name, value in weights(branch, 8).items())
    assert files_of(whole) == before, "the source is left alone"

    # The same command again resumes from the branch itself, even without its source.
    shutil.rmtree(branch / "checkpoints" / "step-00000008")
    moved = ["resume=step:4", f"resume.source={tmp_path / 'gone'}"]
    assert run_here(command(shards, branch, *moved)) == FINISHED
    output = capsys.readouterr().out
    assert f"resuming from {branch / 'checkpoints' / 'step-00000006'}" in output
    assert "applied to the first start of this run" in output
    assert comparable(branch) == comparable(whole)


@pytest.mark.slow
def test_a_step_is_chosen_in_the_same_directory_if_nothing_is_lost(
    whole: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    for step in (6, 8):
        shutil.rmtree(run / "checkpoints" / f"step-0000000{step}")
    assert run_here(command(shards, run, "resume=step:4")) == FINISHED
    assert comparable(run) == comparable(whole)

    # A scheduler repeats the command, here after the last checkpoint was lost: it resumes from what followed step 4.
    shutil.rmtree(run / "checkpoints" / "step-00000008")
    capsys.readouterr()
    assert run_here(command(shards, run, "resume=step:4")) == FINISHED
    output = capsys.readouterr().out
    assert f"resuming from {run / 'checkpoints' / 'step-00000006'}" in output
    assert "resume=step:4 applied to an earlier start" in output
    assert comparable(run) == comparable(whole)
    # Another step is still rejected, because the checkpoints that followed would be lost.
    assert run_here(command(shards, run, "resume=step:6")) == WRONG_USE


def cut_short(run: Path) -> None:
    (next((run / "checkpoints" / "step-00000004" / "model").iterdir())).write_bytes(b"")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "damage", "code", "parts"),
    [
        (["resume=step:4"], None, WRONG_USE, ["newer checkpoints, up to step-00000008", "would be lost"]),
        (["resume=step:5"], None, WRONG_USE, ["resume=step:5", "no checkpoint of that step", "it has 2, 4, 6, 8"]),
        (["resume.source={run}"], None, WRONG_USE, ["resume.source=", "is run.dir itself"]),
        (["run.dir={new}", "resume.source={new}/none"], None, WRONG_USE, ["resume.source=", "is not the directory"]),
        (["run.dir={new}", "resume.source={shards}"], None, WRONG_USE, ["resume.source=", "there is no checkpoint in"]),
        (["run.dir={new}", "resume.source={run}", "seed=1"], None, WRONG_USE, ["seed=1", "was started with 0"]),
        (["run.dir={new}", "resume.source={run}", "resume=step:4"], cut_short, FAILED, ["resume=step:4", "0 bytes"]),
        (["optim.global_batch=6"], None, WRONG_USE, ["optim.global_batch=6", "resume.allow=[optim.global_batch]"]),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_what_cannot_be_resumed_is_one_sentence(
    whole: Path,
    shards: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    overrides: list[str],
    damage: Callable[[Path], None] | None,
    code: int,
    parts: list[str],
) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    if damage is not None:
        damage(run)
    if overrides[0] == "resume.source={run}":
        shutil.rmtree(run / "checkpoints")
    more = [item.format(run=run, new=tmp_path / "new", shards=shards) for item in overrides]
    assert run_here(command(shards, run, *more)) == code
    lines = capsys.readouterr().err.splitlines()
    (message,) = [line for line in lines if not line.startswith("swinv2-train: loading ")]
    assert all(part in message for part in parts), message


@pytest.mark.parametrize(
    ("overrides", "part"),
    [
        (["resume=step:"], "must be auto, never, or step:N"),
        (["resume=12000"], "must be auto, never, or step:N"),
        (["resume.allow=[optim.lr]"], "must be one of data, optim.global_batch"),
        (["resume.source=''"], "set a run directory"),
    ],
)
def test_impossible_settings_are_rejected(overrides: list[str], part: str) -> None:
    with pytest.raises(ConfigError, match=part):
        validate(compose(["+experiment=simmim_demo", *overrides]))


@pytest.mark.slow
def test_another_batch_goes_on_at_the_next_position(
    whole: Path, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    consumed: list[list[int]] = []
    real = SimMIM.loss

    def noted(self: SimMIM, model: Any, batch: Any) -> Any:
        consumed.append(batch["position"].tolist())
        return real(self, model, batch)

    monkeypatch.setattr(SimMIM, "loss", noted)
    source = ["resume=step:4", f"resume.source={whole}"]
    assert run_here(command(shards, run, *source, *HALF)) == FINISHED
    assert [position for batch in consumed for position in batch] == list(range(48, 72))
    output = " ".join(capsys.readouterr().out.split())
    assert "optim.global_batch CHANGES from 12 to 6 after step 4" in output
    assert "ends after 72 samples instead of 96" in output
    rows = [row for row in metrics(run) if "lr" in row]
    assert [row["samples_seen"] for row in rows] == [12, 24, 36, 48, 54, 60, 66, 72]

    # Stopped and resumed without the option: the same to the bit.
    again = tmp_path / "again"
    shutil.copytree(run, again)
    shutil.rmtree(again / "checkpoints" / "step-00000008")
    del consumed[:]
    assert run_here(command(shards, again, "optim.global_batch=6")) == FINISHED
    assert [position for batch in consumed for position in batch] == list(range(60, 72))
    assert comparable(again) == comparable(run)
    assert all(value.equal(weights(run, 8)[name]) for name, value in weights(again, 8).items())

    # The batch of before would lose what came since.
    state = json.loads((run / "checkpoints" / "step-00000006" / "state.json").read_text())["train"]
    assert (state["changed_step"], state["changed_samples"], state["changed_position"]) == (4, 48, 48)


@pytest.mark.slow
def test_a_run_that_changed_its_batch_is_still_one_run(
    whole: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    assert run_here(command(shards, run, *HALF, "optim.steps=10", "checkpoint.keep_last=2")) == FINISHED
    paths = list_checkpoints(run / "checkpoints")
    assert [path.name[-2:] for path in paths] == ["10", "08"], "the older ones are pruned like those of any run"
    newest, changed = (read_manifest(path).metadata for path in paths)
    assert newest["earlier"] == changed["earlier"] == {"optim.global_batch": [12]}
    assert same_run(newest, read_manifest(whole / "checkpoints" / "step-00000008").metadata)
    assert {entry.state for entry in survey(run)} == {"complete"}
    capsys.readouterr()
    assert run_here(command(shards, run, "optim.steps=12")) == WRONG_USE
    assert "optim.global_batch=12" in (message := capsys.readouterr().err)
    assert "was started with 6" in message


def test_batches_are_counted_from_the_change() -> None:
    state = TrainState(step=5, samples_seen=60, avoided_batches=[2, 6, 8], grad_norms=[1.0])
    assert state.batch == 7  # 2 and 6 are behind, so the next position is 84
    state.change_batch(12, 8)
    assert (state.changed_step, state.changed_samples, state.changed_position) == (5, 60, 84)
    assert state.grad_norms == []
    # Batch 8 was 96 to 107: of 84 + 8 n, those are 92 to 99 and 100 to 107.
    assert state.avoided_batches == [1, 2]
    assert state.batch == 0
    state.step, state.samples_seen = 6, 68
    assert state.batch == 3
    assert state.first_position(state.batch, 8) == 108
    state.change_batch(8, 12)
    assert (state.batch, state.avoided_batches, state.changed_position) == (0, [], 108)
    assert not TrainState(step=5).comes_to(state)


@pytest.mark.parametrize("schedule", ["cosine", "linear", "multistep"])
@pytest.mark.parametrize("warmup", ["optim.warmup_epochs=1", "optim.warmup_steps=8"])
def test_a_length_in_epochs_goes_on_without_a_jump(schedule: str, warmup: str) -> None:
    def plan_of(batch: int) -> Any:
        lengths = ["optim.epochs=10", "optim.lr_reference_batch=0", "optim.milestones=[6]", warmup]
        unset = "optim.warmup_steps=null" if "epochs" in warmup else "optim.warmup_epochs=null"
        more = [f"optim.schedule={schedule}", f"optim.global_batch={batch}", "optim.steps=null", unset, *lengths]
        config = compose(["+experiment=simmim_demo", *more])
        return config, make_plan(config, 1, 80)

    config, before = plan_of(10)
    changed, begun = plan_of(20)
    state = TrainState(step=0, samples_seen=0)
    assert continued(begun, changed.optim, state) is begun
    state = TrainState(step=40, samples_seen=400)
    state.change_batch(10, 20)
    plan = continued(begun, changed.optim, state)
    assert (before.total_steps, begun.total_steps, plan.total_steps) == (80, 40, 60)
    assert (plan.samples, plan.epochs) == (800, 10)
    for step in range(20):
        now, then = learning_rate(40 + step, changed.optim, plan), learning_rate(40 + 2 * step, config.optim, before)
        assert now == pytest.approx(then, rel=1e-6)
    lines = change_lines(changed, begun, plan, 10, state)
    assert "optim.epochs=10 stays, so the run ends at step 60; the schedule goes on from 5 epochs" in lines[1]


def test_a_length_in_steps_stays_one() -> None:
    more = ["optim.steps=80", "optim.epochs=null", "optim.warmup_epochs=1", "optim.warmup_steps=null"]
    config = compose(["+experiment=simmim_demo", "optim.global_batch=20", *more])
    begun = make_plan(config, 1, 80)
    state = TrainState(step=40, samples_seen=400)
    state.change_batch(10, 20)
    plan = continued(begun, config.optim, state)
    assert (begun.warmup_steps, plan.warmup_steps) == (4, 8)
    assert (plan.total_steps, plan.ahead, plan.samples) == (80, 0.0, 1200)


def test_lanes_must_divide_the_new_batch() -> None:
    from swinv2_train.config.order import fill_in_order

    config = compose(["+experiment=simmim_demo", *HALF])
    with pytest.raises(ConfigError, match="must be a multiple of 8, because the order of the run has 4 lanes"):
        fill_in_order(config, {"data.order": "lanes", "data.lanes": 4, "data.block_samples": 16})
