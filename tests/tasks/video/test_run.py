"""Runs of video classification: exact on resume, equal on two ranks, replayable, and evaluated alike by swinv2-eval."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from swinv2_train.analysis.evaluate import EvalOptions, evaluate
from swinv2_train.config.tasks import ClassificationConfig
from swinv2_train.exit_codes import FINISHED
from swinv2_train.tasks.task import Losses
from swinv2_train.tasks.video.task import Video
from tests.checkpoint.weights import load_weights
from tests.engine.threads import on_ranks
from tests.evaluated import save_weights
from tests.faults.job import FaultyRun
from tests.faults.nursery import Nursery
from tests.filmed import make_filmed_data, make_filmed_shard, tiny_clips, tiny_video
from tests.runs import comparable, losses, metrics, run_here

LAST = "step-00000004"


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_filmed_data(tmp_path_factory.mktemp("filmed"))


@pytest.fixture(scope="module")
def run(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of an uninterrupted run from the weights of a classifier of images."""
    folder = tmp_path_factory.mktemp("runs")
    save_weights(folder / "images.safetensors", ClassificationConfig(num_classes=5), depths=[1, 2, 1, 1])
    assert run_here(command(folder / "whole", shards, folder / "whole")) == FINISHED
    return folder / "whole"


def command(run: Path, shards: Path, run_dir: Path, *overrides: str) -> list[str]:
    return tiny_video(shards, run_dir, f"init_from={run.parent / 'images.safetensors'}", *overrides)


def half(run: Path, copy: Path, last: str = LAST) -> None:
    """Copy a run as if it had been killed after its middle checkpoint."""
    shutil.copytree(run, copy)
    shutil.rmtree(copy / "checkpoints" / last)
    for name in ("status.json", "report.html"):
        (copy / name).unlink(missing_ok=True)


def same_weights(one: Path, other: Path, last: str = LAST) -> bool:
    ours, twin = (load_weights(path / "checkpoints" / last) for path in (one, other))
    return ours.keys() == twin.keys() and all(torch.equal(ours[name], twin[name]) for name in twin)


@pytest.mark.slow
def test_a_run_from_weights_of_images_measures_and_draws(run: Path) -> None:
    table = (run / "init_from.txt").read_text().splitlines()
    origins = dict(line.split(maxsplit=2)[:2] for line in table if "  " in line)
    assert origins["patch_embed.proj.weight"] == "inflated"
    assert origins["layers.0.blocks.0.attn.cpb_mlp.0.weight"] == "inflated"
    assert origins["layers.0.blocks.0.attn.qkv.weight"] == "loaded"
    assert origins["head.weight"] == "new"
    scores = [row for row in metrics(run) if "eval/top1" in row]
    assert [row["step"] for row in scores] == [2, 4]
    assert scores[0]["eval/samples"] == 5
    assert {"eval/loss", "eval/clip_top1", "eval/mean_class_accuracy", "eval/ece"} <= scores[0].keys()
    assert (run / "figures" / f"video-{LAST}.png").is_file()


@pytest.mark.slow
def test_a_killed_run_ends_like_its_twin_also_with_workers(run: Path, shards: Path, tmp_path: Path) -> None:
    half(run, tmp_path / "half")
    assert run_here(command(run, shards, tmp_path / "half", "data.num_workers=1")) == FINISHED
    assert comparable(tmp_path / "half") == comparable(run)
    assert same_weights(tmp_path / "half", run)


@pytest.mark.distributed
@pytest.mark.parametrize("options", [("engine.micro_batch=2",), ("engine.micro_batch=2", "engine.zero_stage=3")])
def test_two_ranks_follow_one(
    nursery: Nursery, run: Path, shards: Path, tmp_path: Path, options: tuple[str, ...]
) -> None:
    """With other micro-batches and accumulation; with ZeRO stage 3, every view of an evaluation is a collective."""
    two = FaultyRun(tmp_path / "two", command(run, shards, tmp_path / "two", *options), nursery)
    assert two.go(2) == FINISHED, two.jobs[0].output
    assert losses(tmp_path / "two") == pytest.approx(losses(run), rel=1e-6)
    ours, twin = ([row for row in metrics(path) if "eval/top1" in row] for path in (tmp_path / "two", run))
    assert [row["step"] for row in ours] == [row["step"] for row in twin]
    for row, other in zip(ours, twin, strict=True):
        assert row["eval/loss"] == pytest.approx(other["eval/loss"], rel=1e-6)
        for name in ("top1", "clip_top1", "mean_class_accuracy", "samples"):
            assert row[f"eval/{name}"] == other[f"eval/{name}"], name
    assert (tmp_path / "two" / "figures" / f"video-{LAST}.png").is_file()


@pytest.mark.slow
def test_a_refused_step_is_replayed(run: Path, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    half(run, tmp_path / "half")
    real = Video.loss

    def poisoned(self: Video, model: torch.nn.Module, batch: dict[str, Any]) -> Losses:
        bad = float("nan") if 21 in batch["position"].tolist() else 1.0
        return Losses.single(real(self, model, batch).terms["loss"] * bad)

    monkeypatch.setattr(Video, "loss", poisoned)
    assert run_here(command(run, shards, tmp_path / "half", "guard.policy=skip", "optim.steps=3")) == FINISHED
    (incident,) = (tmp_path / "half" / "incidents").glob("*.json")
    assert run_here([f"replay={incident}"]) == FINISHED
    report = json.loads((incident.with_suffix("") / "replay.json").read_text())
    assert report["same_to_the_bit"]
    assert report["worst_samples"][0]["position"] == 21
    assert list(incident.with_suffix("").rglob("*worst-samples-*.png"))


@pytest.mark.slow
def test_any_number_of_ranks_evaluates_the_same_videos(run: Path, shards: Path) -> None:
    options = EvalOptions(str(run), f"{shards}/eval-*.tar", workers=0, batch=12)
    trained = [row for row in metrics(run) if "eval/top1" in row][-1]
    for world_size in (2, 3):
        for found in on_ranks(world_size, lambda ranks: evaluate(options, ranks)):
            assert found.sums["views"] == 6 * 5
            for name, value in found.metrics.items():  # those of training came from one rank
                assert value == pytest.approx(trained[f"eval/{name}"], rel=1e-6), name


@pytest.mark.slow
def test_other_views_and_windows_of_finished_weights(run: Path, shards: Path) -> None:
    changes = ("task.views=1x1", "data.crop_pct=0.875", "model.temporal_window=4", "data.frames=12")
    changes = (*changes, "test_window=8", "data.resolution=64")
    options = EvalOptions(str(run), f"{shards}/eval-*.tar", overrides=changes, workers=0, batch=2)
    (found,) = on_ranks(1, lambda ranks: evaluate(options, ranks))
    assert found.metrics["samples"] == 5
    assert found.metrics["clip_top1"] == found.metrics["top1"]
    assert found.config.model.pretrained_temporal_window == [2, 2, 2, 2]
    assert found.figure is not None
    assert found.config.task.preparation(found.config) == (
        "1 clip of 12 frames at stride 1, 1 crop of 64x64 pixels (0.875 of the shorter side)"
    )


@pytest.mark.slow
def test_a_run_goes_on_over_broken_videos_in_bf16(shards: Path, tmp_path: Path) -> None:
    shutil.copytree(shards, tmp_path / "shards")
    for path, count, seed, broken in (("train-1.tar", 5, 1, (1, 3)), ("eval-0.tar", 5, 2, (2,))):
        make_filmed_shard(tmp_path / "shards" / path, count, seed, broken)
    changes = ("engine=zero1_bf16", "optim.steps=2", "data.max_broken_share=1", "task.views=1x1", "optim.ema_decay=0.9")
    assert run_here(tiny_video(tmp_path / "shards", tmp_path / "run", *changes)) == FINISHED
    (row,) = [row for row in metrics(tmp_path / "run") if "eval/top1" in row]
    assert row["eval/samples"] == 4
    assert np.isfinite([row["eval/loss"], row["eval/ema_loss"], *losses(tmp_path / "run")]).all()
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "eval-0-0002" in log
    assert "video decoder: PyAV" in log
    assert " clips/s" in log


@pytest.mark.slow
def test_simmim_on_clips_resumes_exactly_and_starts_a_run_of_videos(shards: Path, tmp_path: Path) -> None:
    options = ("optim.steps=2", "checkpoint.every_steps=1", "eval.signal_every_steps=2", "eval.figure_every_steps=2")
    simmim = ("task=simmim", "task.mask_patch_size=8", *options)
    assert run_here(tiny_clips(shards, tmp_path / "simmim", *simmim)) == FINISHED
    half(tmp_path / "simmim", tmp_path / "half", "step-00000002")
    assert run_here(tiny_clips(shards, tmp_path / "half", *simmim)) == FINISHED
    assert comparable(tmp_path / "half") == comparable(tmp_path / "simmim")
    assert same_weights(tmp_path / "half", tmp_path / "simmim", "step-00000002")
    for name in ("simmim", "signal"):
        assert (tmp_path / "simmim" / "figures" / f"{name}-step-00000002.png").is_file()
    changes = ("optim.steps=2", "optim.layer_decay=0.8", "optim.lr_scales={backbone: 0.1}", "optim.freeze={stages: 1}")
    assert run_here(tiny_video(shards, tmp_path / "video", f"init_from={tmp_path / 'simmim'}", *changes)) == FINISHED
    before, after = (load_weights(tmp_path / name / "checkpoints" / "step-00000002") for name in ("simmim", "video"))
    moved = {}
    for name, value in after.items():
        if (start := before.get(name.replace("backbone.", "encoder."))) is not None:
            moved[name.removeprefix("backbone.")] = float((value - start).abs().max())
    assert moved["patch_embed.proj.weight"] == 0
    assert 0 < moved["layers.1.blocks.0.mlp.fc1.weight"] < moved["layers.3.blocks.0.mlp.fc1.weight"] < 1e-4


@pytest.mark.slow
def test_a_run_of_videos_starts_one_with_other_classes_and_windows(run: Path, shards: Path, tmp_path: Path) -> None:
    (tmp_path / "map.txt").write_text("2\n1\n0\n0\n")
    changes = (
        "task.num_classes=4",
        f"init.label_map={tmp_path / 'map.txt'}",
        "model.temporal_window=4",
        "optim.steps=1",
    )
    options = ("optim.warmup_steps=0", "optim.lr=1e-12", "optim.clip_norm=1e-3", "data.eval_shards=null")
    command = tiny_video(shards, tmp_path / "other", f"init_from={run}", *changes, *options)
    assert run_here(command) == FINISHED
    before = load_weights(run / "checkpoints" / LAST)
    after = load_weights(tmp_path / "other" / "checkpoints" / "step-00000001")
    torch.testing.assert_close(after["head.weight"], before["head.weight"][[2, 1, 0, 0]], atol=1e-9, rtol=0)
    table = (tmp_path / "other" / "init_from.txt").read_text()
    assert "inflated" not in table
