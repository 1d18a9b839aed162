from __future__ import annotations

import functools
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from swinv2_train.cli.pipeline import main
from swinv2_train.config.compose import compose
from swinv2_train.config.overrides import last_of_each
from swinv2_train.config.schema import Config
from tests.pipeline import train_stub

CHAIN = """\
# Three stages for tests.
name: chain
experiment: simmim_demo
stages:
  - name: first
  - name: second
    init_from: first
    weights: best
    overrides: [optim.lr=2e-3]
  - name: plain
    baseline_of: second
"""


@functools.cache
def composed(overrides: tuple[str, ...], config_dir: Path | None) -> Config:
    return compose(overrides, config_dir)


@pytest.fixture(autouse=True)
def _compose_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same overrides, the same config: composing takes a third of a second, and the chain's are always the same."""
    monkeypatch.setattr("swinv2_train.pipeline.plan.compose", lambda items, folder=None: composed(tuple(items), folder))


@dataclass
class Chain:
    """A pipeline of quick stages in the present directory."""

    shards: Path
    root: Path = Path()

    @property
    def directory(self) -> Path:
        return self.root / "chain"

    def arguments(self, *more: str) -> list[str]:
        """The command line; later arguments win."""
        return last_of_each([
            "pipeline=chain", f"dir={self.directory}", f"data.shards={self.shards}/train-*.tar",
            f"data.eval_shards={self.shards}/eval-*.tar", "stages.first.checkpoint.keep_best=1",
            f"launcher={sys.executable} {train_stub.__file__}", "--config-dir", str(self.root / "conf"), *more,
        ])  # fmt: skip

    def run(self, *more: str) -> int:
        """Run it in this process; returns the exit code."""
        return call(self.arguments(*more))

    def does(self, stage: str, what: str) -> None:
        """Tell a stage's stand-in what to do."""
        self.directory.mkdir(exist_ok=True)
        (self.directory / f"{stage}.does").write_text(what)

    def started(self) -> list[list[str]]:
        """The arguments of every stage that was started, in order."""
        try:
            lines = (self.directory / "started.jsonl").read_text().splitlines()
        except FileNotFoundError:
            return []
        return [json.loads(line) for line in lines]

    def names(self) -> list[str]:
        """The stages that were started, in order."""
        return [Path(dict(a.split("=", 1) for a in args if "=" in a)["run.dir"].strip('"')).name
                for args in self.started()]  # fmt: skip


def call(arguments: Sequence[str]) -> int:
    """Run the command in this process; returns the exit code."""
    with pytest.raises(SystemExit) as caught:
        main(list(arguments))
    return int(caught.value.code or 0)


@pytest.fixture
def chain(tmp_path: Path, shards: Path, monkeypatch: pytest.MonkeyPatch) -> Chain:
    """A chain of three stages that has not run."""
    monkeypatch.chdir(tmp_path)
    Path("conf/pipeline").mkdir(parents=True)
    Path("conf/pipeline/chain.yaml").write_text(CHAIN)
    return Chain(shards)
