"""Completion, through the protocol in which shells ask for it, and in a real bash."""

from __future__ import annotations

import argparse
import copy
import functools
import importlib
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from swinv2_train.cli import completion
from swinv2_train.config.choices import CHOICES
from swinv2_train.config.compose import compose, experiments
from swinv2_train.config.errors import ConfigError
from swinv2_train.config.explain import conf_dir, schema_keys
from swinv2_train.config.section import flat
from swinv2_train.config.validate import validate

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
BREAKS = " \t\n\"'><=;|&(:"
"""COMP_WORDBREAKS of bash: `=` and `:` part words there."""


Offered = Callable[..., list[str]]


class Ended(BaseException):
    """Instead of the end of the process."""


def complete(line: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, breaks: str = "") -> list[str]:
    """Return what a command offers for a line with the cursor at its end."""
    import argcomplete

    class Finder(argcomplete.CompletionFinder):
        def _init_debug_stream(self) -> None:
            """Leave file descriptor 9 alone, which is pytest's."""

    def finder(parser: argparse.ArgumentParser, **options: Any) -> None:
        Finder()(parser, exit_method=end, **options)

    def end(code: int) -> None:
        raise Ended(code)

    monkeypatch.setattr(argcomplete, "autocomplete", finder)
    answer = tmp_path / "answer"
    answer.write_text("")
    for name, value in {
        "_ARGCOMPLETE": "1", "_ARGCOMPLETE_IFS": "\n", "_ARGCOMPLETE_COMP_WORDBREAKS": breaks, "COMP_LINE": line,
        "COMP_POINT": str(len(line)), "_ARGCOMPLETE_STDOUT_FILENAME": str(answer),
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    module, _, function = SCRIPTS[line.split()[0]].partition(":")
    with pytest.raises(Ended) as ended:
        getattr(importlib.import_module(module), function)([])
    assert ended.value.args == (0,)
    return [word.rstrip() for word in answer.read_text().splitlines()]


@pytest.fixture
def offered(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Offered:
    """`complete` in an empty directory with `shards/train-0.tar` in it."""
    (tmp_path / "here" / "shards").mkdir(parents=True)
    (tmp_path / "here" / "shards" / "train-0.tar").touch()
    (tmp_path / "here" / ".hidden").touch()
    monkeypatch.chdir(tmp_path / "here")
    return lambda line, breaks="": complete(line, monkeypatch, tmp_path, breaks)


def test_experiments_and_groups(offered: Offered) -> None:
    assert offered("swinv2-train +experiment=") == [f"+experiment={name}" for name, _ in experiments()]
    assert "+experiment=" in offered("swinv2-train +e")
    for group in ("model", "task", "data", "optim", "engine", "tracking", "launch"):
        names = sorted(path.stem for path in (conf_dir() / group).glob("*.yaml"))
        assert offered(f"swinv2-train {group}=") == [f"{group}={name}" for name in names]
    first = offered("swinv2-train ")
    assert {"+experiment=", "model=", "init_from="} <= set(first)
    assert not [word for word in first if "." in word or word.startswith(("pipeline", "+pipeline"))]


def test_every_key_that_holds_a_value(offered: Offered) -> None:
    keys = set(schema_keys())
    leaves = {key for key in keys if not any(other.startswith(f"{key}.") for other in keys)}
    for section in {key.partition(".")[0] for key in leaves if "." in key}:
        found = offered(f"swinv2-train +experiment=simmim_demo {section}.")
        assert sorted(found) == sorted(f"{key}=" for key in leaves if key.startswith(f"{section}."))
    assert offered("swinv2-train launch.dry_run=") == ["launch.dry_run=true", "launch.dry_run=false"]
    assert offered("swinv2-train data.augment.hf") == ["data.augment.hflip="]


def test_values_of_keys_that_accept_only_a_few(offered: Offered) -> None:
    assert offered("swinv2-train engine.precision=") == [
        f"engine.precision={name}" for name in ("bf16", "fp16", "fp32")
    ]
    assert offered("swinv2-train engine.grad_accum_dtype=n") == ["engine.grad_accum_dtype=null"]
    assert offered("swinv2-train model.attention=s") == ["model.attention=sdpa", "model.attention=sequential"]
    assert offered("swinv2-pipeline pipeline=demo stages.simmim.guard.policy=r") == [
        "stages.simmim.guard.policy=rollback"
    ]
    assert offered("swinv2-eval which=") == ["which=newest", "which=best"]
    assert offered("swinv2-eval ema=t") == ["ema=true"]
    assert offered("swinv2-features precision=f") == ["precision=fp32", "precision=fp16"]
    assert offered("swinv2-features sheet=sh") == ["sheet=shards/"]


def test_every_key_with_choices_exists_and_is_checked() -> None:
    assert set(CHOICES) <= set(schema_keys())
    demo = compose(["+experiment=simmim_demo"])
    dense = [compose([f"task={name}", "optim.epochs=1"]) for name in ("segmentation", "detection")]
    for key, values in CHOICES.items():
        config = copy.deepcopy(next(each for each in (demo, *dense) if key in flat(each)))
        section, _, name = key.rpartition(".")
        owner = functools.reduce(getattr, section.split("."), config)
        setattr(owner, name, "none of them" if isinstance(values[-1], str) else 99)
        with pytest.raises(ConfigError, match=f"{re.escape(str(values[-1]))}"):
            validate(config)


def test_paths(offered: Offered) -> None:
    assert offered("swinv2-train data.shards=") == ["data.shards=shards/"]
    assert offered("swinv2-train data.shards=shards/t") == ["data.shards=shards/train-0.tar"]
    assert offered("swinv2-train data.shards=https://host/") == []
    assert offered("swinv2-train data.cache_dir=.h") == ["data.cache_dir=.hidden"]
    assert offered("swinv2-data pack sh") == ["short_side=", "shards/"]


def test_a_shell_that_parts_words_at_equal_signs_gets_the_last_part(offered: Offered) -> None:
    assert offered("swinv2-train +experiment=simmim_d", BREAKS) == ["simmim_demo"]
    assert offered("swinv2-train data.shards=shards/t", BREAKS) == ["shards/train-0.tar"]
    assert offered("swinv2-train optim.warmup_s", BREAKS) == ["optim.warmup_steps="]


def test_options_subcommands_and_their_choices(offered: Offered) -> None:
    assert offered("swinv2-train --config-d") == ["--config-dir"]
    assert offered("swinv2-train --cfg ") == ["job"]
    assert offered("swinv2-train --res") == []  # for the ranks alone
    assert offered("swinv2-data ") == ["pack", "inspect", "bench"]
    assert set(offered("swinv2-checkpoint ")) >= {"ls", "show", "prune", "weights", "reshape"}
    assert offered("swinv2-export run out --format o") == ["onnx"]
    assert offered("swinv2-analyze w") == ["windows"]
    assert "at=" in offered("swinv2-analyze attention a")
    assert "windows=" in offered("swinv2-analyze windows w")
    assert offered("swinv2-eval check") == ["checkpoint="]
    assert offered("swinv2-eval model.win") == ["model.window=", "model.window_rule="]
    assert offered("swinv2-eval optim.l") == []


def test_pipelines(offered: Offered) -> None:
    assert offered("swinv2-pipeline pipeline=g") == ["pipeline=giant", "pipeline=giant_ade20k", "pipeline=giant_coco"]
    assert offered("swinv2-pipeline st") == ["status"]
    assert offered("swinv2-pipeline status sh") == ["shards/"]
    assert offered("swinv2-pipeline pipeline=demo stages.simmim.optim.warmup_s") == [
        "stages.simmim.optim.warmup_steps="
    ]


def test_ones_own_configs(offered: Offered) -> None:
    Path("mine/experiment").mkdir(parents=True)
    Path("mine/experiment/tiles.yaml").touch()
    assert offered("swinv2-train --config-dir mine +experiment=ti") == ["+experiment=tiles"]
    assert offered("swinv2-train --config-dir mi") == ["mine/"]
    assert offered("swinv2-train +experiment=ti") == []


def test_every_command_answers(offered: Offered) -> None:
    for name in SCRIPTS:
        assert "--help" in offered(f"{name} --"), name


def test_nobody_who_did_not_ask_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("_ARGCOMPLETE", raising=False)
    script = """
import sys
from swinv2_train.cli.train import parse
parse(["+experiment=simmim_demo"])
print(*(name for name in ("argcomplete", "torch", "hydra") if name in sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_who_asks_does_not_wait_for_torch_or_hydra(tmp_path: Path) -> None:
    """Every command, in one process: what a completion has imported by the time it answers."""
    script = f"""
import importlib, sys, argcomplete
def answer(parser, **options):
    raise SystemExit
argcomplete.autocomplete = answer
for target in {list(SCRIPTS.values())!r}:
    module, _, name = target.partition(":")
    try:
        getattr(importlib.import_module(module), name)([])
    except SystemExit:
        pass
print(*(name for name in ("torch", "hydra", "omegaconf", "numpy", "matplotlib", "deepspeed") if name in sys.modules))
"""
    variables = os.environ | {"_ARGCOMPLETE": "1"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=variables, check=True)
    assert done.stdout.strip() == ""


def test_a_broken_installation_offers_nothing(monkeypatch: pytest.MonkeyPatch, offered: Offered) -> None:
    def missing() -> Path:
        raise ConfigError("", "", "the installation is broken")

    monkeypatch.setattr(completion, "conf_dir", missing)
    assert offered("swinv2-train +exp") == []


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_in_a_real_bash() -> None:
    """The line of the README, then what bash does at a press of the key, word breaks and all."""
    script = """
eval "$(register-python-argcomplete swinv2-train)"
ask() { COMP_LINE="$1" COMP_POINT=${#1} COMP_TYPE=9; _python_argcomplete swinv2-train; echo "${COMPREPLY[*]}"; }
complete -p swinv2-train
ask "swinv2-train +experiment=simmim_dem"
ask "swinv2-train +experiment=simmim_demo launch.dry_run="
"""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, env=os.environ | {"PATH": path})
    registered, name, values = done.stdout.splitlines()
    assert registered.endswith("swinv2-train")
    assert name.strip() == "simmim_demo"
    assert values.split() == ["true", "false"]
