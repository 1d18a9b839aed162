"""Runs whose numbers go bad: every policy, what is written down about it, and running the step again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from swinv2_train.checkpoint.survey import read_state
from swinv2_train.config.overrides import last_of_each
from swinv2_train.exit_codes import FAILED, FINISHED, WRONG_USE
from swinv2_train.tasks.simmim import SimMIM
from swinv2_train.tasks.task import Losses
from tests.checkpoint.weights import load_weights
from tests.runs import comparable, losses, metrics, run_here, tiny_run

BATCH = 12
"""Samples in a step of a tiny run."""
SPIKE = (
    "optim.steps=16", "guard.min_steps=8", "guard.window=8", "eval.every_steps=0", "eval.figure_every_steps=0",
    "data.num_workers=0",
)  # fmt: skip


@contextmanager
def planted() -> Iterator[dict[int, float]]:
    """Multiplies the loss of chosen batches, on whatever rank and in whatever run."""
    real = SimMIM.loss
    factors: dict[int, float] = {}

    def poisoned(self: SimMIM, model: torch.nn.Module, batch: dict) -> Losses:
        losses = real(self, model, batch)
        factor = factors.get(int(batch["position"][0]) // BATCH, 1.0)
        return Losses.single(losses.terms["loss"] * factor) if factor != 1.0 else losses

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SimMIM, "loss", poisoned)
        yield factors


@pytest.fixture
def plant() -> Iterator[dict[int, float]]:
    """Factors of the loss by batch."""
    with planted() as factors:
        yield factors


@pytest.fixture(scope="module")
def spiked(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a spike in batch 11 and a checkpoint of every step."""
    run = tmp_path_factory.mktemp("spiked") / "run"
    with planted() as factors:
        factors[11] = 30.0
        command = tiny_run(shards, run, *SPIKE, "checkpoint.every_steps=1", "checkpoint.keep_last=16")
        assert run_here(command) == FINISHED
    return run


def skipped(run_dir: Path) -> list[int]:
    """The steps whose update was left out."""
    rows = [row for row in metrics(run_dir) if "lr" in row]
    counts = [0, *(row["skipped_steps"] for row in rows)]
    return [row["step"] for row, before in zip(rows, counts, strict=False) if row["skipped_steps"] > before]


def same_weights(first: Path, second: Path) -> bool:
    weights = [load_weights(path) for path in (first, second)]
    return all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())


@pytest.mark.slow
def test_a_spike_is_skipped_and_told_of(spiked: Path, plant: dict, capsys: Any) -> None:
    plant[11] = 30.0
    run = spiked
    assert skipped(run) == [12]
    assert same_weights(run / "checkpoints" / "step-00000011", run / "checkpoints" / "step-00000012")
    assert "step 12: the loss" in (run / "log.txt").read_text()
    incident = json.loads((run / "incidents" / "step-00000012-batch-00000011.json").read_text())
    assert (incident["batch"], incident["action"], incident["state"]["step"]) == (11, "skip", 11)
    assert [entry["position"] for entry in incident["samples"]] == list(range(132, 144))
    assert all(entry["sample"].startswith("train-") for entry in incident["samples"])

    capsys.readouterr()
    before = comparable(run)
    assert run_here([f"replay={run}/incidents/step-00000012-batch-00000011.json"]) == FINISHED
    report = json.loads((run / "incidents" / "step-00000012-batch-00000011" / "replay.json").read_text())
    assert report["same_to_the_bit"]
    assert report["loss"]["replayed"] == incident["loss"]
    assert len(report["sample_losses"]) == BATCH
    assert "bitwise identical: yes" in capsys.readouterr().out
    assert comparable(run) == before, "a replay changes nothing"


@pytest.mark.slow
def test_a_rollback_leaves_the_batch_out_for_good(shards: Path, tmp_path: Path, plant: dict) -> None:
    plant[11] = 30.0
    run = tmp_path / "run"
    options = ("guard.policy=rollback", "guard.rollback_batches=5", "checkpoint.every_steps=3")
    assert run_here(tiny_run(shards, run, *SPIKE, *options)) == FINISHED
    state = read_state(run / "checkpoints" / "step-00000016")["train"]
    found = (state["avoided_batches"], state["rollbacks"], state["skipped_steps"])
    assert found == ([9, 10, 11], 1, 0), "what the checkpoint had consumed already is neither avoided nor lost"
    log = (run / "log.txt").read_text()
    assert "going back" in log
    assert f"resuming from {run}/checkpoints/step-00000009" in log
    assert len(losses(run)) == 16, "every step stands in the record once"
    twin = tmp_path / "twin"
    plant.clear()
    assert run_here(tiny_run(shards, twin, *SPIKE, *options)) == FINISHED
    assert losses(twin)[:9] == losses(run)[:9]
    assert losses(twin)[9:] != losses(run)[9:], "batches 12 to 18 came in place of 9 to 15"


@pytest.mark.slow
def test_a_second_rollback_remembers_the_first_and_both_can_be_replayed(
    shards: Path, tmp_path: Path, plant: dict, capsys: Any
) -> None:
    plant.update({10: 30.0, 12: 30.0})
    run = tmp_path / "run"
    command = tiny_run(shards, run, *SPIKE, "guard.policy=rollback", "checkpoint.every_steps=9", "resume=never")
    assert run_here(command) == FINISHED
    state = read_state(run / "checkpoints" / "step-00000016")["train"]
    assert (state["avoided_batches"], state["rollbacks"]) == ([10, 12], 2)
    incidents = sorted(path for path in (run / "incidents").iterdir())
    assert [path.name for path in incidents] == [
        "step-00000011-batch-00000010.json",
        "step-00000012-batch-00000012.json",
    ]
    for path in (*incidents, incidents[0]):
        capsys.readouterr()
        assert run_here([f"replay={path}"]) == FINISHED
        assert "bitwise identical: yes" in capsys.readouterr().out


@pytest.mark.slow
def test_what_a_rollback_leaves_out_survives_a_crash_just_after_it(
    shards: Path, tmp_path: Path, plant: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant[10] = 30.0
    options = (*SPIKE, "guard.policy=rollback", "checkpoint.every_steps=9")
    assert run_here(tiny_run(shards, tmp_path / "whole", *options)) == FINISHED
    real = SimMIM.loss

    def dying(self: SimMIM, model: torch.nn.Module, batch: dict) -> Losses:
        if int(batch["position"][0]) // BATCH == 11:
            raise OSError("the machine is gone")
        return real(self, model, batch)

    monkeypatch.setattr(SimMIM, "loss", dying)
    assert run_here(tiny_run(shards, tmp_path / "parts", *options)) == FAILED
    state = read_state(tmp_path / "parts" / "checkpoints" / "step-00000009")["train"]
    assert (state["avoided_batches"], state["rollbacks"]) == ([10], 1)
    monkeypatch.setattr(SimMIM, "loss", real)
    assert run_here(tiny_run(shards, tmp_path / "parts", *options)) == FINISHED
    assert comparable(tmp_path / "parts") == comparable(tmp_path / "whole")


@pytest.mark.slow
def test_a_rollback_before_the_first_checkpoint_goes_to_the_start(shards: Path, tmp_path: Path, plant: dict) -> None:
    plant[9] = 30.0
    run = tmp_path / "run"
    assert run_here(tiny_run(shards, run, *SPIKE, "guard.policy=rollback", "checkpoint.every_steps=0")) == FINISHED
    assert f"resuming from {run}/checkpoints/step-00000000" in (run / "log.txt").read_text()
    assert read_state(run / "checkpoints" / "step-00000016")["train"]["avoided_batches"] == [9]


@pytest.mark.slow
def test_too_many_rollbacks_end_the_run(shards: Path, tmp_path: Path, plant: dict, capsys: Any) -> None:
    plant.update(dict.fromkeys(range(10, 40), 30.0))
    options = ("guard.policy=rollback", "guard.max_rollbacks=2", "checkpoint.every_steps=3")
    assert run_here(tiny_run(shards, tmp_path / "run", *SPIKE, *options)) == FAILED
    assert "the run has already gone back 2 times (guard.max_rollbacks)" in capsys.readouterr().err


@pytest.mark.slow
def test_stop_saves_the_state_before_the_step(
    shards: Path, tmp_path: Path, plant: dict, spiked: Path, capsys: Any
) -> None:
    plant[11] = 30.0
    run, command = tmp_path / "run", tiny_run(shards, tmp_path / "run", *SPIKE, "guard.policy=stop")
    assert run_here(command) == FAILED
    assert "step 12: the loss" in capsys.readouterr().err
    assert (run / "checkpoints" / "step-00000011").is_dir()
    assert json.loads((run / "status.json").read_text()) == {"status": "failed", "step": 11}
    assert run_here(last_of_each([*command, "guard.policy=skip"])) == FINISHED
    assert skipped(run) == [12]
    assert comparable(run) == comparable(spiked)


@pytest.mark.slow
def test_skipping_without_end_stops_the_run(shards: Path, tmp_path: Path, plant: dict, capsys: Any) -> None:
    plant.update(dict.fromkeys(range(3, 40), float("nan")))
    assert run_here(tiny_run(shards, tmp_path / "run", *SPIKE, "guard.max_skipped_in_row=4")) == FAILED
    assert "4 steps in a row were skipped, the last of them step 7" in capsys.readouterr().err


@pytest.mark.slow
def test_the_rolling_test_survives_a_stop(shards: Path, tmp_path: Path, plant: dict) -> None:
    """The window is part of the state: a spike just after a resume is seen as it would have been."""
    plant[9] = 30.0
    options = (*SPIKE, "checkpoint.every_steps=9", "optim.schedule=constant")
    assert run_here(tiny_run(shards, tmp_path / "whole", *options)) == FINISHED
    assert run_here(tiny_run(shards, tmp_path / "parts", *options, "optim.steps=9")) == FINISHED
    assert run_here(tiny_run(shards, tmp_path / "parts", *options)) == FINISHED
    assert skipped(tmp_path / "parts") == [10]
    assert comparable(tmp_path / "parts") == comparable(tmp_path / "whole")


@pytest.mark.slow
def test_a_replay_of_a_nan_names_the_module(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    real = SimMIM.images

    def poisoned(self: SimMIM, batch: dict) -> torch.Tensor:
        values = real(self, batch)
        values[batch["position"] == 40] = float("nan")
        return values

    monkeypatch.setattr(SimMIM, "images", poisoned)
    run = tmp_path / "run"
    command = tiny_run(shards, run, "optim.steps=5", "eval.every_steps=0", "eval.figure_every_steps=0")
    assert run_here(command) == FINISHED
    assert skipped(run) == [4]
    assert run_here([f"replay={run}/incidents/step-00000004-batch-00000003.json"]) == FINISHED
    worst = json.loads((run / "incidents" / "step-00000004-batch-00000003" / "replay.json").read_text())[
        "worst_samples"
    ][0]
    assert worst["position"] == 40
    assert "patch_embed" in worst["not_finite_in"]


def test_wrong_replays_are_one_sentence(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "no.json").write_text("{}")
    for name, reason in (("missing.json", "cannot be read"), ("no.json", "is not an incident of a run")):
        assert run_here([f"replay={tmp_path / name}"]) == WRONG_USE
        error = capsys.readouterr().err
        assert reason in error
        assert error.count("\n") == 1
