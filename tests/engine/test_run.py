"""A run in one process: what it leaves behind, how it goes on, and what it refuses."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from swinv2_train.checkpoint.layout import list_checkpoints
from swinv2_train.config.overrides import last_of_each
from swinv2_train.config.schema import Config
from swinv2_train.engine import loop
from swinv2_train.engine.feed import StepInput
from swinv2_train.exit_codes import FAILED, FINISHED, STOPPED, WRONG_USE
from swinv2_train.launch.environment import prepare
from tests.checkpoint.weights import load_weights
from tests.faults.job import FaultyRun
from tests.faults.nursery import Nursery
from tests.runs import comparable, losses, make_shard, metrics, run_here, tiny_run


@pytest.mark.slow
def test_the_run_directory_holds_all_it_should(finished_run: Path) -> None:
    names = {path.name for path in finished_run.iterdir()}
    assert {
        "resolved.yaml",
        "environment.json",
        "metrics.jsonl",
        "figures",
        "checkpoints",
        "log.txt",
        "status.json",
    } <= names
    assert json.loads((finished_run / "status.json").read_text()) == {"status": "finished", "step": 8}
    assert [path.name for path in list_checkpoints(finished_run / "checkpoints")] == ["step-00000008", "step-00000004"]
    assert [path.name for path in (finished_run / "figures").iterdir()] == ["simmim-step-00000008.png"]
    fields = {
        "step",
        "samples_seen",
        "loss",
        "grad_norm",
        "lr",
        "images_per_second",
        "data_wait_share",
        "skipped_steps",
    }
    steps = [record for record in metrics(finished_run) if "loss" in record]
    assert all(fields <= record.keys() for record in steps)
    assert [record["samples_seen"] for record in steps] == [12 * step for step in range(1, 9)]
    evaluations = [record for record in metrics(finished_run) if "eval/loss" in record]
    assert [record["step"] for record in evaluations] == [0, 4, 8]
    assert [str(record["eval/samples"]) for record in evaluations] == ["7", "7", "7"]
    log = (finished_run / "log.txt").read_text()
    assert [step for step in range(1, 9) if f" step {step}/8 " in log] == [1, 2, 4, 6, 8]
    assert "eval/samples 7\n" in log


@pytest.mark.slow
def test_a_finished_run_is_reported(finished_run: Path, shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (finished_run / "metrics.jsonl").read_bytes()
    assert run_here(tiny_run(shards, finished_run)) == FINISHED
    shown = capsys.readouterr()
    assert shown.err == f"swinv2-train: loading simmim_demo in {finished_run} ...\n"
    first, longer, new = shown.out.splitlines()
    assert first.endswith("is finished: step 8 of 8; nothing to do")
    assert "optim.steps above 8" in longer
    assert f"init_from={finished_run} and another run.dir" in new
    assert (finished_run / "metrics.jsonl").read_bytes() == before


@pytest.mark.slow
def test_stopping_and_going_on_is_bit_for_bit_the_whole_run(
    finished_run: Path, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A SIGTERM during step 3, and again during step 4, after which an evaluation is due: it runs on resume."""
    compute, step, numbers, stops = loop.forward_backward, loop.Trainer.train_step, [], [3, 4]

    def numbered(self: loop.Trainer, current: StepInput) -> loop.StepOutcome:
        numbers.append(self.state.step + 1)
        return step(self, current)

    def compute_with_signal(*arguments: Any) -> Any:
        if numbers[-1] in stops:
            stops.remove(numbers[-1])
            os.kill(os.getpid(), signal.SIGTERM)
        return compute(*arguments)

    monkeypatch.setattr(loop.Trainer, "train_step", numbered)
    monkeypatch.setattr(loop, "forward_backward", compute_with_signal)
    command = tiny_run(shards, tmp_path / "run", "data.num_workers=1")
    assert run_here(command) == STOPPED
    assert json.loads((tmp_path / "run" / "status.json").read_text()) == {"status": "stopped", "step": 3}
    assert run_here(command) == STOPPED
    assert json.loads((tmp_path / "run" / "status.json").read_text()) == {"status": "stopped", "step": 4}
    assert not any("eval/loss" in record for record in metrics(tmp_path / "run") if record["step"] == 4)
    assert run_here(command) == FINISHED
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "stopped by SIGTERM after step 3, which is saved" in log
    assert "the schedule has changed" not in log
    assert comparable(tmp_path / "run") == comparable(finished_run)
    ours, twin = (load_weights(path / "checkpoints" / "step-00000008") for path in (tmp_path / "run", finished_run))
    assert ours.keys() == twin.keys()
    assert all(torch.equal(ours[name], twin[name]) for name in twin)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("precision", "stage", "accumulate"),
    [
        ("bf16", 1, "null"),
        ("bf16", 1, "fp32"),
        ("bf16", 2, "null"),
        ("fp32", 0, "null"),
        ("bf16", 0, "null"),
        ("fp32", 3, "null"),
    ],
)
def test_every_precision_and_stage_resumes_bit_for_bit(
    shards: Path, tmp_path: Path, nursery: Nursery, precision: str, stage: int, accumulate: str
) -> None:
    """Four steps; and again the last two of them, from the checkpoint between."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    options = [
        f"engine.precision={precision}", f"engine.zero_stage={stage}", f"engine.grad_accum_dtype={accumulate}",
        "optim.schedule=constant", "engine.micro_batch=6", "eval.every_steps=0", "eval.figure_every_steps=0",
        "optim.warmup_steps=0", "checkpoint.every_steps=2", "optim.steps=4", "data.num_workers=0",
    ]  # fmt: skip
    for directory in (whole, parts):
        overrides = tiny_run(shards, directory, *options)
        # ZeRO-3 replaces torch's linear function for the rest of the process, so it gets a process of its own.
        run = FaultyRun(directory, overrides, nursery)
        assert (run.go() if stage == 3 else run_here(overrides)) == FINISHED
        if directory == whole:
            shutil.copytree(whole, parts)
            shutil.rmtree(parts / "checkpoints" / "step-00000004")
    assert "step-00000002" in (parts / "log.txt").read_text().partition("resuming from")[2]
    assert comparable(tmp_path / "parts") == comparable(tmp_path / "whole")
    assert len(losses(tmp_path / "whole")) == 4
    weights = [load_weights(directory / "checkpoints" / "step-00000004") for directory in (whole, parts)]
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())


@pytest.mark.slow
def test_a_gradient_that_is_not_finite_never_reaches_the_weights(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from swinv2_train.tasks.simmim import SimMIM
    from swinv2_train.tasks.task import Losses

    real = SimMIM.loss

    def poisoned(self: SimMIM, model: torch.nn.Module, batch: dict) -> Losses:
        losses = real(self, model, batch)
        return Losses.single(losses.terms["loss"] * float("nan")) if int(batch["position"][0]) // 12 == 1 else losses

    monkeypatch.setattr(SimMIM, "loss", poisoned)
    for name, options in {"zero1": [], "plain": ["engine.zero_stage=0"], "bf16": ["engine.precision=bf16"]}.items():
        command = tiny_run(shards, tmp_path / name, "optim.steps=3", "checkpoint.every_steps=1", *options)
        assert run_here(command) == FINISHED
        rows = [record for record in metrics(tmp_path / name) if "lr" in record]
        assert [row["skipped_steps"] for row in rows] == [0, 1, 1], name
        assert rows[1]["loss"] is None
        weights = [load_weights(tmp_path / name / "checkpoints" / f"step-0000000{step}") for step in (2, 3)]
        assert all(torch.isfinite(tensor).all() for tensor in weights[1].values()), name
        log = (tmp_path / name / "log.txt").read_text()
        assert "step 2: the loss is nan; update skipped" in log


@pytest.mark.slow
def test_damaged_checkpoints_are_skipped_and_named(
    finished_run: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = tiny_run(shards, tmp_path / "run")
    assert run_here(command) == FINISHED
    for path in (tmp_path / "run" / "checkpoints" / "step-00000008" / "model").iterdir():
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
    capsys.readouterr()
    assert run_here(command) == FINISHED
    output = capsys.readouterr().out
    assert "skipped step-00000008: model/rank-00000-of-00001.safetensors has been changed" in output
    assert "resuming from" in output
    assert "step-00000004" in output
    assert comparable(tmp_path / "run") == comparable(finished_run)


@pytest.mark.slow
def test_broken_samples_are_replaced_counted_and_named(tmp_path: Path) -> None:
    make_shard(tmp_path / "train-0.tar", 24, 0, broken=(3, 17))
    make_shard(tmp_path / "eval-0.tar", 7, 2, broken=(5,))
    assert run_here(tiny_run(tmp_path, tmp_path / "run", "optim.steps=4", "data.num_workers=1")) == FINISHED
    rows = [record for record in metrics(tmp_path / "run") if "loss" in record]
    assert rows[-1]["broken_samples"] == 4  # 48 samples are two epochs of 24
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "train-0-0003" in log
    assert "train-0-0017" in log
    assert [record["eval/samples"] for record in metrics(tmp_path / "run") if "eval/loss" in record] == [6, 6]


@pytest.mark.slow
def test_too_many_broken_samples_end_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_shard(tmp_path / "train-0.tar", 24, 0, broken=tuple(range(14)))
    make_shard(tmp_path / "eval-0.tar", 4, 2)
    assert run_here(tiny_run(tmp_path, tmp_path / "run", "data.max_broken_share=0.005")) == FAILED
    assert "data.max_broken_share=0.005" in capsys.readouterr().err
    assert json.loads((tmp_path / "run" / "status.json").read_text())["status"] == "failed"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("model.embed_dim=32", ["model.embed_dim=32", "was started with 16"]),
        ("model.window=8", ["model.window=8"]),
        ("optim.global_batch=6", ["optim.global_batch=6", "was started with 12"]),
        ("seed=1", ["seed=1", "was started with 0"]),
        ("data.resolution=96", ["data.resolution=[96, 96]", "was started with [64, 64]"]),
        ("resume=never", ["resume=never", "already contains a run"]),
    ],
)
def test_another_run_in_a_used_directory_is_refused(
    finished_run: Path, shards: Path, capsys: pytest.CaptureFixture[str], override: str, parts: list[str]
) -> None:
    assert run_here(tiny_run(shards, finished_run, override)) == WRONG_USE
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    for part in parts:
        assert part in message


def test_two_runs_in_one_directory_are_refused(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from swinv2_train.launch.lock import RunLock

    (tmp_path / "run").mkdir()
    lock = RunLock(tmp_path / "run")
    assert run_here(tiny_run(shards, tmp_path / "run")) == WRONG_USE
    assert "another process is training in this directory" in capsys.readouterr().err
    lock.release()
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.slow
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_second_start_is_refused_and_leaves_the_first_alone(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], when: str
) -> None:
    """The same command while the ranks start, and when they have ended but the command has not read how."""
    from swinv2_train.cli import train

    run_dir = tmp_path / "run"
    command = tiny_run(shards, run_dir, "optim.steps=2", "optim.warmup_steps=0")
    seen: list[tuple[int, str, bool]] = []

    def start_again() -> None:
        (run_dir / "status.json").write_text('{"status": "stopped", "step": 0}')
        (run_dir / "STOP").touch()
        code = run_here(command)
        seen.append((code, (run_dir / "status.json").read_text(), (run_dir / "STOP").exists()))
        (run_dir / "STOP").unlink()

    def as_launcher(config: Config, samples: train.Samples) -> int | None:
        monkeypatch.setattr(train, "_launch", real)
        if when == "before":
            start_again()
        train._train(config, None, prepare(config.launch), None, begins=False)
        if when == "after":
            start_again()
        return FINISHED

    real = train._launch
    monkeypatch.setattr(train, "_launch", as_launcher)
    assert run_here(command) == FINISHED
    assert seen == [(WRONG_USE, '{"status": "stopped", "step": 0}', True)]
    assert "another process is training in this directory" in capsys.readouterr().err
    assert run_here(command) == FINISHED, "afterwards it says that the run is finished"
    assert "is finished: step 2 of 2" in capsys.readouterr().out


def test_other_shards_in_a_used_directory_are_refused(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_shard(tmp_path / "train-0.tar", 31, 5)  # as many samples as there were
    make_shard(tmp_path / "eval-0.tar", 7, 2)
    assert run_here(tiny_run(tmp_path, finished_run)) == WRONG_USE
    assert "was started with 31 samples in 2 shards" in capsys.readouterr().err


@pytest.mark.slow
def test_a_figure_has_as_many_rows_as_asked_for(shards: Path, tmp_path: Path) -> None:
    from PIL import Image

    heights = []
    for samples in (2, 5):
        run_dir = tmp_path / str(samples)
        options = ["optim.steps=1", "engine.micro_batch=1", f"eval.figure_samples={samples}", "optim.warmup_steps=0"]
        assert run_here(tiny_run(shards, run_dir, *options)) == FINISHED
        heights.append(Image.open(next((run_dir / "figures").iterdir())).height)
    assert heights[1] > 2 * heights[0] - 100


@pytest.mark.slow
def test_a_run_cannot_end_before_where_it_is(
    finished_run: Path, shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished_run.rglob("*") if path.is_file()}
    assert run_here(tiny_run(shards, finished_run, "optim.steps=5")) == WRONG_USE
    error = capsys.readouterr().err
    assert "optim.steps=5: ends the run at step 5, but the one in" in error
    assert "is already at step 8" in error
    assert {path: path.stat().st_mtime_ns for path in finished_run.rglob("*") if path.is_file()} == before


def test_what_does_not_change_the_run_may_change(finished_run: Path, shards: Path) -> None:
    """Attention backend, checkpointing and micro-batch change memory, not the run."""
    options = [
        "model.attention=sequential",
        "model.sequential_chunk_mib=0.01",
        "model.checkpointing=1",
        "engine.micro_batch=4",
    ]
    assert run_here(tiny_run(shards, finished_run, *options)) == FINISHED


@pytest.mark.slow
def test_memory_options_give_the_same_losses(finished_run: Path, shards: Path, tmp_path: Path) -> None:
    options = [
        "model.attention=sequential",
        "model.sequential_chunk_mib=0.01",
        "model.checkpointing=1",
        "engine.micro_batch=4",
    ]
    assert run_here(tiny_run(shards, tmp_path / "run", *options)) == FINISHED
    assert losses(tmp_path / "run") == pytest.approx(losses(finished_run), rel=1e-5)


@pytest.mark.slow
def test_a_file_stops_the_run_and_the_next_start_removes_it(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from swinv2_train.launch import signals

    monkeypatch.setattr(signals, "_LOOK_SECONDS", 0.0)
    run_dir = tmp_path / "run"
    overrides = tiny_run(shards, run_dir, "data.num_workers=0", "optim.steps=400", "tracking.log_every_steps=1")

    def ask() -> None:
        while not (run_dir / "metrics.jsonl").exists():
            time.sleep(0.01)
        (run_dir / "STOP").touch()

    thread = threading.Thread(target=ask)
    thread.start()
    assert run_here(overrides) == STOPPED
    thread.join()
    stopped = json.loads((run_dir / "status.json").read_text())
    assert stopped["status"] == "stopped"
    assert (run_dir / "STOP").exists()
    assert (
        run_here(last_of_each([*overrides, f"optim.steps={stopped['step'] + 1}", "optim.warmup_steps=0"])) == FINISHED
    )
    assert not (run_dir / "STOP").exists()
