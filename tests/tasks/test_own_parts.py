"""Transforms, attention backends, and decoders of a module of the user, those of tasks/README.md, in every command."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from PIL import Image

from swinv2_train.checkpoint.layout import read_manifest
from swinv2_train.cli import data, evaluate, export, pipeline, predict, train
from swinv2_train.cli.arguments import Parser
from swinv2_train.cli.plugins import add_imports, use_imports
from swinv2_train.config import own_parts, plugins
from swinv2_train.config.compose import compose, from_yaml, override, to_yaml
from swinv2_train.config.errors import ConfigError
from swinv2_train.config.model import ModelConfig, attention_backends
from swinv2_train.config.schema import AugmentConfig
from swinv2_train.config.validate import validate
from swinv2_train.data.augment import train_image
from swinv2_train.data.decode import DecodeOptions, decode
from swinv2_train.data.errors import BrokenSample
from swinv2_train.data.geometry import Crop
from swinv2_train.data.image_header import sniff
from swinv2_train.exit_codes import FINISHED, WRONG_USE
from swinv2_train.pipeline.plan import plan
from swinv2_train.planner.activations import activations
from tests.documents import forget_parts, own_tasks, python_files
from tests.runs import losses, make_images, metrics, run_here, tiny_run

PAGE = Path(__file__).resolve().parents[2] / "swinv2_train" / "tasks" / "README.md"
IMPORT = ["--import", "my_parts"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder that `my_parts` and `my_tasks` are in, on the import path."""
    folder = tmp_path_factory.mktemp("own")
    python_files(PAGE, folder)
    with own_tasks(folder):
        yield folder


@pytest.fixture(scope="module")
def scans(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of PGM images, which only `my_parts` reads."""
    place = tmp_path_factory.mktemp("scans")
    make_images(place / "images", 20, 3)
    for path in (place / "images").iterdir():
        Image.open(path).convert("L").save(path.with_suffix(".pgm"))
        path.unlink()
    arguments = ["pack", str(place / "images"), str(place), "--eval-share", "0.3", "--workers", "1"]
    assert called(data.main, [*arguments, *IMPORT]) == FINISHED
    return place


def called(main: object, arguments: list[str]) -> int:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    return int(caught.value.code or 0)


def own_run(scans: Path, run_dir: Path, *more: str) -> list[str]:
    fixed = ["optim.steps=2", "optim.warmup_steps=0", "eval.every_steps=2", "eval.at_start=false"]
    return tiny_run(scans, run_dir, *fixed, "eval.figure_every_steps=0", *more)


@pytest.mark.slow
def test_own_parts_live_a_whole_life(
    folder: Path, scans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    attention = importlib.import_module("my_parts.attention")
    calls = MagicMock(side_effect=attention.precise)
    monkeypatch.setattr(attention, "precise", calls)
    parts = ["data.augment.transform=sometimes_gray", "model.attention=[precise,sdpa,precise,sdpa]"]
    assert run_here([*IMPORT, *own_run(scans, run, *parts, "data.num_workers=1")]) == FINISHED
    assert all(row["broken_samples"] == 0 for row in metrics(run) if "lr" in row)
    config = from_yaml(run / "resolved.yaml")
    assert (config.imports, config.data.augment.transform) == (["my_parts"], "sometimes_gray")
    checkpoint = run / "checkpoints" / "step-00000002"
    assert read_manifest(checkpoint).metadata["imports"] == ["my_parts"]

    # Without workers, and with an attention that differs only in rounding.
    used, plain = calls.call_count, tmp_path / "plain"
    assert run_here([*IMPORT, *own_run(scans, plain, "data.num_workers=0", parts[0])]) == FINISHED
    assert losses(run) == pytest.approx(losses(plain), rel=1e-4)
    assert calls.call_count == used > 0

    # The weights name the module, so an evaluation of a fresh process finds the decoder.
    forget_parts("my_parts")
    capsys.readouterr()
    assert called(evaluate.main, [f"checkpoint={run}", f"data={scans}/eval-*.tar", "workers=1", "device=cpu"]) == 0
    (results,) = run.glob("evaluations/*/results.json")
    found = json.loads(results.read_text())["metrics"]
    (trained,) = [row for row in metrics(run) if "eval/loss" in row]
    assert found["samples"] == trained["eval/samples"] == 9
    assert found["loss"] == pytest.approx(trained["eval/loss"], rel=1e-5)


@pytest.mark.slow
def test_every_command_imports_them(
    folder: Path, scans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shards = [str(path) for path in sorted(scans.glob("train-*.tar"))]
    assert called(data.main, ["inspect", *shards, "--workers", "0", *IMPORT]) == 0
    assert "pgm" in capsys.readouterr().out
    commands = {
        "swinv2-data": (data.main, ["inspect", *shards]),
        "swinv2-eval": (evaluate.main, ["checkpoint=x", "data=y"]),
        "swinv2-predict": (predict.main, ["x", "y"]),
        "swinv2-export": (export.main, ["x", "y", "--format", "timm"]),
        "swinv2-train": (None, ["task=simmim"]),
    }
    for name, (main, arguments) in commands.items():
        given = [*arguments, "--import", "my_missing"]
        assert (called(main, given) if main else run_here(given)) == WRONG_USE
        message = capsys.readouterr().err
        assert message.count("\n") == 1
        assert message.startswith(
            f"{name}: imports=my_missing: is not on the import path: install it, or add its folder"
        )


def test_parts_are_found_by_name(folder: Path) -> None:
    config = compose(["+experiment=simmim_demo", "imports=[my_parts,my_tasks.light]", "model.attention=precise"])
    validate(config)
    assert attention_backends(config.model) == ["precise"] * 4
    assert activations(config, 2, gpu=False)[0].transient > 0
    image = np.arange(12, dtype=np.uint8).reshape(3, 4)
    pgm = b"P5\n4 3\n255\n" + image.tobytes()
    assert sniff(pgm) == "pgm"
    assert decode(pgm, 3).numpy().tolist() == [image.tolist()] * 3
    with pytest.raises(BrokenSample, match="pgm: only 8 bits are read"):
        decode(b"P5\n4 3\n65535\n" + bytes(24))
    with pytest.raises(BrokenSample, match="above the limit of 11 pixels"):
        decode(pgm, 3, DecodeOptions(max_pixels=11))
    assert config.task.module is None

    own = compose(["task=light", "imports=[my_tasks.light]", "task.hidden=4"])
    assert (own.task.name, own.task.module, own.task.hidden) == ("light", "my_tasks.light", 4)


def test_a_config_file_may_import(folder: Path, tmp_path: Path) -> None:
    forget_parts("my_parts")
    (tmp_path / "experiment").mkdir()
    text = "# @package _global_\ndefaults:\n  - override /task: light\nimports: [my_tasks.light, my_parts]\n"
    (tmp_path / "experiment" / "mine.yaml").write_text(text)
    more = ["data.augment.transform=sometimes_gray", "data.shards=x", "optim.steps=1"]
    config = compose(["+experiment=mine", *more], tmp_path)
    validate(config)
    assert (config.task.name, config.imports) == ("light", ["my_tasks.light", "my_parts"])


SPELLINGS = (
    ["--import", "my_parts"], ["--import=my_parts"], ["imports=[my_parts]"], ["imports=my_parts"], ["import=my_parts"],
    ["imports=['my_parts', my_tasks.light]", "--import", "my_parts"],
)  # fmt: skip


def test_every_spelling_adds_modules(folder: Path, tmp_path: Path) -> None:
    """A run adds them to those of its config files; the jobs of sweeps get them as `imports=[...]`."""
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\nimports: [my_tasks.light]\n")
    run = ["+experiment=mine", "optim.steps=1", "data.shards=x", f"run.dir={tmp_path}/r", "--config-dir", str(tmp_path)]
    other = Parser(prog="of-weights")
    add_imports(other)
    for line in SPELLINGS:
        (item,) = [item for item in train.parse([*run, *line]).overrides if item.startswith("imports=")]
        assert plugins.modules_in(item.partition("=")[2])[0] == "my_parts", line
        forget_parts("my_parts")
        use_imports(other.parse_args(line))
        assert own_parts.is_known("my_parts"), line
    assert not any(item.startswith("imports") for item in train.parse([*run, "imports=null"]).overrides)
    for line in (["imports=[]"], ["imports=[my_parts]"]):
        config = train.load(train.parse([*run, *line]))
        assert config.imports == ["my_tasks.light", "my_parts"][: 1 if line == ["imports=[]"] else 2]
    changed = override(to_yaml(config), ["imports=my_tasks.light", "seed=3"])
    assert (changed.imports, changed.seed) == (["my_tasks.light", "my_parts"], 3)


def test_a_pipeline_gives_them_to_every_stage(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "pipeline").mkdir()
    stages = "[{name: a, overrides: ['imports=[my_tasks.light]', seed=1]}, {name: b, init_from: a}]"
    (tmp_path / "pipeline" / "own.yaml").write_text(f"name: own\nexperiment: simmim_demo\nstages: {stages}\n")
    arguments = pipeline.parse(["pipeline=own", f"dir={tmp_path}/d", "--config-dir", str(tmp_path), *IMPORT])
    planned = plan(pipeline.pipeline_of(arguments), tmp_path)
    assert [stage.config.imports for stage in planned] == [["my_tasks.light", "my_parts"], ["my_parts"]]
    command = planned[0].arguments(None)
    assert train.load(train.parse([*command, "data.shards=x"])).imports == ["my_tasks.light", "my_parts"]


def test_an_installed_package_needs_no_option(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "my_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{plugins.GROUP}]\nmine = my_parts\n")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    forget_parts("my_parts")
    plugins.installed.cache_clear()
    try:
        assert compose(["+experiment=simmim_demo", "model.attention=precise"]).imports == ["my_parts"]
        (info / "entry_points.txt").write_text(f"[{plugins.GROUP}]\nmine = my_missing\n")
        plugins.installed.cache_clear()
        with pytest.raises(ConfigError, match=r"imports=my_missing: .* an entry point of the package my-package"):
            compose(["+experiment=simmim_demo"])
    finally:
        plugins.installed.cache_clear()


def test_weights_name_a_missing_module() -> None:
    (note,) = plugins.import_recorded(["my_vanished"])
    assert note.startswith("the weights were trained with --import my_vanished, which is not on the import path")
    assert plugins.import_recorded(None) == []


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "defines neither a task nor a Plugin"),
        ("attention={'sdpa': 'a:b'}", "attention has 'sdpa', which is built in; rename it"),
        ("attention={'precise': 'a:b'}", "attention has 'precise', which is a part of my_parts; rename it"),
        ("decoders={'jpg': Decoder(b'x', 'a:b')}", "decoders has 'jpg', which is built in"),
        ("decoders={'.x': Decoder(b'x', 'a:b')}", "not a name of lower-case letters and digits"),
        ("decoders={'x': Decoder(b'', 'a:b')}", "the decoder x needs magic"),
        ("transforms={'x': 'a.b'}", "x is 'a.b'; write 'module:function'"),
        ("transforms={'x': print}", "write 'module:function'"),
    ],
)
def test_a_wrong_plugin_is_rejected(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, sentence: str
) -> None:
    plugins.import_plugins(["my_parts"])
    (tmp_path / "wrong_parts.py").write_text(
        "from swinv2_train.config.own_parts import Decoder, Plugin\n" + (f"P = Plugin({text})\n" if text else "")
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "wrong_parts", raising=False)
    with pytest.raises(ConfigError, match=sentence):
        plugins.import_plugins(["wrong_parts"])
    assert not own_parts.is_known("wrong_parts")


def test_unknown_names_and_functions_are_rejected(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"model.attention=flash: must be one of reference, sdpa, sequential"):
        attention_backends(ModelConfig(attention="flash"))
    with pytest.raises(ConfigError, match=r"data.augment.transform=x: is not a transform of a module in imports"):
        validate(compose(["+experiment=simmim_demo", "data.augment.transform=x"]))
    with pytest.raises(ConfigError, match=r"imports=my_parts.images:none: this part cannot be imported"):
        own_parts.function_of("my_parts.images:none")


class Plain:
    """A sample of one color image, as far as a crop needs it."""

    scaled = False

    image = torch.arange(3 * 8 * 8, dtype=torch.uint8).view(3, 8, 8)
    size = (8, 8)

    def aligned(self, crop: Crop) -> Crop:
        return crop

    def part(self, crop: Crop) -> tuple[torch.Tensor, Crop]:
        return self.image, crop


def test_a_transform_makes_the_training_image(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plugins.import_plugins(["my_parts"])
    config = AugmentConfig(transform="sometimes_gray")
    gray = 0
    for seed in range(20):
        own = train_image(Plain(), (8, 8), config, np.random.default_rng(seed))
        crop = train_image(Plain(), (8, 8), AugmentConfig(), np.random.default_rng(seed))
        gray += own[0].equal(own[1]) and own[0].equal(own[2])
        assert own.equal(crop) or own.float().mean(dim=0).sub(crop.float().mean(dim=0)).abs().max() <= 0.5
    assert 4 < gray < 16
    for wrong, found in ((torch.zeros(3, 8, 8).double(), r"\(3, 8, 8\) torch.float64"), (None, "NoneType")):
        monkeypatch.setattr("my_parts.images.sometimes_gray", lambda *_, wrong=wrong: wrong)
        own_parts.function_of.cache_clear()
        with pytest.raises(ValueError, match=rf"data.augment.transform=sometimes_gray returned {found}, not a uint8"):
            train_image(Plain(), (8, 8), config, np.random.default_rng(0))
    own_parts.function_of.cache_clear()
