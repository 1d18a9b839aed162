"""Runs of segmentation: exact on resume, equal on two ranks, replayable, and evaluated alike by swinv2-eval."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from swinv2_train.analysis.evaluate import EvalOptions, evaluate
from swinv2_train.config.tasks import SimMIMConfig
from swinv2_train.exit_codes import FINISHED
from swinv2_train.tasks.segmentation.task import Segmentation
from swinv2_train.tasks.task import Losses
from tests.checkpoint.weights import load_weights
from tests.engine.threads import on_ranks
from tests.evaluated import save_weights
from tests.faults.job import FaultyRun
from tests.faults.nursery import Nursery
from tests.runs import comparable, losses, metrics, run_here
from tests.segmented import make_segmented_data, tiny_segmentation

STEPS, LAST, MIDDLE = 6, "step-00000006", "step-00000003"


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_segmented_data(tmp_path_factory.mktemp("segmented"))


@pytest.fixture(scope="module")
def run(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of an uninterrupted run from the weights of SimMIM."""
    folder = tmp_path_factory.mktemp("runs")
    simmim = save_weights(folder / "simmim.safetensors", SimMIMConfig(mask_patch_size=16), depths=[1, 2, 1, 1])
    command = tiny_segmentation(shards, folder / "whole", f"init_from={simmim}")
    assert run_here(command) == FINISHED
    return folder / "whole"


def half(run: Path, copy: Path) -> None:
    """Copy a run as if it had been killed after its middle checkpoint."""
    shutil.copytree(run, copy)
    shutil.rmtree(copy / "checkpoints" / LAST)
    for name in ("status.json", "report.html"):
        (copy / name).unlink(missing_ok=True)


def command(run: Path, shards: Path, run_dir: Path, *overrides: str) -> list[str]:
    simmim = run.parent / "simmim.safetensors"
    return tiny_segmentation(shards, run_dir, f"init_from={simmim}", *overrides)


@pytest.mark.slow
def test_a_run_from_simmim_measures_and_draws(run: Path) -> None:
    table = (run / "init_from.txt").read_text().splitlines()
    origins = dict(line.split(maxsplit=2)[:2] for line in table if "  " in line)
    assert origins["decoder.classifier.weight"] == "new"
    assert origins["layers.0.blocks.0.attn.qkv.weight"] == "loaded"
    steps = [row for row in metrics(run) if "lr" in row]
    factors = {"cross_entropy": 1, "auxiliary": 1, "dice": 1}  # logged with their factors
    for row in steps:
        assert row["loss"] == pytest.approx(sum(row[f"loss/{name}"] for name in factors), rel=1e-6)
    scores = [row for row in metrics(run) if "eval/miou" in row]
    assert [row["step"] for row in scores] == [3, 6]
    assert scores[0]["eval/samples"] == 5
    assert {"eval/mean_accuracy", "eval/pixel_accuracy", "eval/dice", "eval/loss"} <= scores[0].keys()
    assert (run / "figures" / f"segmentation-{LAST}.png").is_file()


@pytest.mark.slow
def test_a_killed_run_ends_like_its_twin(run: Path, shards: Path, tmp_path: Path) -> None:
    half(run, tmp_path / "half")
    assert run_here(command(run, shards, tmp_path / "half")) == FINISHED
    assert comparable(tmp_path / "half") == comparable(run)
    ours, twin = (load_weights(path / "checkpoints" / LAST) for path in (tmp_path / "half", run))
    assert ours.keys() == twin.keys()
    assert all(torch.equal(ours[name], twin[name]) for name in twin)


@pytest.mark.distributed
def test_two_ranks_follow_one(nursery: Nursery, run: Path, shards: Path, tmp_path: Path) -> None:
    """With other micro-batches and accumulation, too."""
    two = FaultyRun(tmp_path / "two", command(run, shards, tmp_path / "two", "engine.micro_batch=2"), nursery)
    assert two.go(2) == FINISHED, two.jobs[0].output
    assert losses(tmp_path / "two") == pytest.approx(losses(run), rel=1e-6)
    ours, twin = ([row for row in metrics(path) if "eval/miou" in row] for path in (tmp_path / "two", run))
    for one, other in zip(ours, twin, strict=True):
        for name in ("miou", "mean_accuracy", "pixel_accuracy", "dice", "loss"):
            assert one[f"eval/{name}"] == pytest.approx(other[f"eval/{name}"], rel=1e-4), name


@pytest.mark.slow
def test_a_refused_step_is_replayed(run: Path, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    half(run, tmp_path / "half")
    real = Segmentation.loss

    def poisoned(self: Segmentation, model: torch.nn.Module, batch: dict[str, Any]) -> Losses:
        terms = real(self, model, batch).terms
        bad = float("nan") if 37 in batch["position"].tolist() else 1.0
        return Losses({**terms, "dice": terms["dice"] * bad})

    monkeypatch.setattr(Segmentation, "loss", poisoned)
    assert run_here(command(run, shards, tmp_path / "half", "guard.policy=skip", "optim.steps=5")) == FINISHED
    (incident,) = (tmp_path / "half" / "incidents").glob("*.json")
    assert run_here([f"replay={incident}"]) == FINISHED
    report = json.loads((incident.with_suffix("") / "replay.json").read_text())
    assert report["same_to_the_bit"]
    assert report["worst_samples"][0]["position"] == 37
    assert list(incident.with_suffix("").rglob("*worst-samples-*.png"))


@pytest.mark.slow
def test_any_number_of_ranks_evaluates_the_same_pixels(run: Path, shards: Path) -> None:
    options = EvalOptions(str(run), f"{shards}/eval-*.tar", workers=0, batch=2)
    (alone,) = on_ranks(1, lambda ranks: evaluate(options, ranks))
    trained = [row for row in metrics(run) if "eval/miou" in row][-1]
    for name in ("miou", "mean_accuracy", "pixel_accuracy", "dice", "loss", "samples"):
        assert alone.metrics[name] == pytest.approx(trained[f"eval/{name}"], rel=1e-6), name
    for world_size in (2, 3):
        for found in on_ranks(world_size, lambda ranks: evaluate(options, ranks)):
            for name, value in alone.sums.items():
                if name != "total":  # added up in another order
                    np.testing.assert_array_equal(found.sums[name], value)
            assert found.metrics == pytest.approx(alone.metrics, rel=1e-12)
