"""Runs of detection: exact on resume, equal on two ranks, replayable, and evaluated the same way by swinv2-eval."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from swinv2_train.analysis.evaluate import EvalOptions, evaluate
from swinv2_train.cli.evaluate import main as evaluate_command
from swinv2_train.config.compose import compose
from swinv2_train.config.tasks import ClassificationConfig, SegmentationConfig, SimMIMConfig
from swinv2_train.exit_codes import FINISHED
from swinv2_train.tasks.detection.task import Detection
from swinv2_train.tasks.task import Losses
from tests.checkpoint.weights import load_weights
from tests.detected import make_detected_data, tiny_detection
from tests.engine.threads import on_ranks
from tests.evaluated import save_weights
from tests.faults.job import FaultyRun
from tests.faults.nursery import Nursery
from tests.runs import comparable, losses, metrics, run_here

LAST = "step-00000004"
HTC = (
    "task.detector=htc", "task.class_agnostic=true", "task.global_attention=true", "task.copy_paste=0.5",
    "task.scaling=short", "task.short_sides=[56,64]", "task.long_side=80", "task.crop_sides=[24,48]",
    "task.crop_short_sides=[32,48]", "model.attention=sequential", "model.checkpointing=1",
)  # fmt: skip
"""Everything that has randomness, canvases of several sizes, and what saves memory."""


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


def half(run: Path, copy: Path) -> None:
    """Copy a run as if it had been killed after its middle checkpoint."""
    shutil.copytree(run, copy)
    shutil.rmtree(copy / "checkpoints" / LAST)
    for name in ("status.json", "report.html"):
        (copy / name).unlink(missing_ok=True)


def origins(run: Path) -> dict[str, str]:
    table = (run / "init_from.txt").read_text().splitlines()
    return dict(line.split(maxsplit=2)[:2] for line in table if "  " in line)


@pytest.mark.slow
def test_a_run_from_simmim_measures_and_draws(run: Path) -> None:
    found = origins(run)
    assert found["heads.box_heads.0.classes.weight"] == "new"
    assert found["layers.0.blocks.0.attn.qkv.weight"] == "loaded"
    steps = [row for row in metrics(run) if "lr" in row]
    for row in steps:
        terms = [value for name, value in row.items() if name.startswith("loss/")]
        assert len(terms) == 2 + 3 * 3
        assert row["loss"] == pytest.approx(sum(terms), rel=1e-6)
    scores = [row for row in metrics(run) if "eval/box_ap" in row]
    assert [row["step"] for row in scores] == [2, 4]
    assert scores[0]["eval/samples"] == 6
    assert len(scores[0]) == 24 + 2
    assert (run / "figures" / f"detection-{LAST}.png").is_file()


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
    """With other micro-batches, accumulation, and a worker; a rank may have no object in a step.

    Precision depends only on the order of the scores and on overlaps of half and more, which rounding does not change
    here: so the metrics are equal.
    """
    more = ("engine.micro_batch=1", "data.num_workers=1", "task.num_classes=3", "task.masks=true")
    two = FaultyRun(tmp_path / "two", command(run, shards, tmp_path / "two", *more), nursery)
    assert two.go(2) == FINISHED, two.jobs[0].output
    assert losses(tmp_path / "two") == pytest.approx(losses(run), rel=1e-6)
    ours, twin = ([row for row in metrics(path) if "eval/box_ap" in row] for path in (tmp_path / "two", run))
    assert ours == twin
    assert all(row["eval/box_ap"] > 0.01 for row in twin)


@pytest.mark.slow
def test_a_refused_step_is_replayed(run: Path, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    half(run, tmp_path / "half")
    real = Detection.loss

    def poisoned(self: Detection, model: torch.nn.Module, batch: dict[str, Any]) -> Losses:
        terms = real(self, model, batch).terms
        bad = float("nan") if 10 in batch["position"].tolist() else 1.0
        return Losses({**terms, "rpn_box": terms["rpn_box"] * bad})

    monkeypatch.setattr(Detection, "loss", poisoned)
    assert run_here(command(run, shards, tmp_path / "half", "guard.policy=skip", "optim.steps=3")) == FINISHED
    (incident,) = (tmp_path / "half" / "incidents").glob("*.json")
    assert run_here([f"replay={incident}"]) == FINISHED
    report = json.loads((incident.with_suffix("") / "replay.json").read_text())
    assert report["same_to_the_bit"]
    assert report["worst_samples"][0]["position"] == 10
    assert list(incident.with_suffix("").rglob("*worst-samples-*.png"))


def judged(annotations: Path, results: Path, kind: str) -> list[float]:
    """The twelve numbers of pycocotools for a results file and the annotations that were packed."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(annotations))
        evaluation = COCOeval(truth, truth.loadRes(str(results)), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return [float(value) for value in evaluation.stats]


@pytest.mark.slow
def test_swinv2_eval_writes_results_that_pycocotools_scores_the_same_way_on_any_number_of_ranks(
    run: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    arguments = [f"checkpoint={run}", f"data={shards}/eval/*.tar", f"out={out}", "workers=0", "device=cpu"]
    with pytest.raises(SystemExit) as caught:
        evaluate_command(arguments)
    assert caught.value.code == 0
    scores = json.loads((out / "results.json").read_text())["metrics"]
    for kind, file, evaluated in (("box", "detections.json", "bbox"), ("mask", "detections_masks.json", "segm")):
        numbers = judged(shards / "eval-source" / "annotations.json", out / file, evaluated)
        ours = [value for name, value in scores.items() if name.startswith(f"{kind}_")]
        assert [-1 if value is None else value for value in ours] == pytest.approx(numbers, abs=1e-12)
    assert {"per_class.csv", "box_precision_recall.png"} <= {path.name for path in out.iterdir()}
    assert "largest size within 64 x 80 pixels" in capsys.readouterr().out
    trained = [row for row in metrics(run) if "eval/box_ap" in row][-1]
    options = EvalOptions(str(run), f"{shards}/eval/*.tar", workers=0, batch=2)
    for world_size in (2, 3):
        for found in on_ranks(world_size, lambda ranks: evaluate(options, ranks)):
            for name, value in found.metrics.items():
                known = trained[f"eval/{name}"]
                assert value == (pytest.approx(float("nan"), nan_ok=True) if known is None else known), name


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
