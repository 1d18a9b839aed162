"""The command `swinv2-pipeline`: quick help, the chain's status, and usage errors before the first stage."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from swinv2_train.data.pack import PackOptions, pack
from swinv2_train.pipeline.spec import pipelines
from tests.pipeline.conftest import Chain, call
from tests.pipeline.conftest import _compose_once as _compose_once
from tests.pipeline.conftest import chain as chain
from tests.runs import environment, make_images

WITHOUT_TORCH = """
import sys
from swinv2_train.cli.pipeline import main
try:
    main(sys.argv[1:])
except SystemExit as end:
    print("imported:", *(name for name in ("torch", "hydra", "omegaconf", "yaml") if name in sys.modules))
    sys.exit(end.code)
"""


def test_help_lists_every_pipeline_and_imports_nothing_slow() -> None:
    command = [sys.executable, "-c", WITHOUT_TORCH, "--help"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == "imported:"
    for name, line in pipelines():
        assert name in done.stdout
        assert line in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (
            [],
            "choose a pipeline, such as pipeline=demo; available: demo, detect_demo, giant, giant_ade20k, giant_coco, "
            "giant_k400, segment_demo, video_demo",
        ),
        (["pipeline=demo", "--redo", "simmin"], "--redo=simmin: unknown stage"),
        (["pipeline=demo", "--json"], "--json requires status"),
        (["pipeline=demo", "--config-dir", "/no/such"], "--config-dir /no/such"),
        (["pipeline=demo", "stages.task.launch.dry_run=true"], "applies to the entire chain"),
        (["pipeline=demo", "hydra.run.dir=x"], "hydra.run.dir=x: is for several runs (-m)"),
        (["pipeline=demo", "stages.task.hydra/launcher=x"], "hydra/launcher=x: is for several runs (-m)"),
        (
            ["pipeline=demo"],
            "stage simmim: data.eval_shards=demo-data/digits-eval: demo-data/digits-eval does not exist",
        ),
        (["status"], "name the directory of a pipeline"),
        (["status", "/no/such"], "there is no pipeline.json in /no/such"),
        (["status", "/no/such", "--redo", "task"], "status runs nothing"),
        (["status", "/no/such", "--import", "own"], "status runs nothing: omit --import"),
        (["pipeline=demo", "import=no.such"], "imports=no.such: "),
    ],
)
def test_usage_errors_are_one_sentence(
    arguments: list[str], part: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 1
    assert part in captured.err
    assert list(tmp_path.iterdir()) == []


def test_under_a_launcher_it_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert call(["pipeline=demo"]) == 2
    assert "start swinv2-pipeline once" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("item", "part"),
    [
        ("stages.plain.optim.lrr=1", "stage plain: optim.lrr=1"),
        ("stages.plain.data.shards=/no/such", "stage plain: data.shards=/no/such"),
        ("stages.plain.optim.warmup_steps=9999", "stage plain: optim.warmup_steps"),
        ("stages.first.init_from=/no/run", "stage first: init_from=/no/run: no run, checkpoint"),
    ],
)
def test_a_mistake_in_the_last_stage_shows_before_the_first(
    item: str, part: str, chain: Chain, capsys: pytest.CaptureFixture[str]
) -> None:
    assert chain.run(item) == 2
    assert part in capsys.readouterr().err
    assert chain.started() == []


@pytest.mark.slow
def test_classes_that_differ_show_before_the_first_stage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for split, names in (("train", ("cat", "dog")), ("eval", ("cat", "owl"))):
        for name in names:
            make_images(tmp_path / split / name, 2, 0)
        pack(str(tmp_path / split), tmp_path / f"{split}-shards", PackOptions(), split=split, classes=True)
    Path("conf/pipeline").mkdir(parents=True)
    Path("conf/pipeline/one.yaml").write_text("stages: [{name: a, experiment: classify_demo, init_from: null}]")
    shards = ["data.shards=train-shards", "data.eval_shards=eval-shards", "task.num_classes=2"]
    for more in ([], ["launch.dry_run=true"]):
        assert call(["pipeline=one", "--config-dir", "conf", *shards, *more]) == 2
        assert "stage a: held-out shards number their classes differently from data.shards" in capsys.readouterr().err
    assert not Path("outputs").exists()


@pytest.mark.slow
def test_the_status_shows_the_chain(chain: Chain, capsys: pytest.CaptureFixture[str]) -> None:
    chain.does("second", "die")
    assert chain.run() == 1
    capsys.readouterr()
    assert call(["status", str(chain.directory)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"pipeline chain in {chain.directory}"
    assert lines[1].split() == ["stage", "state", "step", "metric", "last", "best", "started", "from", "time"]
    assert lines[2].startswith("first")
    assert "finished" in lines[2]
    assert "30 of 500" in lines[2]
    assert "running, last sign" in lines[3]
    assert "first, step-00000020" in lines[3]
    assert "to do" in lines[4]

    same = ["status", *chain.arguments()[:2], "--config-dir", str(chain.root / "conf")]
    assert call(same) == 0
    assert capsys.readouterr().out.splitlines()[0] == lines[0]
    moved = chain.directory.rename("elsewhere")  # what is in it does not name the directory
    assert call(["status", str(moved.resolve()), "--json"]) == 0
    stages = json.loads(capsys.readouterr().out)["stages"]
    assert [stage["name"] for stage in stages] == ["first", "second", "plain"]
    assert [stage["state"] for stage in stages] == ["finished", "running", "to do"]
    assert (stages[0]["last"], stages[0]["best"]) == (0.45, 0.4)
    assert stages[2]["step"] is None
