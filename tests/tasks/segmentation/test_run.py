"""Runs of segmentation: exact on resume, equal on two ranks, replayable, and evaluated alike by swinv2-eval."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from swinv2_train.analysis.evaluate import EvalOptions, evaluate
from swinv2_train.cli.evaluate import main as evaluate_command
from swinv2_train.config.tasks import SimMIMConfig
from swinv2_train.exit_codes import FINISHED
from swinv2_train.tasks.segmentation.task import Segmentation
from tests.checkpoint.weights import load_weights
from tests.engine.threads import on_ranks
from tests.evaluated import save_weights
from tests.faults.job import FaultyRun
from tests.faults.nursery import Nursery
from tests.runs import comparable, cut_short, losses, metrics, origins, run_here
from tests.segmented import make_segmented_data, make_segmented_shard, tiny_segmentation
from tests.tasks.refused import refuse_and_replay

LAST = "step-00000004"


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


def command(run: Path, shards: Path, run_dir: Path, *overrides: str) -> list[str]:
    simmim = run.parent / "simmim.safetensors"
    return tiny_segmentation(shards, run_dir, f"init_from={simmim}", *overrides)


@pytest.mark.slow
def test_a_run_from_simmim_measures_and_draws(run: Path) -> None:
    found = origins(run)
    assert found["decoder.classifier.weight"] == "new"
    assert found["layers.0.blocks.0.attn.qkv.weight"] == "loaded"
    steps = [row for row in metrics(run) if "lr" in row]
    factors = {"cross_entropy": 1, "auxiliary": 1, "dice": 1}  # logged with their factors
    for row in steps:
        assert row["loss"] == pytest.approx(sum(row[f"loss/{name}"] for name in factors), rel=1e-6)
    scores = [row for row in metrics(run) if "eval/miou" in row]
    assert [row["step"] for row in scores] == [2, 4]
    assert scores[0]["eval/samples"] == 5
    assert {"eval/mean_accuracy", "eval/pixel_accuracy", "eval/dice", "eval/loss"} <= scores[0].keys()
    assert (run / "figures" / f"segmentation-{LAST}.png").is_file()


@pytest.mark.slow
def test_a_killed_run_ends_like_its_twin(run: Path, shards: Path, tmp_path: Path) -> None:
    cut_short(run, tmp_path / "half")
    assert run_here(command(run, shards, tmp_path / "half")) == FINISHED
    assert comparable(tmp_path / "half") == comparable(run)
    ours, twin = (load_weights(path / "checkpoints" / LAST) for path in (tmp_path / "half", run))
    assert ours.keys() == twin.keys()
    assert all(torch.equal(ours[name], twin[name]) for name in twin)


@pytest.mark.distributed
def test_two_ranks_follow_one(nursery: Nursery, run: Path, shards: Path, tmp_path: Path) -> None:
    """With other micro-batches and accumulation, too: losses within 1e-6, and the same class for every pixel.

    Only a pixel whose two best scores are closer than rounding moves them could get another class. Scores of up to 0.08
    move by 6e-8, so fewer than one such run in twenty has a pixel like this among its 20,000.
    """
    two = FaultyRun(tmp_path / "two", command(run, shards, tmp_path / "two", "engine.micro_batch=2"), nursery)
    assert two.go(2) == FINISHED, two.jobs[0].output
    compare(tmp_path / "two", run, steps=4)


@pytest.mark.distributed
def test_two_ranks_with_divided_weights_follow_one(nursery: Nursery, run: Path, shards: Path, tmp_path: Path) -> None:
    """With ZeRO stage 3, every forward pass is a collective: also those of an evaluation and of a figure."""
    options = ("engine.zero_stage=3", "engine.micro_batch=2", "optim.steps=3", "eval.figure_every_steps=2")
    two = FaultyRun(tmp_path / "two", command(run, shards, tmp_path / "two", *options), nursery)
    assert two.go(2) == FINISHED, two.jobs[0].output
    compare(tmp_path / "two", run, steps=3)
    names = [f"figures/segmentation-step-0000000{step}.png" for step in (2, 4)]
    drawn, twin = (np.asarray(Image.open(path).convert("L")) for path in (tmp_path / "two" / names[0], run / names[1]))
    assert drawn.shape == twin.shape
    assert (drawn[40:, :120] == twin[40:, :120]).mean() > 0.95  # the images, which the weights do not change
    ours, before = (load_weights(path / "checkpoints" / "step-00000002") for path in (tmp_path / "two", run))
    for name, weight in before.items():
        torch.testing.assert_close(ours[name], weight, rtol=1e-5, atol=1e-6)


def compare(run_dir: Path, twin_dir: Path, steps: int) -> None:
    """Check that a run of this many steps has the losses of its twin, and its metrics where both were evaluated."""
    assert losses(run_dir) == pytest.approx(losses(twin_dir)[:steps], rel=1e-6)
    ours, twin = ({row["step"]: row for row in metrics(path) if "eval/miou" in row} for path in (run_dir, twin_dir))
    for step in {2, 4} & set(range(steps + 1)):
        assert ours[step]["eval/loss"] == pytest.approx(twin[step]["eval/loss"], rel=1e-6)
        for name in ("miou", "mean_accuracy", "pixel_accuracy", "dice"):
            assert ours[step][f"eval/{name}"] == twin[step][f"eval/{name}"], name


@pytest.mark.slow
def test_a_refused_step_is_replayed(run: Path, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    half = cut_short(run, tmp_path / "half")
    skipping = command(run, shards, half, "guard.policy=skip", "optim.steps=3")
    refuse_and_replay(monkeypatch, Segmentation, "dice", 21, skipping)


@pytest.mark.slow
def test_any_number_of_ranks_evaluates_the_same_pixels(run: Path, shards: Path) -> None:
    options = EvalOptions(str(run), f"{shards}/eval-*.tar", workers=0, batch=2)
    trained = [row for row in metrics(run) if "eval/miou" in row][-1]
    sums = []
    for world_size in (2, 3):
        for found in on_ranks(world_size, lambda ranks: evaluate(options, ranks)):
            sums.append(found.sums)
            for name, value in found.metrics.items():  # those of training came from one rank
                assert value == pytest.approx(trained[f"eval/{name}"], rel=1e-12), name
    for name, value in sums[0].items():
        if name != "total":  # added up in another order
            assert all(np.array_equal(other[name], value) for other in sums), name


@pytest.mark.slow
def test_swinv2_eval_shows_classes_and_takes_other_numberings(
    run: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_segmented_shard(tmp_path / "eval-0.tar", 5, 2, numbers=(2, 1, 0))
    (tmp_path / "map.txt").write_text("2\n1\n0\n")
    results = []
    for data, options in (
        (tmp_path, ("label_map=" + str(tmp_path / "map.txt"),)),
        (shards, ("task.inference=slide", "task.overlap=0.5", "task.test_flip=true")),
    ):
        out = tmp_path / f"out-{len(results)}"
        arguments = [f"checkpoint={run}", f"data={data}/eval-*.tar", f"out={out}", "workers=0", "device=cpu", *options]
        with pytest.raises(SystemExit) as caught:
            evaluate_command(arguments)
        assert caught.value.code == 0
        results.append(json.loads((out / "results.json").read_text()))
        assert {"per_class.csv", "confusion.png", "confusion.pdf"} <= {path.name for path in out.iterdir()}
    renumbered, slide = results
    (trained,) = [row for row in metrics(run) if row["step"] == 4 and "eval/miou" in row]
    output = capsys.readouterr().out
    assert "mean IoU" in output
    assert "share of the pixels" in output
    assert "short side 32 pixels, longer side at most 128, whole images, window 4" in output
    assert "windows of 64x32 pixels that share 50%, with mirrored images" in output
    for name, value in renumbered["metrics"].items():
        assert value == pytest.approx(trained[f"eval/{name}"], rel=1e-6), name
    assert renumbered["pixels"] == slide["pixels"]
    assert slide["metrics"]["loss"] != renumbered["metrics"]["loss"]
    assert slide["input"]["inference"] == "slide"
