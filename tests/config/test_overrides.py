"""The command line: a choice wins over an experiment's file, and nothing is given twice."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from swinv2_train.cli.arguments import Parser, check_changes
from swinv2_train.config.compose import compose
from swinv2_train.config.errors import ConfigError
from swinv2_train.config.explain import conf_dir
from swinv2_train.config.overrides import last_of_each, refuse_hydra_keys, refuse_repeated
from swinv2_train.pipeline.spec import load_pipeline, split_arguments

GROUPS = ("model", "data", "optim", "engine", "tracking", "launch")


def own(path: Path) -> dict[str, object]:
    return yaml.safe_load(path.read_text()) or {}


def leaves(values: dict[str, object], prefix: str = "") -> dict[str, object]:
    found: dict[str, object] = {}
    for key, value in values.items():
        found.update(leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value})
    return found


def contrary(value: object) -> object:
    """Another value of the same kind."""
    if isinstance(value, bool) or value is None:
        return {True: False, False: True, None: None}[value]  # type: ignore[index]
    if isinstance(value, (int, float)):
        return value + 1
    return [4, 4, 4, 4] if isinstance(value, list) and len(value) == 4 else value if isinstance(value, list) else "x"


@pytest.mark.slow
@pytest.mark.parametrize("group", GROUPS)
def test_a_chosen_file_wins_over_every_key_of_an_experiment(group: str, tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    names = sorted((conf_dir() / group).glob("*.yaml"))
    keys = {key: value for name in names for key, value in leaves(own(name)).items()}
    nested: dict[str, object] = {}
    for key, value in keys.items():
        place = nested
        *sections, leaf = key.split(".")
        for section in sections:
            place = place.setdefault(section, {})  # type: ignore[assignment]
        place[leaf] = contrary(value)
    text = "# @package _global_\n# Mine.\n" + yaml.safe_dump({group: nested})
    (tmp_path / "experiment" / "mine.yaml").write_text(text)
    for name, order in ((names[0], 1), (names[-1], -1)):
        config = compose(["+experiment=mine", f"{group}={name.stem}"][::order], tmp_path)
        for key, value in leaves(own(name)).items():
            found: object = config
            for part in (group, *key.split(".")):
                found = getattr(found, part)
            assert found == value, f"{group}={name.stem}: {key}"


@pytest.mark.parametrize("group", ["model", "data", "engine", "tracking"])
def test_the_files_of_a_group_set_the_same_keys(group: str) -> None:
    # A choice replaces what the experiment has only in the keys that its file names.
    files = {path.stem: set(leaves(own(path))) for path in (conf_dir() / group).glob("*.yaml")}
    every = set.union(*files.values())
    assert {name: every - keys for name, keys in files.items() if every - keys} == {}


def test_the_values_of_the_command_line_win_over_its_choices() -> None:
    config = compose(["model.embed_dim=64", "+experiment=simmim_demo", "model=swinv2_large"])
    assert (config.model.embed_dim, config.model.depths, config.model.window) == (64, [2, 2, 18, 2], 8)


@pytest.mark.slow
def test_a_variant_wins_wherever_it_is_given() -> None:
    for order in (1, -1):
        config = compose(["+experiment=simmim_demo", "+variant=post", "optim=adamw"][::order])
        assert (config.optim.lr_scale, config.model.similarity, config.optim.lr) == (0.25, "dot", 1e-4)


def test_a_task_of_the_user_keeps_the_keys_of_the_experiment_that_it_does_not_set(tmp_path: Path) -> None:
    (tmp_path / "task").mkdir()
    (tmp_path / "task" / "soft.yaml").write_text("# Soft.\ndefaults:\n  - classification_schema\nmixup: 0.3\n")
    task = compose(["+experiment=classify_demo", "task=soft"], tmp_path).task
    assert (task.name, task.mixup, task.num_classes) == ("classification", 0.3, 10)  # type: ignore[attr-defined]


@pytest.mark.parametrize("task", ["classification", "simmim"])
def test_another_task_than_the_experiments_is_refused(task: str) -> None:
    experiment = {"classification": "simmim_demo", "simmim": "classify_demo"}[task]
    with pytest.raises(ConfigError, match=f"task={task}: .*{experiment}.yaml sets .*; choose an experiment"):
        compose([f"+experiment={experiment}", f"task={task}"])


@pytest.mark.parametrize(
    ("items", "sentence"),
    [
        (["optim.lr=1", "seed=0", "optim.lr=2"], "optim.lr is set 2 times (1, 2); set it once"),
        (["+optim.lr=1", "optim.lr=1"], "optim.lr is set 2 times"),
        (["model=a", "++model=b"], "model is set 2 times (a, b)"),
        (["+experiment=a", "+experiment=b"], "experiment is set 2 times"),
        (["~optim.milestones", "optim.milestones=[1]"], "optim.milestones is set 2 times"),
        ([f"data.shards=t-{n}.tar" for n in range(12)], "12 times (t-0.tar, t-1.tar, ..., t-11.tar); set it once. If"),
        (["data=a.tar", "data=b.tar"], "single quotes, such as data='shards/train-{000000..000011}.tar'"),
    ],
)
def test_a_key_that_is_given_twice_is_refused(items: list[str], sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        refuse_repeated(items)
    assert sentence in str(caught.value)
    assert [item.lstrip("+~").partition("=")[0] for item in last_of_each(items)].count(items[0].lstrip("+~")) <= 1


def test_different_keys_and_sections_are_not_repetitions() -> None:
    refuse_repeated(["model=a", "model.depths=[1]", "optim.lr=1", "optim.lr_scale=1", "junk", "junk"])


def test_commands_take_options_and_keys_once(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match=r"model\.window is set 2 times"):
        check_changes(["model.window=1", "model.window=2"], ["batch"])
    parser = Parser(prog="x", allow_abbrev=False)
    parser.add_argument("--top", type=int)
    parser.add_argument("--redo", action="append")
    parser.add_argument("items", nargs="*")
    for _ in range(2):  # what an earlier line gave does not count
        found = parser.parse_intermixed_args(["a", "--top", "1", "--redo", "x", "b", "--redo", "y"])
        assert (found.items, found.top, found.redo) == (["a", "b"], 1, ["x", "y"])
    with pytest.raises(SystemExit) as end:
        parser.parse_intermixed_args(["--top", "1", "--top=2"])
    assert end.value.code == 2
    assert capsys.readouterr().err == "x: --top is set more than once; set it once; see x --help\n"


def test_a_pipelines_command_line_replaces_its_file_and_takes_a_key_once(tmp_path: Path) -> None:
    (tmp_path / "pipeline").mkdir()
    text = (
        "name: two\nexperiment: classify_demo\nstages:\n  - {name: a, overrides: [seed=1, optim.lr=1]}\n"
        "  - {name: b, baseline_of: a, overrides: [optim.lr=2]}\n"
    )
    (tmp_path / "pipeline" / "two.yaml").write_text(text)
    _, changes = split_arguments(["seed=5", "stages.a.seed=6", "stages.b.seed=7"])
    stages = load_pipeline("two", changes, tmp_path).stages
    assert [set(stage.overrides) for stage in stages] == [{"optim.lr=1", "seed=6"}, {"optim.lr=2", "seed=7"}]
    for twice in (["seed=5", "seed=6"], ["stages.a.seed=5", "stages.a.seed=6"], ["pipeline=a", "pipeline=b"]):
        with pytest.raises(ConfigError, match="is set 2 times"):
            split_arguments(twice)
    (tmp_path / "pipeline" / "two.yaml").write_text(text.replace("seed=1,", "seed=1, seed=2,"))
    with pytest.raises(ConfigError, match="stage a: seed is set 2 times"):
        load_pipeline("two", changes, tmp_path)


def test_hydras_own_keys_are_refused_except_the_search_path() -> None:
    refuse_hydra_keys(["optim.lr=1", "hydra.searchpath=[file:///configs]"])
    for item in ("hydra.run.dir=x", "+hydra.job.chdir=true", "hydra/launcher=x"):
        with pytest.raises(ConfigError, match="has no effect on a single one"):
            refuse_hydra_keys([item])
