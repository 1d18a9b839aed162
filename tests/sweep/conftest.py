"""A sweep of quick stand-ins for runs, with and without Hydra."""

from __future__ import annotations

import functools
import json
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from swinv2_train.config.compose import compose
from swinv2_train.config.schema import Config
from swinv2_train.config.sweep import SweepConfig
from swinv2_train.launch.command import StopSignals
from swinv2_train.sweep.job import JobRecord, make_job
from swinv2_train.sweep.run import Sweep, run_job, this_process
from tests.runs import run_here

FIXED = ("+experiment=simmim_demo", "optim.steps=8")
KEYS = frozenset({"experiment", "optim.steps"})


@functools.cache
def _composed(overrides: tuple[str, ...], config_dir: Path | None) -> Config:
    return compose(overrides, config_dir)


@pytest.fixture
def compose_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same overrides, the same config: composing takes a third of a second."""
    for module in ("config.multirun", "sweep.call"):
        monkeypatch.setattr(
            f"swinv2_train.{module}.compose", lambda items, folder=None: deepcopy(_composed(tuple(items), folder))
        )


@dataclass
class Jobs:
    """The directory of a sweep whose jobs are stand-ins, and ways to run them without Hydra."""

    directory: Path
    settings: SweepConfig = field(default_factory=SweepConfig)

    def does(self, what: dict[str, str]) -> None:
        """Tell the stand-ins what to do, by a part of the job's id."""
        self.directory.mkdir(exist_ok=True)
        (self.directory / "does.json").write_text(json.dumps(what))

    @property
    def started(self) -> list[str]:
        """The ids of the jobs in the order in which they were started."""
        path = self.directory / "started.txt"
        return path.read_text().splitlines() if path.exists() else []

    def sweep(self, **more: object) -> Sweep:
        return Sweep("trial", self.directory, self.settings, KEYS, main=this_process(), **more)  # type: ignore[arg-type]

    def run(self, *swept: str) -> JobRecord | None:
        """Run the job of some swept values."""
        signals = StopSignals()
        try:
            return run_job(self.sweep(), make_job([*FIXED, *swept], KEYS), signals)
        finally:
            signals.close()

    def call(self, *arguments: str) -> int:
        """Run `swinv2-train -m` on the directory, inside this process; returns the exit code."""
        return run_here(["-m", *FIXED, f"sweep.dir={self.directory}", *arguments])


@pytest.fixture
def jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Jobs:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent / "stand_in"))
    monkeypatch.chdir(tmp_path)
    return Jobs(tmp_path / "sweep")
