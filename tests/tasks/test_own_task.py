"""A task that is not part of the package, the one of tasks/README.md, lives a whole life without a change in it."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from swinv2_train.checkpoint.identity import identity, same_run
from swinv2_train.config.compose import compose, from_yaml
from swinv2_train.config.errors import ConfigError
from swinv2_train.config.tasks import SimMIMConfig
from swinv2_train.config.validate import validate
from swinv2_train.exit_codes import FINISHED
from tests.documents import own_tasks, python_files
from tests.evaluated import save_weights
from tests.runs import metrics, run_here, tiny_run

PAGE = Path(__file__).resolve().parents[2] / "swinv2_train" / "tasks" / "README.md"
OWN = ["task=light", "task.module=my_tasks.light"]


@pytest.fixture(scope="module")
def module(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder that `my_tasks` is in, on the import path."""
    folder = tmp_path_factory.mktemp("own")
    python_files(PAGE, folder)
    with own_tasks(folder):
        yield folder


def own_run(shards: Path, run_dir: Path, *overrides: str) -> list[str]:
    """`tiny_run` with the task of the page."""
    changed = [item for item in tiny_run(shards, run_dir) if not item.startswith(("+experiment", "task."))]
    fixed = ["engine=zero1_fp32", "data.num_workers=0", "guard.policy=skip", "eval.every_steps=2", "optim.epochs=null"]
    fixed += ["optim.warmup_steps=0"]
    chosen = {item.partition("=")[0]: item for item in [*changed, *OWN, *fixed, *overrides]}
    return list(chosen.values())


@pytest.mark.distributed
def test_a_task_in_files_of_its_own_lives_a_whole_life(
    module: Path,
    shards: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = tmp_path / "run"
    assert run_here(own_run(shards, run, "launch.dry_run=true")) == FINISHED
    output = capsys.readouterr().out
    assert "task           light: 16 hidden channels" in output
    assert re.search(r"parameters in the backbone .* with the head", output)
    assert "my_tasks.light_task" not in sys.modules  # it imports torch

    # Two ranks, from the weights of SimMIM.
    simmim = save_weights(tmp_path / "simmim.safetensors", SimMIMConfig(mask_patch_size=16), depths=[1, 2, 1, 1])
    two_ranks = ["launch.nproc_per_node=2", "data.num_workers=1"]
    assert run_here(own_run(shards, run, *two_ranks, "optim.steps=2", f"init_from={simmim}")) == FINISHED
    table = (run / "init_from.txt").read_text().splitlines()
    origins = dict(line.split(maxsplit=2)[:2] for line in table if "  " in line)
    assert origins["head.0.weight"] == origins["head.2.bias"] == "new"
    assert origins["decoder.0.weight"] == origins["mask_token"] == "dropped"
    assert origins["layers.0.blocks.0.attn.qkv.weight"] == "loaded"
    steps = [row for row in metrics(run) if "lr" in row]
    assert all(row["loss"] == pytest.approx(row["loss/x"] + row["loss/y"], rel=1e-6) for row in steps)
    assert from_yaml(run / "resolved.yaml").task.module == "my_tasks.light"
    assert (run / "figures" / "light-step-00000002.png").is_file()

    # The same weights measured by one process: every record once, in order, whatever rank it was on.
    checkpoint = run / "checkpoints" / "step-00000002"
    found = evaluated(checkpoint, shards, capsys)
    (trained,) = [row for row in metrics(run) if row["step"] == 2 and "eval/loss" in row]
    assert found["metrics"]["samples"] == trained["eval/samples"] == 7
    for name in ("loss", "median_distance"):
        assert found["metrics"][name] == pytest.approx(trained[f"eval/{name}"], rel=1e-5)

    # One rank goes on, and a step is refused.
    from my_tasks.light_task import Light

    from swinv2_train.tasks.task import Losses

    real = Light.loss

    def poisoned(self: Light, model: torch.nn.Module, batch: dict) -> Losses:
        terms = real(self, model, batch).terms
        bad = float("nan") if 29 in batch["position"].tolist() else 1.0
        return Losses({"x": terms["x"], "y": terms["y"] * bad})

    monkeypatch.setattr(Light, "loss", poisoned)
    assert run_here(own_run(shards, run, "optim.steps=4")) == FINISHED
    rows = [row for row in metrics(run) if "lr" in row]
    assert [row["skipped_steps"] for row in rows] == [0, 0, 1, 1]
    assert rows[2]["loss"] is None
    assert rows[2]["loss/y"] is None
    assert rows[2]["loss/x"] is not None
    (incident,) = (run / "incidents").glob("*.json")
    assert run_here([f"replay={incident}"]) == FINISHED
    report = json.loads((incident.with_suffix("") / "replay.json").read_text())
    assert report["same_to_the_bit"]
    assert report["worst_samples"][0]["position"] == 29


def evaluated(checkpoint: Path, shards: Path, capsys: pytest.CaptureFixture[str]) -> dict:
    """Return the output of swinv2-eval for a checkpoint; the task is found by itself."""
    from swinv2_train.cli.evaluate import main

    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        main([f"checkpoint={checkpoint}", f"data={shards}/eval-*.tar", "workers=0", "device=cpu"])
    assert caught.value.code == 0
    assert "median distance" in capsys.readouterr().out
    (results,) = checkpoint.parents[1].glob("evaluations/*/results.json")
    return json.loads(results.read_text())


@pytest.mark.slow
def test_a_renamed_module_is_the_same_run(module: Path, shards: Path, tmp_path: Path) -> None:
    config = compose(own_run(shards, tmp_path))
    saved = identity(compose(own_run(shards, tmp_path))).metadata | {
        "task": {"name": "light", "module": "old.name", "hidden": 16}
    }
    assert identity(config).refusal(saved) is None
    assert same_run(saved, saved | {"task": {"name": "light", "module": "new.name", "hidden": 16}})
    assert identity(config).refusal(saved | {"task": {"name": "light", "hidden": 8}}).key == "task.hidden"


@pytest.mark.slow
@pytest.mark.filterwarnings("error:(?s).*ConfigStore schema with the same name")
def test_a_file_of_the_user_can_choose_the_task(module: Path, tmp_path: Path) -> None:
    files = {
        "task/light": "module: my_tasks.light\nhidden: 32\n",
        "task/lamp": "defaults: [light_schema]\nmodule: my_tasks.light\n",
        "experiment/bright": "defaults:\n  - override /task: light\ntask:\n  hidden: 8\n",
        "experiment/brighter": "defaults: [/experiment/bright@_global_]\n",
        "experiment/alone": "defaults:\n  - override /task: light\ntask:\n  module: my_tasks.light\n",
    }
    for name, text in files.items():
        path = tmp_path / "configs" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"# @package _global_\n{text}" if name.startswith("experiment") else text)

    def hidden(*overrides: str) -> int:
        config = compose([*overrides, "data.shards=x", "optim.steps=1", "optim.epochs=null"], tmp_path / "configs")
        validate(config)
        assert (config.task.name, config.task.module) == ("light", "my_tasks.light")
        return config.task.hidden

    assert hidden("task=light") == 32
    assert hidden("task=light", "task.hidden=4") == 4
    assert hidden("task=lamp") == 16
    assert hidden("+experiment=bright") == 8
    assert hidden("+experiment=brighter", "task.hidden=5") == 5
    assert hidden("+experiment=brighter", "task=light") == 32
    (tmp_path / "configs" / "task" / "light.yaml").unlink()
    assert hidden("+experiment=alone") == 16
    assert compose([], tmp_path / "configs").task.name == "simmim"
    with pytest.raises(ConfigError, match=r"task=lux: unknown task"):
        compose(["task=lux"], tmp_path / "configs")


def test_what_is_wrong_with_a_task_is_one_sentence(
    module: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    texts = {
        "empty_task": "",
        "taken_task": "from swinv2_train.config.tasks import SimMIMConfig\nclass Mine(SimMIMConfig): pass\n",
        "faceless_task": "from dataclasses import dataclass\nfrom swinv2_train.config.tasks import TaskConfig\n"
        "@dataclass\nclass Mine(TaskConfig):\n    name: str = 'faceless'\n",
        "broken_task": "1 / 0\n",
        "needy_task": "import nobody_has_this\n",
    }
    for name, text in texts.items():
        (tmp_path / f"{name}.py").write_text(text)
    for value, sentence in {
        "my_tasks.dark": "is not on the import path: install it, or add its folder to PYTHONPATH",
        "nowhere.at.all": "is not on the import path",
        "../light": "is not the name of a Python module",
        "empty_task": "defines no task: a subclass of TaskConfig with a name",
        "taken_task": r"taken_task.Mine has the name of the built-in task simmim; rename it",
        "faceless_task": r"faceless_task.Mine has no IMPLEMENTATION",
        "broken_task": r"cannot be imported \(ZeroDivisionError: division by zero\)",
        "needy_task": "needs nobody_has_this, which is not installed",
    }.items():
        with pytest.raises(ConfigError, match=f"task.module={re.escape(value)}: .*{sentence}"):
            compose(["task=light", f"task.module={value}"])
    with pytest.raises(ConfigError, match=r"task=dark: task.module=my_tasks.light has no such task; it has light"):
        compose(["task=dark", "task.module=my_tasks.light"])
    with pytest.raises(ConfigError, match=r"task=dark: task.module=my_tasks.light has no such task; it has light"):
        compose(["task=light", "task.module=my_tasks.light", "task.name=dark"])
    with pytest.raises(ConfigError, match=r"task.hidden=0: must be at least 1"):
        validate(compose([*OWN, "task.hidden=0", "data.shards=x"]))


@pytest.mark.slow
def test_the_working_directory_is_not_on_the_import_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where Python puts it in front, as for `python -m` under a launcher; in PYTHONPATH it counts."""
    (tmp_path / "hidden_task.py").write_text("raise SystemExit('this file was run')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=r"files in the working directory do not count"):
        compose(["task=x", "task.module=hidden_task"])
    assert sys.path[0] == str(tmp_path)
    sys.path.append(str(tmp_path))
    with pytest.raises(SystemExit, match="this file was run"):
        compose(["task=x", "task.module=hidden_task"])
