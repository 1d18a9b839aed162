"""`swinv2-analyze` as a user meets it: figures and numbers of one or more models."""

from __future__ import annotations

import contextlib
import csv
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from swinv2_train.analysis import window_transfer
from swinv2_train.analysis.evaluate import EvalOptions, Evaluated, evaluate
from swinv2_train.cli import analyze
from swinv2_train.cli.analyze import main, split_models
from swinv2_train.cli.analyze_display import labels, model_name
from swinv2_train.cli.weight_arguments import writable
from swinv2_train.config.errors import ConfigError
from swinv2_train.config.tasks import SegmentationConfig
from swinv2_train.errors import MainRankError
from tests.detected import NAMES, make_detected_data
from tests.engine.threads import on_ranks
from tests.evaluated import classifier, encoder, labelled_shards, save_weights
from tests.models.detection.made import section
from tests.runs import exit_code
from tests.segmented import make_segmented_shard


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("swinv2-analyze")
    labelled_shards(folder / "val", 7, 3)
    classifier(folder / "log.safetensors")
    classifier(folder / "table.safetensors", position_bias="table", norm_placement="pre")
    encoder(folder / "encoder.safetensors")
    return folder


@pytest.mark.slow
def test_windows_draws_a_curve_per_model(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    models = [f"{folder}/log.safetensors", f"{folder}/table.safetensors"]
    rest = [f"data={folder}/val", "windows=4,8", "workers=0", "device=cpu", f"out={tmp_path}/new"]
    assert exit_code(main, "windows", *models, *rest) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].split() == ["top-1", "accuracy", "(%)", "W4", "I32", "W8", "I64"]
    assert [line.split("  ")[0] for line in printed[1:3]] == ["log-spaced CPB", "parameterised bias"]
    written = {path.name for path in (tmp_path / "new").iterdir()}
    assert written == {"windows.png", "windows.pdf", "windows.csv", "windows.json"}
    rows = list(csv.DictReader((tmp_path / "new" / "windows.csv").open()))
    assert [(row["window"], row["height"]) for row in rows] == [("4", "32"), ("8", "64")] * 2
    content = json.loads((tmp_path / "new" / "windows.json").read_text())
    assert [model["trained_window"] for model in content["models"]] == [4, 4]
    assert float(rows[3]["top1"]) == content["models"][1]["points"][1]["metrics"]["top1"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "wide_changes", "titles", "sizes"),
    [
        ([], [], ["W4", "I32", "W8", "I64"], [("32", ""), ("64", "")]),
        # Images that keep their size are enlarged by themselves, and their sliding windows with them.
        (
            ["task.resize=native", "task.inference=slide", "task.test_scales=[0.5,1]"],
            ["task.resize=native", "task.inference=slide", "task.test_scales=[1,2]"],
            ["W4", "x1", "W8", "x2"],
            [("", "1.0"), ("", "2.0")],
        ),
    ],
    ids=["short", "native"],
)
def test_windows_of_a_segmenter_keep_their_proportions(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    changes: list[str],
    wide_changes: list[str],
    titles: list[str],
    sizes: list[tuple[str, str]],
) -> None:
    make_segmented_shard(tmp_path / "eval-0.tar", 2, 0)
    task = SegmentationConfig(num_classes=3, channels=8, decoder="fpn", auxiliary_weight=0)
    save_weights(tmp_path / "stages.safetensors", task, window=[4, 4, 4, 2])
    rest = [f"data={tmp_path}/eval-0.tar", "workers=0", "device=cpu", f"out={tmp_path}/new"]
    assert exit_code(main, "windows", f"{tmp_path}/stages.safetensors", *rest, "windows=4,8", *changes) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].split() == ["mean", "IoU", "(%)", *titles]
    rows = list(csv.DictReader((tmp_path / "new" / "windows.csv").open()))
    assert [(row["height"], row["scale"]) for row in rows] == sizes
    (model,) = json.loads((tmp_path / "new" / "windows.json").read_text())["models"]
    wide = EvalOptions(
        f"{tmp_path}/stages.safetensors",
        f"{tmp_path}/eval-0.tar",
        ["model.window=[8,8,8,4]", "data.resolution=64", *wide_changes],
        workers=0,
    )
    (found,) = on_ranks(1, lambda ranks: evaluate(wide, ranks))
    assert model["points"][1]["metrics"] == found.metrics
    assert model["points"][0]["metrics"]["loss"] != found.metrics["loss"]


@pytest.mark.slow
def test_windows_of_a_detector_enlarge_its_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = make_detected_data(tmp_path / "data", masks=False)
    task = section("mask_rcnn", num_classes=3, masks=False, test_short=24, test_long=40)
    save_weights(tmp_path / "detector.safetensors", task, NAMES, seed=7, window=[4, 4, 4, 2])
    evaluated: list[Evaluated] = []

    def kept(*arguments: Any) -> Evaluated:
        evaluated.append(evaluate(*arguments))
        return evaluated[-1]

    monkeypatch.setattr(window_transfer, "evaluate", kept)
    rest = [f"data={data}/eval/*.tar", "workers=0", "device=cpu", f"out={tmp_path}/new"]
    assert exit_code(main, "windows", f"{tmp_path}/detector.safetensors", *rest, "windows=4,8") == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].split() == ["box", "AP", "(%)", "W4", "x1", "W8", "x2"]
    assert [each.config.model.window for each in evaluated] == [[[4, 4]] * 3 + [[2, 2]], [[8, 8]] * 3 + [[4, 4]]]
    assert [each.config.task.test_sides(each.config) for each in evaluated] == [(24, 40), (48, 80)]
    scores = [np.concatenate([record.found.scores for record in each.found.records.values()]) for each in evaluated]
    assert len(scores[0]) > 0
    assert not np.array_equal(*scores)


@pytest.mark.slow
def test_signal_draws_all_models_in_one_picture(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = [f"{folder}/log.safetensors", f"V1={folder}/table.safetensors"]
    assert exit_code(main, "signal", *models, "batch=2", "device=cpu", f"out={tmp_path}") == 0
    assert [line.split("  ")[0] for line in capsys.readouterr().out.splitlines()[1:3]] == ["res-post-norm", "V1"]
    content = json.loads((tmp_path / "signal.json").read_text())
    assert content["images"] == "normal noise, seed 0"
    assert [len(model["blocks"]) for model in content["models"]] == [5, 5]
    assert all(block["main"] > 0 for model in content["models"] for block in model["blocks"])
    assert (tmp_path / "signal.png").is_file()
    assert (tmp_path / "signal.pdf").is_file()


@pytest.mark.slow
def test_signal_of_an_encoder_on_real_images(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert (
        exit_code(main, "signal", f"{folder}/encoder.safetensors", f"data={folder}/val", "batch=4", "device=cpu") == 0
    )
    content = json.loads((tmp_path / "analysis" / "signal.json").read_text())
    assert content["models"][0]["name"] == "encoder"
    assert content["images"] == f"{folder}/val"


@pytest.mark.slow
def test_under_a_launcher_the_main_rank_alone_makes_the_place(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    own = threading.local()
    honest = analyze.writable

    def writable(key: str, directory: Path) -> None:
        asked.append(own.ranks.rank)
        honest(key, directory)

    @contextlib.contextmanager
    def ranks_of(_: object) -> Iterator[Any]:
        yield own.ranks

    monkeypatch.setattr(analyze, "start_if_alone", lambda *_: None)
    monkeypatch.setattr(analyze, "ranks_of", ranks_of)
    monkeypatch.setattr(analyze, "writable", writable)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    items = ["windows", f"{folder}/log.safetensors", f"data={folder}/val", "windows=4", "workers=0"]

    def on_rank(ranks: Any, out: Path) -> object:
        own.ranks = ranks
        try:
            return analyze._windows(analyze._parser().parse_args([*items, f"out={out}"]), [])
        except (ConfigError, MainRankError) as error:
            return type(error)

    assert on_ranks(2, lambda ranks: on_rank(ranks, tmp_path / "out")) == [0, 0]
    assert (tmp_path / "out" / "windows.json").is_file()
    (tmp_path / "file").touch()
    assert on_ranks(2, lambda ranks: on_rank(ranks, tmp_path / "file")) == [ConfigError, MainRankError]
    assert asked == [0, 0]


@pytest.mark.parametrize(
    ("items", "sentence"),
    [
        (["windows", "data=x", "windows=4"], "[NAME=]PATH (or models=) is missing"),
        (["windows", "{log}", "windows=4"], "--data (or data=) is missing"),
        (["windows", "{log}", "data=x"], "--windows (or windows=) is missing"),
        (["windows", "{log}", "data=x", "windows=4,x"], "windows=4,x: must be an integer"),
        (
            ["windows", "{log}", "data=x", "windows=4,8", "resolutions=64"],
            "1 resolution for 2 windows: set one for each",
        ),
        (["windows", "{log}", "data=/nowhere", "windows=4", "test_window=8"], "test_window=8: windows already sets"),
        (["windows", "{log}", "data=/nowhere", "windows=4", "workers=0"], "/nowhere does not exist"),
        (
            ["windows", "{log}", "data=/nowhere", "windows=8,1000000"],
            "windows=1000000: window 1000000 needs images of 8000000 x 8000000 pixels, above the limit of 200,000,000",
        ),
        (["windows", "{log}", "data=/nowhere", "windows=4", "resolutions=20000"], "images of 20000 x 20000 pixels"),
        (["signal", "/nowhere"], "/nowhere does not exist"),
        (["signal", "{log}", "windows=4"], "windows=4: unknown option"),
        (["signal", "{log}", "precision=fp16"], "needs a GPU"),
        (["signal", "pre=outputs/typo"], "outputs/typo does not exist"),
        (["signal", "pre=typo.pth"], "typo.pth does not exist"),
        (["signal", "{log}", "dta=/nowhere"], "/nowhere does not exist, and dta is not an option; did you mean data?"),
        (["signal", "{log}", "bathc=3"], "bathc=3: unknown option; did you mean batch?"),
    ],
)
def test_usage_errors_are_one_sentence(
    folder: Path, tmp_path: Path, items: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [item.replace("{log}", f"{folder}/log.safetensors") for item in items]
    assert exit_code(main, *given, "device=cpu", f"out={tmp_path}") == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert len(error.splitlines()) == 1


def test_a_directory_that_is_tested_is_not_left_behind(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    writable("out", tmp_path / "run" / "deep" / "analysis")
    assert not list((tmp_path / "run").iterdir())
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot be written to"):
        writable("out", tmp_path / "file" / "analysis")


def test_models_may_be_named_and_hold_an_equals_sign(tmp_path: Path) -> None:
    (tmp_path / "lr=1").touch()
    (tmp_path / "b").touch()
    items = [f"{tmp_path}/lr=1", f"mine={tmp_path}/b", "batch=3", "model.window=8"]
    arguments = analyze._parser().parse_args(["signal", *items])
    assert (arguments.batch, arguments.changes) == (3, ["model.window=8"])
    models = split_models(arguments.models, arguments.known)
    assert models == [(None, f"{tmp_path}/lr=1"), ("mine", f"{tmp_path}/b")]


def test_curves_are_called_what_tells_them_apart(tmp_path: Path) -> None:
    run_dir = tmp_path / "my_run" / "checkpoints" / "step-00000001"
    run_dir.mkdir(parents=True)
    assert model_name(run_dir) == "my_run"
    sources = [run_dir, tmp_path / "b"]
    assert labels([None, None], ["pre-norm", "post-norm"], sources) == ["pre-norm", "post-norm"]
    assert labels([None, "B"], ["pre-norm", "pre-norm"], sources) == ["my_run", "B"]
    assert labels([None, None], ["pre-norm", "pre-norm"], [run_dir, run_dir]) == ["my_run", "my_run (2)"]
