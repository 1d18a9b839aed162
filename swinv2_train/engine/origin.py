"""Origin of a start: the run and the checkpoint that it resumes from. Torch-free, so that errors come early."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from swinv2_train.checkpoint.layout import list_checkpoints, step_of
from swinv2_train.checkpoint.survey import examine
from swinv2_train.config.compose import from_yaml
from swinv2_train.config.errors import ConfigError
from swinv2_train.config.paths import user_path
from swinv2_train.config.schema import Config
from swinv2_train.reading import put_aside

METRICS = "metrics.jsonl"
_MOST_SHOWN = 5


@dataclass(frozen=True)
class Origin:
    """Place of the checkpoints that a start resumes from."""

    run_dir: Path
    """Run directory that has them."""
    step: int | None
    """Step of the only checkpoint to use; None: the newest valid one."""
    branches: bool
    """True if it is not the directory of the run itself."""

    @property
    def checkpoints(self) -> Path:
        """Directory of the checkpoints."""
        return self.run_dir / "checkpoints"


def origin_of(config: Config) -> Origin:
    """Return the origin of the next start of a run.

    A run that has checkpoints of its own continues from these: `resume.source` applies only to its first start, and
    `resume=step:N` only until it was started with it.
    """
    own, resume = Path(config.run.dir), config.resume
    if resume.source is None or config.replay:
        return Origin(own, None if _is_applied(config) else resume.step, branches=False)
    if list_checkpoints(own / "checkpoints"):
        return Origin(own, None, branches=False)
    source = user_path(resume.source)
    return Origin(source.parent if source.name == "checkpoints" else source, resume.step, branches=True)


def _is_applied(config: Config) -> bool:
    """True if the last start of the run had the same `resume=step:N`, so that newer checkpoints continue from it.

    That start was rejected if there were newer ones. A scheduler that repeats its command gets here.
    """
    if config.resume.step is None or config.replay:
        return False
    try:
        before = from_yaml(Path(config.run.dir) / "resolved.yaml", only_read=True)
    except ConfigError:  # there is none, or it cannot be read
        return False
    return before.resume.mode == config.resume.mode


def check_origin(config: Config) -> None:
    """Check that the checkpoint of `resume=step:N` exists, and that no newer one would be lost.

    Raises:
        ConfigError: if not, with the steps that exist, or with the command for a new directory.
    """
    place = origin_of(config)
    if place.branches:
        _check_source(config, place)
    if place.step is None:
        return
    found = list_checkpoints(place.checkpoints)
    steps = sorted(step_of(path) or 0 for path in found)
    if place.step not in steps:
        more = "..., " if len(steps) > _MOST_SHOWN else ""
        there = f"it has {more}{', '.join(map(str, steps[-_MOST_SHOWN:]))}" if steps else "it has none"
        hint = f"there is no checkpoint of that step in {place.checkpoints}; {there}"
        raise ConfigError("resume", config.resume.mode, hint)
    newer = [path for path in found if (step_of(path) or 0) > place.step and examine(path).damage is None]
    if newer and not place.branches:
        hint = (
            f"{place.run_dir} has newer checkpoints, up to {newer[0].name}, which would be lost; use a new run.dir "
            f"with resume.source={place.run_dir}, or resume=auto to continue from the newest"
        )
        raise ConfigError("resume", config.resume.mode, hint)


def _check_source(config: Config, place: Origin) -> None:
    source = config.resume.source
    if not place.run_dir.is_dir():
        raise ConfigError("resume.source", source, "is not the directory of a run")
    if place.run_dir.resolve() == Path(config.run.dir).resolve():
        hint = "is run.dir itself; omit it, or use a new run.dir"
        raise ConfigError("resume.source", source, hint)
    if not list_checkpoints(place.checkpoints):
        hint = f"there is no checkpoint in {place.checkpoints}"
        raise ConfigError("resume.source", source, hint)


def copy_records(place: Origin, run_dir: Path) -> list[str]:
    """Give a new run directory the metrics of the run that it continues; those past its first step are dropped later.

    Metrics that are already there belong to a start that saved no checkpoint. They are put aside.

    Returns:
        a line about these, for the log.

    Raises:
        OSError: if they cannot be copied.
    """
    there, here = place.run_dir / METRICS, run_dir / METRICS
    lines = []
    if here.exists():
        aside = put_aside(here)
        lines = [f"{METRICS} of an earlier start that saved no checkpoint is now {aside.name}"]
    if there.is_file():
        shutil.copyfile(there, here)
    return lines
