"""Runs of detection: exact on resume, replayable, and evaluated the same way by swinv2-eval."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from swinv2_train.analysis.evaluate import EvalOptions, evaluate
from swinv2_train.cli.evaluate import main as evaluate_command
from swinv2_train.config.compose import compose
from swinv2_train.config.tasks import ClassificationConfig, SegmentationConfig, SimMIMConfig
from swinv2_train.data.batch import Batch
from swinv2_train.exit_codes import FINISHED
from swinv2_train.models.detection.roi_heads import RoiHeads
from swinv2_train.tasks.detection import task as task_module
from swinv2_train.tasks.detection.task import Detection
from swinv2_train.tasks.task import Losses
from tests.checkpoint.weights import load_weights
from tests.detected import HTC, make_detected_data, tiny_detection
from tests.engine.threads import on_ranks
from tests.evaluated import save_weights
from tests.runs import comparable, cut_short, exit_code, metrics, origins, run_here
from tests.tasks.detection.synthetic import disturbed, judge
from tests.tasks.refused import refuse_and_replay_poisoned

LAST = "step-00000004"


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_detected_data(tmp_path_factory.mktemp("detected"))


@pytest.fixture(scope="module")
def run(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of an uninterrupted run from the weights of SimMIM."""
    folder = tmp_path_factory.mktemp("runs")
    save_weights(folder / "simmim.safetensors", SimMIMConfig(mask_patch_size=16), depths=[1, 2, 1, 1])
    assert run_here(command(folder / "whole", shards, folder / "whole")) == FINISHED
    return folder / "whole"


def command(run: Path, shards: Path, run_dir: Path, *overrides: str) -> list[str]:
    simmim = run.parent / "simmim.safetensors"
    return tiny_detection(shards, run_dir, f"init_from={simmim}", *HTC, *overrides)


@pytest.mark.slow
def test_a_run_from_simmim_measures_and_draws(run: Path) -> None:
    found = origins(run)
    assert found["heads.box_heads.0.classes.weight"] == "new"
    assert found["layers.0.blocks.0.attn.qkv.weight"] == "loaded"
    steps = [row for row in metrics(run) if "lr" in row]
    for row in steps:
        terms = [value for name, value in row.items() if name.startswith("loss/")]
        assert len(terms) == 2 + 3 * 3 + 1
        assert row["loss/semantic"] > 0.01
        assert row["loss"] == pytest.approx(sum(terms), rel=1e-6)
    scores = [row for row in metrics(run) if "eval/box_ap" in row]
    assert [row["step"] for row in scores] == [2, 4]
    assert scores[0]["eval/samples"] == 6
    assert len(scores[0]) == 24 + 2
    assert (run / "figures" / f"detection-{LAST}.png").is_file()


@pytest.mark.slow
def test_a_killed_run_ends_like_its_twin(run: Path, shards: Path, tmp_path: Path) -> None:
    cut_short(run, tmp_path / "half")
    assert run_here(command(run, shards, tmp_path / "half")) == FINISHED
    assert comparable(tmp_path / "half") == comparable(run)
    ours, twin = (load_weights(path / "checkpoints" / LAST) for path in (tmp_path / "half", run))
    assert ours.keys() == twin.keys()
    assert all(torch.equal(ours[name], twin[name]) for name in twin)


@pytest.mark.slow
def test_a_refused_step_is_replayed(run: Path, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The offsets of the first stage, on which every later part depends, are not numbers for a sample with objects."""
    half = cut_short(run, tmp_path / "half")
    skipping = command(run, shards, half, "guard.policy=skip", "optim.steps=3")
    real = Detection.loss

    def poisoned(self: Detection, model: nn.Module, batch: Batch) -> Losses:
        if 8 not in batch["position"].tolist():
            return real(self, model, batch)
        (heads,) = (each for each in model.modules() if isinstance(each, RoiHeads))
        hook = heads.box_heads[0].register_forward_hook(lambda _, __, found: (found[0], found[1] * math.nan))
        try:
            return real(self, model, batch)
        finally:
            hook.remove()

    monkeypatch.setattr(Detection, "loss", poisoned)
    refuse_and_replay_poisoned(8, skipping)


@pytest.mark.slow
def test_swinv2_eval_writes_results_that_pycocotools_scores_the_same_way_on_any_number_of_ranks(
    run: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The images, with crowd regions, gaps in the ids, and some without objects, come from shards; the detections are
    planted."""
    monkeypatch.setattr(task_module, "with_found", lambda record, _: replace(record, found=disturbed(record)))
    out = tmp_path / "out"
    arguments = [f"checkpoint={run}", f"data={shards}/eval/*.tar", f"out={out}", "workers=0", "device=cpu"]
    assert exit_code(evaluate_command, *arguments) == 0
    scores = json.loads((out / "results.json").read_text())["metrics"]
    source = shards / "eval-source" / "annotations.json"
    for kind, file in (("box", "detections.json"), ("mask", "detections_masks.json")):
        numbers = judge(source, out / file, kind)
        ours = [value for name, value in scores.items() if name.startswith(f"{kind}_")]
        assert [-1 if value is None else value for value in ours] == pytest.approx(numbers, abs=1e-12)
    rows = list(csv.DictReader((out / "per_class.csv").open()))
    tile, brick = (float(row["mask_ap"]) for row in rows if row["name"] in ("tile", "brick"))
    assert 0.2 < brick < tile < 0.9
    assert {"per_class.csv", "box_precision_recall.png"} <= {path.name for path in out.iterdir()}
    assert "short side 64 pixels, longer side at most 80" in capsys.readouterr().out
    options = EvalOptions(str(run), f"{shards}/eval/*.tar", workers=0, batch=2)
    for world_size in (2, 3):
        for found in on_ranks(world_size, lambda ranks: evaluate(options, ranks)):
            for name, value in found.metrics.items():
                known = float("nan") if scores[name] is None else scores[name]
                assert value == pytest.approx(known, rel=0, abs=0, nan_ok=True), name


@pytest.mark.slow
def test_runs_start_from_other_tasks_and_from_detectors_of_other_classes_without_masks(
    run: Path, shards: Path, tmp_path: Path
) -> None:
    first = compose(command(run, shards, tmp_path / "x", "task.masks=false", "task.num_classes=4")).task
    sources = {
        "classifier": (ClassificationConfig(num_classes=3), None),
        "segmenter": (SegmentationConfig(num_classes=3, channels=16, auxiliary_channels=16), None),
        "boxes": (first, ["kite", "owl", "tile", "brick"]),
    }
    for name, (task, names) in sources.items():
        path = save_weights(tmp_path / f"{name}.safetensors", task, names, depths=[1, 2, 1, 1])
        more = (f"init_from={path}", "optim.steps=1", "optim.warmup_steps=0", "data.eval_shards=''")
        assert run_here(command(run, shards, tmp_path / name, *more)) == FINISHED
        found = origins(tmp_path / name)
        assert found["layers.0.blocks.0.attn.qkv.weight"] == "loaded"
        assert found["heads.mask_heads.2.classes.weight"] == "new"
        if name != "boxes":
            assert found["rpn.conv.weight"] == "new"
            continue
        assert found["rpn.conv.weight"] == found["heads.box_heads.1.boxes.weight"] == "loaded"
        assert found["heads.box_heads.1.background.weight"] == "loaded"
        table = (tmp_path / name / "init_from.txt").read_text()
        assert "head row 0 (tile): row 2 of the source (tile)" in table
