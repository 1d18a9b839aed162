"""The file of a pipeline, what the command line changes in it, and what is refused before anything runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from swinv2_train.config.errors import ConfigError
from swinv2_train.pipeline.plan import plan
from swinv2_train.pipeline.spec import Pipeline, load_pipeline, pipelines, split_arguments
from tests.pipeline.conftest import CHAIN


def load(name: str, *arguments: str, config_dir: Path | None = None) -> Pipeline:
    return load_pipeline(name, split_arguments(arguments)[1], config_dir)


def written(directory: Path, text: str) -> Path:
    (directory / "pipeline").mkdir(exist_ok=True)
    (directory / "pipeline" / "mine.yaml").write_text(text)
    return directory


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, _ in pipelines()])
def test_every_shipped_pipeline_can_be_planned(name: str) -> None:
    planned = plan(load(name))
    assert len(planned) >= 2
    assert len({item.run_dir for item in planned}) == len(planned)
    assert all(len(line) > 20 for _, line in pipelines())


def test_the_giant_is_the_chain_of_the_paper() -> None:
    stages = plan(load("giant"))
    assert [item.stage.experiment for item in stages] == ["simmim_giant", "supervised_giant", "in1k_giant_640"]
    assert [item.stage.source for item in stages] == [None, "simmim", "supervised"]
    assert all(item.config.model.extra_norm_period == 6 for item in stages)
    assert [item.stage.experiment for item in plan(load("giant_ade20k"))][2:] == ["ade20k_giant"]


def test_the_demo_compares_the_same_task_with_and_without_pretraining() -> None:
    stages = {item.name: item for item in plan(load("demo"))}
    assert [item.stage.source for item in stages.values()] == [None, "simmim", "supervised", None]
    recipe, scratch = stages["task"].recipe(), stages["task-scratch"].recipe()
    assert {key for key in recipe if recipe[key] != scratch[key]} == {"starts from", "optim.lr"}
    assert scratch["starts from"] == "random weights"
    assert stages["task-scratch"].config.init_from is None


@pytest.mark.slow
def test_a_key_holds_for_every_stage_or_for_one(tmp_path: Path) -> None:
    config_dir = written(tmp_path, CHAIN)
    items = ["seed=3", "stages.second.seed=4", "+engine.deepspeed.wall_clock_breakdown=true", "dir=somewhere/else"]
    items += ["stages.first.checkpoint.keep_best=1", "data.eval_shards=x", "stages.first.init_from=file.pth"]
    planned = plan(load("mine", *items, config_dir=config_dir), config_dir)
    assert [item.config.seed for item in planned] == [3, 4, 4]
    assert all(item.config.engine.deepspeed == {"wall_clock_breakdown": True} for item in planned)
    assert [str(item.run_dir) for item in planned] == [
        f"somewhere/else/{name}" for name in ("first", "second", "plain")
    ]
    assert planned[0].config.init_from == "file.pth"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["seed"], ["'seed'", "KEY=VALUE"]),
        (["run.dir=x"], ["run.dir=x", "dir=DIR"]),
        (["stages.first.resume=never"], ["resume", "the pipeline sets"]),
        (["stages.first=x"], ["stages.first=x", "stages.NAME.optim.lr"]),
        (["stages.fist.seed=1"], ["stages.fist", "first, second, plain"]),
        (["stages.second.init_from=x"], ["second starts from the weights of first"]),
        (["stages.plain.init_from=x"], ["plain starts from random weights"]),
        (["launcher='"], ["launcher", "cannot be read"]),
        (["stages.second.optim.lrr=1"], ["stage second: optim.lrr=1", "did you mean"]),
        (
            ["stages.first.checkpoint.keep_best=1", "data.eval_shards=x", "stages.plain.model.window=0"],
            ["stage plain: model.window=0"],
        ),
        (["stages.second.model.embed_dim=96"], ["model.embed_dim=96", "second starts from first, which has 48"]),
        (
            ["stages.second.model.absolute_position=true"],
            ["model.absolute_position=true", "second starts from first, which has false"],
        ),
        ([], ["second starts from the best weights of first, which keeps none"]),
    ],
)
def test_a_wrong_command_line_is_one_sentence(arguments: list[str], parts: list[str], tmp_path: Path) -> None:
    config_dir = written(tmp_path, CHAIN)
    with pytest.raises(ConfigError) as caught:
        plan(load("mine", *arguments, config_dir=config_dir), config_dir)
    for part in parts:
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


STAGES = "stages: [{name: a, experiment: simmim_demo}"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("stages: [", ["is not YAML"]),
        ("- a", ["is not a pipeline"]),
        ("name: x", ["stages must be a list"]),
        ("name: x\nstage: []", ["unknown key 'stage'", "did you mean stages"]),
        ("stages: [{name: a}]", ["stage a names no experiment"]),
        ("stages: [{name: a/b, experiment: simmim_demo}]", ["a stage needs a name"]),
        ("stages: [simmim_demo]", ["a stage needs a name"]),
        (f"{STAGES}, {{name: a, experiment: simmim_demo}}]", ["stage a is listed twice"]),
        (f"{STAGES}, {{name: b, experiment: simmim_demo, init_from: c}}]", ["c is not an earlier stage"]),
        (f"{STAGES}, {{name: b, baseline_of: b}}]", ["b is not an earlier stage"]),
        (f"{STAGES}, {{name: b, experiment: simmim_demo, init_from: a, weights: last}}]", ["newest or best"]),
        (f"{STAGES}, {{name: b, experiment: simmim_demo, init_from: a, ema: 1}}]", ["true or false"]),
        (f"{STAGES}, {{name: b, experiment: simmim_demo, init_from: a, ema: true}}]", ["averaged weights of a"]),
        ("stages: [{name: a, experiment: simmim_demo, overrides: [seed]}]", ["a list of key=value"]),
        ("stages: [{name: a, experiment: simmim_demo, overrides: [run.dir=x]}]", ["the pipeline sets"]),
        (f"{STAGES}, {{name: b, experiment: simmim_demo, weights: best}}]", ["stage b: weights requires init_from"]),
        (f"{STAGES}, {{name: b, baseline_of: a, ema: true}}]", ["stage b: ema requires init_from"]),
        ("stages: [{name: 1, experiment: simmim_demo}]", ["a stage needs a name"]),
        ("stages: [{name: a, experiment: [x]}]", ["stage a: experiment must be a string, not ['x']"]),
        ("stages: [{name: a, experiment: simmim_demo, title: 5}]", ["stage a: title must be a string, not 5"]),
        (f"{STAGES}, {{name: b, experiment: simmim_demo, init_from: [a]}}]", ["init_from must be a string, not ['a']"]),
        (f"{STAGES}, {{name: b, baseline_of: {{a: 1}}}}]", ["baseline_of must be a string, not {'a': 1}"]),
        (f"{STAGES}, {{name: b, experiment: simmim_demo, weights: [best]}}]", ["newest or best"]),
        ("stages: [{name: a, experiment: simmim_demo, overrides: seed=1}]", ["a list of key=value"]),
        ("stages: [{name: a, experiment: simmim_demo, overrides: 0}]", ["a list of key=value"]),
        (f"name: 5\n{STAGES}]", ["name must be a string, not 5"]),
        (f"name: a b\n{STAGES}]", ["name must consist of letters", "not 'a b'"]),
        (f"dir: 5\n{STAGES}]", ["dir must be a string, not 5"]),
        (f"dir: [x]\n{STAGES}]", ["dir must be a string, not ['x']"]),
        (f"launcher: [torchrun]\n{STAGES}]", ["launcher must be a string, not ['torchrun']"]),
        ("experiment: 5\nstages: [{name: a}]", ["experiment must be a string, not 5"]),
        ("stages: {a: b}", ["stages must be a list"]),
        ("stages: [{name: a, experiment: simim_demo}]", ["stage a: experiment=simim_demo"]),
    ],
)
def test_a_wrong_file_is_one_sentence(text: str, parts: list[str], tmp_path: Path) -> None:
    config_dir = written(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        plan(load("mine", config_dir=config_dir), config_dir)
    for part in parts:
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_pipeline_names_those_there_are() -> None:
    with pytest.raises(ConfigError, match=r"pipeline=gigant: unknown pipeline; did you mean giant\?"):
        load("gigant")
    with pytest.raises(ConfigError, match="pipeline=xyz: unknown pipeline; use one of demo"):
        load("xyz")
