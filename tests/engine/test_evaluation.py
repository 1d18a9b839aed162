"""Evaluations of a run in addition to the loss: probes of the features, and the signal of every block."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from swinv2_train.checkpoint.layout import list_checkpoints, read_manifest
from swinv2_train.config.compose import from_yaml
from swinv2_train.config.schema import Config
from swinv2_train.config.tasks import SegmentationConfig
from swinv2_train.engine.assemble import _probe
from swinv2_train.engine.evaluation import due
from swinv2_train.exit_codes import FINISHED
from swinv2_train.tracking.figures import with_heading
from tests.engine.threads import on_ranks
from tests.runs import make_labelled_shard, metrics, run_here, tiny_run


@pytest.fixture(scope="module")
def run(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("probed")
    for seed, name in enumerate(("learn", "score")):
        make_labelled_shard(directory / f"{name}-0.tar", 12, seed)
    more = [
        f"probe.shards={directory}/learn-0.tar", f"probe.eval_shards={directory}/score-0.tar", "probe.every_steps=2",
        "probe.knn=3", "eval.signal_every_steps=4", "checkpoint.keep_best=1", "checkpoint.best_mode=max",
        "checkpoint.best_metric=eval/probe/knn_top1",
    ]  # fmt: skip
    headings: list[str] = []

    def headed(image: Image.Image, text: str) -> Image.Image:
        headings.append(text)
        return with_heading(image, text)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("swinv2_train.engine.evaluation.with_heading", headed)
        assert run_here(tiny_run(shards, directory / "run", *more)) == FINISHED
    assert headings == ["step 8"]
    return directory / "run"


@pytest.mark.slow
def test_probes_score_the_features_when_it_is_their_turn(run: Path) -> None:
    scored = [row for row in metrics(run) if "eval/probe/knn_top1" in row]
    assert [row["step"] for row in scored] == [0, 2, 4, 6, 8]
    assert all(0 <= row[f"eval/probe/{kind}_top1"] <= 1 for row in scored for kind in ("knn", "linear"))


@pytest.mark.slow
def test_a_probe_more_often_than_evaluations_chooses_the_best(run: Path) -> None:
    for path in list_checkpoints(run / "checkpoints"):
        assert {"eval/loss", "eval/probe/knn_top1"} <= read_manifest(path).metrics.keys()


def test_the_signal_is_drawn_and_recorded(run: Path) -> None:
    rows = [row for row in metrics(run) if "eval/signal/largest" in row]
    assert [row["step"] for row in rows] == [4, 8]
    assert all(row["eval/signal/discrepancy"] >= 1 for row in rows)
    figures = sorted(path.name for path in (run / "figures").glob("signal-*"))
    assert figures == ["signal-step-00000004.png", "signal-step-00000008.png"]


def test_looking_changes_nothing_of_the_training(run: Path, finished_run: Path) -> None:
    def trained(directory: Path) -> list[float]:
        return [row["loss"] for row in metrics(directory) if "loss" in row]

    assert trained(run) == trained(finished_run)


def test_what_is_on_has_its_turn_at_the_end(run: Path) -> None:
    config = from_yaml(run / "resolved.yaml")
    assert due(config, 7, last=False) == set()
    assert due(config, 6, last=False) == {"probe"}
    assert due(config, 4, last=False) == {"evaluate", "probe", "signal"}
    assert due(config, 7, last=True) == {"evaluate", "probe", "signal", "draw"}


def test_the_probe_of_a_segmenter_prepares_images_as_for_its_finished_weights(run: Path) -> None:
    task = SegmentationConfig(num_classes=3, resize="native")
    config = Config(task=task, probe=from_yaml(run / "resolved.yaml").probe)
    rest = {"task": SimpleNamespace(mean=[0.5] * 3, std=[0.5] * 3), "plan": SimpleNamespace(micro_batch=4)}
    tracker = SimpleNamespace(warn=print)
    (probe,) = on_ranks(1, lambda ranks: _probe(SimpleNamespace(config=config, ranks=ranks, **rest), tracker))
    assert (probe.config.data.crop_mode, probe.config.data.crop_pct) == ("native", 1)
    assert config.data.crop_mode == "center"
