"""`swinv2-eval` as a user meets it: what it prints, writes and refuses, alone and over ranks that it starts itself."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from swinv2_train.analysis.evaluate import EvalOptions
from swinv2_train.cli.evaluate import main
from swinv2_train.cli.evaluate_display import metric_text, output_name, output_root, window_text
from swinv2_train.config.model import ModelConfig
from swinv2_train.config.schema import Config, DataConfig, ProbeConfig
from swinv2_train.config.tasks import DetectionConfig, Metric, VideoConfig
from swinv2_train.data.raw_sample import RawSample
from swinv2_train.errors import RunError
from swinv2_train.launch.local_ranks import run_ranks
from swinv2_train.launch.signals import PARENT_VARIABLE
from tests.evaluated import classifier, encoder, labelled_shards
from tests.runs import exit_code


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("swinv2-eval")
    labelled_shards(folder / "val", 13, 3, broken=(5,))
    labelled_shards(folder / "train", 13, 3, seed=50)
    classifier(folder / "model.safetensors", 3, ["cat", "dog", "elk"])
    encoder(folder / "encoder.safetensors")
    return folder


def test_a_metric_without_data_has_no_percentage() -> None:
    assert metric_text(Metric("max", share=True), float("nan")) == "none"
    assert metric_text(Metric("max", share=True), 0.125) == "12.50%"
    assert metric_text(Metric("min"), 0.125) == "0.1250"


def test_windows_are_shown_as_the_maps_limit_them() -> None:
    data = DataConfig(resolution=32)
    assert window_text(Config(data=data, model=ModelConfig(window=[8, 4, 2, 1]))) == "window [8, 4, 2, 1]"
    large = ModelConfig(window=[16, 4, 2, 1])
    assert window_text(Config(data=data, model=large)).endswith(", limited by the maps to 8x8, 4x4, 2x2, 1x1")
    assert window_text(Config(data=data, model=large, task=DetectionConfig())) == "window [16, 4, 2, 1]"
    model = ModelConfig(window=[8, 4, 2, 1], temporal_patch=2, temporal_window=8)
    clips = Config(data=DataConfig(resolution=32, frames=8), model=model, task=VideoConfig())
    expected = "over 8 tokens in time, limited by the maps to 4x8x8, 4x4x4, 4x2x2, 4x1x1"
    assert window_text(clips).endswith(expected)


def given(folder: Path, model: str = "model") -> list[str]:
    return [f"checkpoint={folder / model}.safetensors", f"data={folder}/val", "workers=0", "device=cpu"]


@pytest.mark.slow
def test_an_evaluation_prints_a_table_and_leaves_its_files(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(main, *given(folder), f"out={tmp_path}/new/place") == 0
    printed = capsys.readouterr().out
    for part in ("12 samples, 1 broken", "top-1 accuracy", "calibration error", "worst classes", "img00005"):
        assert part in printed
    place = tmp_path / "new" / "place"
    assert sorted(path.name for path in place.iterdir()) == [
        "confusion.pdf", "confusion.png", "per_class.csv", "reliability.pdf", "reliability.png", "results.json",
    ]  # fmt: skip
    results = json.loads((place / "results.json").read_text())
    assert results["samples"] == 12
    assert results["checkpoint"] == str(folder / "model.safetensors")
    assert results["broken"][0]["sample"] == "val-000000.tar/img00005"
    rows = list(csv.DictReader((place / "per_class.csv").open()))
    assert [row["name"] for row in rows] == ["cat", "dog", "elk"]
    right = sum(int(row["correct"]) for row in rows)
    assert right / sum(int(row["samples"]) for row in rows) == pytest.approx(results["metrics"]["top1"])
    assert f"{results['metrics']['top1']:.2%}" in printed


@pytest.mark.slow
def test_a_place_is_found_for_every_evaluation(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert exit_code(main, *given(folder, "encoder"), "data.resolution=64", f"probe={folder}/train", "--json") == 0
    results = json.loads(capsys.readouterr().out)
    assert results["input"]["resolution"] == [64, 64]
    assert set(results["metrics"]) == {"loss", "samples", "probe/knn_top1", "probe/linear_top1"}
    (place,) = tmp_path.iterdir()
    assert re.fullmatch(r"evaluation-encoder-val-resolution-64-[0-9a-f]{6}", place.name)
    assert json.loads((place / "results.json").read_text()) == results


def test_another_evaluation_never_takes_the_place_of_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def name(source: str = "/runs/a/checkpoints/step-00000004", data: Any = "/a/val", **changes: Any) -> str:
        found: Any = SimpleNamespace(source=Path(source))
        return output_name(found, EvalOptions(checkpoint="run", data=data, **changes), Path("run/evaluations"))

    names = [
        name(), name("/runs/b/checkpoints/step-00000004"), name(data="/b/val"), name(data=["/a/val", "/b/val"]),
        name(max_samples=100), name(max_samples=200), name(precision="bf16"), name(ema=True),
        name(label_map="names"), name(label_map="numbers"), name(label_map="/a/map.txt"), name(label_map="/b/map.txt"),
        name(real_labels=Path("/a/real.json")), name(real_labels=Path("/b/real.json")),
        name(overrides=["data.crop_pct=0.9"]), name(overrides=["data.mean=[0.9]"]), name(overrides=["data.std=[0.9]"]),
        name(probe=ProbeConfig(shards="/a/train")), name(probe=ProbeConfig(shards="/b/train")),
        name(overrides=[f"data.mean={[0.123456789] * 40}"]), name(overrides=[f"data.mean={[0.123456789] * 39 + [1]}"]),
    ]  # fmt: skip
    assert len(set(names)) == len(names)
    assert max(map(len, names)) < 200, "a file system has its limits"
    assert re.fullmatch(r"step-00000004-val-first-100-[0-9a-f]{6}", names[4])
    assert name(batch=3, workers=0) == names[0]
    assert name(overrides=["test_window=8", "task.test_scales=[1,2]"]).startswith(
        "step-00000004-val-test_window-8-test_sc"
    )
    monkeypatch.chdir(tmp_path)
    assert name(data="val") == name(data=f"{tmp_path}/val")


def test_a_run_keeps_its_evaluations(tmp_path: Path) -> None:
    step = tmp_path / "run" / "checkpoints" / "step-00000004"
    step.mkdir(parents=True)
    assert output_root(str(step)) == Path()
    (tmp_path / "run" / "resolved.yaml").touch()
    for place in (tmp_path / "run", step.parent, step):
        assert output_root(str(place)) == tmp_path / "run" / "evaluations"


@pytest.mark.parametrize(
    ("items", "sentence"),
    [
        (["data=x"], "CHECKPOINT (or checkpoint=) is missing: a run, a checkpoint"),
        (["checkpoint=x"], "SHARDS (or data=) is missing: the labeled shards"),
        (["checkpoint=x", "data=y", "bach=3"], "bach=3: unknown option; did you mean batch?"),
        (["checkpoint=x", "data=y", "batch=0"], "batch=0: must be an integer of at least 1"),
        (["x", "y", "--batch", "0"], "--batch 0: must be an integer of at least 1"),
        (["checkpoint=x", "data=y", "ema=yes"], "ema=yes: must be true or false"),
        (["checkpoint=x", "data=y", "precision=int8"], "precision=int8: must be one of fp32, bf16, fp16"),
        (["checkpoint=x", "data=y", "verbose"], "cannot read 'verbose': write key=value"),
        (["x", "data=y", "shards=z"], "data is set more than once"),
        (["x", "y", "which=best", "--which", "best"], "--which is set more than once"),
        (["x", "data=y", "data=z"], "data is set 2 times (y, z); set it once. If the shell expanded a pattern"),
        (["x", "y", "--batc", "3"], "unrecognized arguments: --batc; did you mean --batch?"),
        (["x", "y", "optim.lr=1"], "optim.lr=1: unknown option"),
        (["checkpoint=x", "data.shards=y"], "data.shards=y: write data=y here"),
        (["checkpoint=x", "data=y", "data.num_workers=8"], "data.num_workers=8: write workers=8 here"),
        (["checkpoint=x", "data=y", "data.cache_dir=/c"], "data.cache_dir=/c: write cache_dir=/c here"),
        (["checkpoint=x", "data=y", "data.max_broken_share=1"], "data.max_broken_share=1: applies only to training"),
        (["checkpoint=x", "data=y", "--fast"], "unrecognized arguments: --fast"),
        (["checkpoint=x", "data=y", "probe.knn=3"], "probe.knn=3: needs probe=SHARDS"),
        (["checkpoint=/nowhere", "data=y"], "/nowhere does not exist"),
    ],
)
def test_usage_errors_are_one_sentence(items: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(main, *items, "device=cpu") == 2
    error = capsys.readouterr().err
    assert error.startswith("swinv2-eval: ")
    assert sentence in error
    assert len(error.splitlines()) == 1


@pytest.mark.slow
def test_contradictions_are_one_sentence(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    for item, sentence in (
        ("data.crop_mode=sqash", "data.crop_mode=sqash: must be one of center, squash"),
        ("model.windows=8", "model.windows=8: unknown key; did you mean model.window?"),
        (f"real_labels={tmp_path}/nothing", "cannot be read"),
        (f"out={tmp_path}/file", "cannot be written to"),
        (f"label_map={tmp_path}/none.txt", "cannot be read"),
    ):
        assert exit_code(main, *given(folder), item) == 2, item
        error = capsys.readouterr().err
        assert sentence in error, error
        assert len(error.splitlines()) == 1


def test_a_full_disk_costs_no_numbers(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from swinv2_train.tracking.charts import Chart

    def full(self: Chart, path: Path) -> list[Path]:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(Chart, "save", full)
    assert exit_code(main, *given(folder), f"out={tmp_path}") == 1
    printed = capsys.readouterr()
    assert "top-1 accuracy" in printed.out
    remedy = "No space left on device; make room there, or choose another path"
    assert printed.err.endswith(f"\nswinv2-eval: {tmp_path}/confusion.png cannot be written ({remedy})\n")
    assert not (tmp_path / "results.json").exists()


@pytest.mark.distributed
def test_two_ranks_that_it_starts_agree_with_one(
    folder: Path, hostile: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And import nothing from the working directory."""
    monkeypatch.chdir(hostile)
    assert exit_code(main, *given(folder), f"out={tmp_path}/one", "--json") == 0
    alone = json.loads(capfd.readouterr().out)
    assert exit_code(main, *given(folder), f"out={tmp_path}/two", "ranks=2", "batch=3", "--json") == 0
    together = json.loads(capfd.readouterr().out)
    assert together["ranks"] == 2
    assert together["metrics"] == pytest.approx(alone["metrics"], rel=1e-5)
    assert (tmp_path / "two" / "per_class.csv").read_text() == (tmp_path / "one" / "per_class.csv").read_text()


def ranks_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str) -> str:
    """A module for `run_ranks` that needs nothing of ours."""
    (tmp_path / "some_ranks.py").write_text(f"import os, signal, sys, time\nrank = int(os.environ['RANK'])\n{code}\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return "some_ranks"


def test_ranks_get_what_a_launcher_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = ranks_that(
        tmp_path,
        monkeypatch,
        f"names = ('WORLD_SIZE', 'LOCAL_RANK', {PARENT_VARIABLE!r})\n"
        f"open(f'{tmp_path}/{{rank}}.txt', 'w').write(' '.join([*(os.environ[n] for n in names), *sys.argv[1:]]))",
    )
    assert run_ranks(module, ["a", "b=c"], 2, "cpu") == 0
    assert [(tmp_path / f"{rank}.txt").read_text() for rank in range(2)] == [
        f"2 {rank} {os.getpid()} a b=c" for rank in range(2)
    ]


def test_the_main_rank_says_what_went_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "rank == 0 and time.sleep(0.5)\nsys.exit(2 - rank)"
    assert run_ranks(ranks_that(tmp_path, monkeypatch, code), [], 2, "cpu") == 2


@pytest.mark.slow
def test_a_rank_that_fails_ends_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pid_file = tmp_path / "pid"
    waits = f"if rank == 0:\n    open({str(pid_file)!r}, 'w').write(str(os.getpid())); time.sleep(600)\n"
    waits += f"while not os.path.exists({str(pid_file)!r}) or not open({str(pid_file)!r}).read(): time.sleep(0.01)\n"
    assert run_ranks(ranks_that(tmp_path, monkeypatch, f"{waits}sys.exit(2)"), [], 2, "cpu") == 2
    assert not Path(f"/proc/{pid_file.read_text()}").exists()
    with pytest.raises(RunError, match=r"rank 1 died of SIGKILL \(the kernel sends it when memory runs out\)"):
        run_ranks(ranks_that(tmp_path, monkeypatch, f"{waits}os.kill(os.getpid(), signal.SIGKILL)"), [], 2, "cpu")


def test_an_interrupt_is_one_sentence_and_leaves_nothing_behind(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from swinv2_train.data.shards import ShardSet

    read = ShardSet.read

    def interrupted(self: ShardSet, index: int, *members: Any) -> RawSample:
        if index == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return read(self, index, *members)

    monkeypatch.setattr(ShardSet, "read", interrupted)
    before = signal.getsignal(signal.SIGTERM)
    assert exit_code(main, *given(folder), f"out={tmp_path}/out") == 130
    model, val = folder / "model.safetensors", folder / "val"
    loading = f"swinv2-eval: loading {model} and {val} ..."
    assert capsys.readouterr().err.splitlines() == [loading, "swinv2-eval: interrupted"]
    assert not (tmp_path / "out").exists()
    assert signal.getsignal(signal.SIGTERM) == before
