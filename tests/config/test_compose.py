"""Composing a config: every shipped one works, every mistake ends in one sentence with field, value, and fix."""

from __future__ import annotations

from pathlib import Path

import pytest

from swinv2_train.config.compose import compose, experiments, from_yaml, override, to_yaml
from swinv2_train.config.errors import ConfigError
from swinv2_train.config.explain import conf_dir, schema_keys
from swinv2_train.config.schema import Config

NAMES = [name for name, _ in experiments()]


GROUP_FILES = sorted(path for path in conf_dir().glob("*/*.yaml") if path.parent.name != "pipeline")


@pytest.mark.slow
@pytest.mark.parametrize("path", GROUP_FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_group_file_composes_and_says_what_it_is_for(path: Path) -> None:
    group = path.parent.name
    override = f"+{group}={path.stem}" if group in ("experiment", "sweep", "variant") else f"{group}={path.stem}"
    compose([override])
    comments = [line for line in path.read_text().splitlines() if line.startswith("#") and "@package" not in line]
    assert comments, f"{path} opens with no line that says what it is for"


def test_the_listing_describes_every_experiment() -> None:
    assert {"simmim_demo", "simmim_base", "simmim_giant"} <= set(NAMES)
    assert all(len(line) > 20 for _, line in experiments())


@pytest.mark.slow
def test_yaml_round_trip(tmp_path: Path) -> None:
    config = compose(["+experiment=simmim_giant", "model.window=[12,12,[6,12],6]"])
    (tmp_path / "resolved.yaml").write_text(to_yaml(config))
    assert from_yaml(tmp_path / "resolved.yaml") == config


@pytest.mark.parametrize(
    ("item", "scales"),
    [
        ("optim.lr_scales={}", {}),
        ("optim.lr_scales={ decoder: 2 }", {"decoder": 2}),
        ("optim.lr_scales.backbone=2", {"backbone": 2}),
        ("+optim.lr_scales={decoder:2}", {"backbone": 0.5, "decoder": 2}),
        ("optim.lr_scales=null", None),
    ],
)
def test_a_value_in_braces_replaces_that_of_a_recipe(tmp_path: Path, item: str, scales: dict[str, float]) -> None:
    (tmp_path / "experiment").mkdir()
    text = "# @package _global_\n# Mine.\noptim: {lr_scales: {backbone: 0.5}}\nengine: {deepspeed: {a: {b: 1}}}\n"
    (tmp_path / "experiment" / "mine.yaml").write_text(text)
    config = compose(["+experiment=mine", item, "engine.deepspeed={}"], tmp_path)
    assert (config.optim.lr_scales, config.engine.deepspeed) == (scales, {})
    if not item.startswith("+"):
        changed = override(to_yaml(compose(["+experiment=mine"], tmp_path)), [item, "engine.deepspeed={c: 1}"])
        assert (changed.optim.lr_scales, changed.engine.deepspeed) == (scales, {"c": 1})
    assert compose(["optim.lr_scales={head: 3}", "optim.lr_scales=null"]).optim.lr_scales is None
    with pytest.raises(ConfigError, match=r"optim=\{\}: is a section"):
        compose(["+experiment=mine", "optim={}"], tmp_path)
    with pytest.raises(ConfigError, match=r"engine\.deepspeed=\{\}: replaces all of it, and \+engine\.deepspeed\.c=1 "):
        compose(["+experiment=mine", "engine.deepspeed={}", "+engine.deepspeed.c=1"], tmp_path)


def test_own_configs_stand_next_to_the_shipped_ones(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    text = "# @package _global_\n# Mine.\ndefaults:\n  - /experiment/simmim_tiny\nrun: {name: mine}\nseed: 7\n"
    (tmp_path / "experiment" / "mine.yaml").write_text(text)
    config = compose(["+experiment=mine"], tmp_path)
    assert (config.run.name, config.seed, config.data.resolution) == ("mine", 7, 192)


def test_a_frozen_config_cannot_be_changed() -> None:
    config = Config()
    config.freeze()
    with pytest.raises(AttributeError, match="frozen"):
        config.optim.lr = 1.0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["model.windw=3"], ["model.windw=3", "unknown key", "model.window"]),
        (["+model.foo=1"], ["model.foo=1", "unknown key"]),
        (["model=swinv3"], ["model=swinv3: unknown model; did you mean swinv2_"]),
        (["tracking.wandb_tags=a"], ["tracking.wandb_tags=a: must be a list: write tracking.wandb_tags=[a]"]),
        (["resume=null"], ["resume.mode=null: cannot be null; omit the key"]),
        (["model.depths=abc"], ["model.depths=abc: must be a list: write model.depths=[abc]"]),
        (["optim.global_batch=1.5"], ["optim.global_batch=1.5: must be an integer, in digits"]),
        (["data.max_pixels=200M"], ["data.max_pixels=200M: must be an integer, in digits"]),
        (["resume=[a]"], ["resume.mode", "must be a string"]),
        (["data.augment=5"], ["data.augment=5: is a section"]),
        (["+experiment="], ["experiment=: unknown experiment; use one of"]),
        (["model="], ["model=: unknown model; use one of"]),
        (["task=classification", "task.mask_ratio=1"], ["task.mask_ratio=1", "is a key of task=simmim"]),
        (["task=classification", "+task.mask_ratio=1"], ["task.mask_ratio=1", "is a key of task=simmim"]),
        (["task.mixup=1"], ["task.mixup=1", "is a key of task=classification"]),
        (["task=classification", "task.mixups=1"], ["task.mixups=1", "did you mean task.mixup?"]),
        (["task.name=foo"], ["task.name=foo", "simmim, classification, segmentation"]),
        (["task.name=classification"], ["is a key of task=simmim", "task=NAME"]),
        (["task=3"], ["task=3", "use one of classification, detection, segmentation, simmim"]),
        (["task=null"], ["task=null", "use one of classification, detection, segmentation, simmim"]),
        (["task=segment"], ["task=segment", "did you mean segmentation"]),
    ],
)
def test_wrong_overrides_name_field_value_and_fix(overrides: list[str], parts: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        compose(overrides)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


def test_a_broken_resolved_file_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "resolved.yaml"
    with pytest.raises(ConfigError, match="cannot read the config"):
        from_yaml(path)
    path.write_text("model: [")
    with pytest.raises(ConfigError, match="not a valid config"):
        from_yaml(path)
    path.write_text("data: {max_pixels: 200M}")
    with pytest.raises(ConfigError, match=r"not a valid config: data.max_pixels=200M: must be an integer"):
        from_yaml(path)
    path.write_text("modle: {}")
    with pytest.raises(ConfigError, match="did you mean model"):
        from_yaml(path)


def test_every_field_is_documented() -> None:
    import ast
    import inspect

    from swinv2_train.config import model, schema, tasks

    for module in (schema, model, tasks):
        for node in ast.walk(ast.parse(inspect.getsource(module))):
            if not (isinstance(node, ast.ClassDef) and node.name.endswith("Config") and node.name != "Config"):
                continue
            body = node.body
            for here, after in zip(body, [*body[1:], None], strict=True):
                if isinstance(here, ast.AnnAssign):
                    documented = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
                    assert documented, f"{node.name}.{ast.unparse(here.target)} has no documentation below it"


def test_schema_keys_reach_every_section() -> None:
    keys = set(schema_keys())
    assert {"seed", "model.window", "data.augment.scale", "optim.lr", "tracking.wandb", "eval.max_samples"} <= keys
    assert {"task.mask_ratio", "task.mixup"} <= keys


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("data:\n  resolutoin: 96\n", "mine.yaml, line 3: data.resolutoin: unknown key; did you mean data.resol"),
        ("defaults:\n  - /model: nothing_like_it\n", "unknown model"),
        ("data: [\n", "mine.yaml, line 3: is not YAML"),
        ("data:\n  max_pixels: 200M\n", "mine.yaml, line 3: data.max_pixels=200M: must be an integer"),
        ("model:\n  drop_path: abc\n", "mine.yaml, line 3: model.drop_path=abc: must be a number"),
        ("model:\n  depths: 3\n", "mine.yaml, line 3: model.depths: must be a list"),
        ("model: 3\n", "mine.yaml: is a section; set one of its keys instead"),
    ],
)
def test_a_mistake_in_a_file_of_the_user_names_it(tmp_path: Path, text: str, sentence: str) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(f"# @package _global_\n{text}")
    with pytest.raises(ConfigError) as caught:
        compose(["+experiment=mine"], tmp_path)
    assert sentence in str(caught.value)


GARBAGE = {
    "noise": (bytes(range(256)), "is not UTF-8"),
    "deep": (b"a: " + b"[" * 5000, "nested too deeply"),
    "zeros": (b"\0\0", "is not YAML"),
    "another encoding": ("run:\n  name: é\n".encode("latin1"), "is not UTF-8"),
    "a tag that calls": (b'!!python/object/apply:os.system ["exit 1"]\n', "could not determine a constructor"),
    "many digits": (b"# @package _global_\nseed: " + b"9" * 5000, "4300 digits"),
    "a list": (b"- 1\n", "mine.yaml: must consist of keys and values"),
}


@pytest.mark.slow
@pytest.mark.parametrize(("content", "sentence"), GARBAGE.values(), ids=GARBAGE)
def test_a_file_of_anything_is_one_sentence(tmp_path: Path, content: bytes, sentence: str) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_bytes(content)
    (tmp_path / "experiment" / "folder.yaml").mkdir()
    assert "mine" in dict(experiments(tmp_path))
    with pytest.raises(ConfigError, match=sentence):
        compose(["+experiment=mine"], tmp_path)
    with pytest.raises(ConfigError):
        from_yaml(tmp_path / "experiment" / "mine.yaml")
    with pytest.raises(ConfigError):
        from_yaml(tmp_path / "experiment" / "folder.yaml")


@pytest.mark.parametrize(
    ("overrides", "mode", "allow"),
    [
        (["resume=auto"], "auto", []),
        (["resume=never"], "never", []),
        (["resume.allow=[data]"], "auto", ["data"]),
        (["resume=never", "resume.allow=[data]"], "never", ["data"]),
        (["resume={mode:never,allow:[data]}"], "never", ["data"]),
    ],
)
def test_resume_is_a_mode_or_a_section(overrides: list[str], mode: str, allow: list[str]) -> None:
    resume = compose(["+experiment=simmim_demo", *overrides]).resume
    assert (resume.mode, resume.allow) == (mode, allow)
    assert type(resume).__name__ == "ResumeConfig"


def test_a_list_in_resume_is_asked_for() -> None:
    with pytest.raises(ConfigError, match=r"resume.allow=data: must be a list: write resume.allow=\[data\]"):
        compose(["+experiment=simmim_demo", "resume.allow=data"])


def test_a_bare_mode_keeps_the_other_keys_of_resume() -> None:
    section = "resume:\n  mode: auto\n  source: runs/a\n  allow: [data]\n"
    for text, given in (
        (section, ["resume=step:3"]),
        ("resume: never\n", ["resume.source=runs/a", "resume.allow=[data]", "resume=step:3"]),
    ):
        resume = override(text, given).resume
        assert (resume.mode, resume.source, resume.allow) == ("step:3", "runs/a", ["data"])
