"""Several runs from one command line: Hydra's sweepers choose the jobs, its launchers choose where they run.

It first lists and composes all jobs, exactly as the runs will compose them, to find wrong values before the first run
starts. Hydra's own multirun then calls back for every job.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from swinv2_train.config.compose import compose
from swinv2_train.config.errors import ConfigError
from swinv2_train.config.explain import conf_dir, explain
from swinv2_train.config.metrics import checked_direction
from swinv2_train.config.override_text import in_grammar, quoted, search_path
from swinv2_train.config.overrides import in_order, key_of, refuse_repeated
from swinv2_train.config.schema import Config
from swinv2_train.errors import RunError
from swinv2_train.import_path import exported_import_path
from swinv2_train.redact import redact
from swinv2_train.writing import write_bytes

OWN_KEYS = {
    "run.dir": "the sweep sets this for each job; sweep.dir=DIR moves all jobs",
    "run.name": "the sweep sets this for each job; sweep.name=NAME names the sweep",
    "resume": "a sweep resumes every job that has begun; set another sweep.dir to start over",
    "replay": "applies to a single run; omit -m",
    "images": "applies to a single run; pack the folder with swinv2-data pack FOLDER shards, and set data.shards",
    "sweep.job": "the sweep sets it",
    "hydra.sweep": "sweep.dir=DIR sets the directory of the jobs",
    "hydra.run": "sweep.dir=DIR sets the directory of the jobs",
    "hydra.output_subdir": "each job's directory already records its config",
    "hydra.job.chdir": "jobs run where the command runs",
    "hydra.mode": "-m says it",
    "hydra.searchpath": "use --config-dir DIR",
}
"""Keys that the sweep sets itself, so they cannot be overridden, with the reason."""
FREE_KEYS = ("resume.allow",)
"""Keys below those of `OWN_KEYS` that may be overridden, for all jobs. `compose` applies them, not Hydra."""


@dataclass(frozen=True)
class Multirun:
    """A command line that starts several jobs."""

    config: Config
    """Config of the first job, or of the first that a search may propose."""
    jobs: tuple[tuple[str, ...], ...]
    """Overrides of every job; empty if a search proposes them."""
    first: tuple[str, ...]
    """Overrides of the first job, or of one that a search may propose."""
    fixed: frozenset[str]
    """Keys with the same value in every job."""
    arguments: tuple[str, ...]
    """Overrides for Hydra's multirun."""
    free: tuple[str, ...]
    """Overrides of `FREE_KEYS`, which every job has in addition."""
    sweep_file: str | None
    search: bool
    """True if a sweeper proposes values based on earlier jobs."""
    direction: str
    """minimize or maximize: the better direction of the sweep's metric."""
    sets_direction: bool
    """True if the direction must be passed to the search."""
    trials: int | None
    """Number of jobs that the search proposes."""
    submitit: bool
    """True if the jobs run in processes that submitit starts."""
    minutes: int | None
    """Time limit of a job under submitit."""


def plan_multirun(overrides: Sequence[str], config_dir: Path | None = None) -> Multirun:
    """Return the jobs of a command line.

    Raises:
        ConfigError: for the first error in what the jobs share.
    """
    _refuse_own(overrides)
    refuse_repeated(overrides, lists="-m KEY=A,B sweeps over several values")
    overrides = in_grammar(overrides, config_dir, several=True)
    of_hydra = [item for item in overrides if key_of(item).startswith(("hydra.", "hydra/"))]
    free = tuple(item for item in overrides if key_of(item) in FREE_KEYS)
    items = in_order([item for item in overrides if item not in (*of_hydra, *free)])
    try:
        config = compose([*_first_values(items), *of_hydra, *free], config_dir)
        if config.sweep.experiment and "experiment" not in map(key_of, items):
            items = [f"+experiment={config.sweep.experiment}", *items]
        node = _hydra_section([*_first_values(items), *of_hydra], config_dir)
    except ConfigError as error:
        if error.key.startswith("hydra/"):
            hint = "is not there; the searches and Slurm come with: pip install 'swinv2-train[sweep]'"
            raise ConfigError(error.key, error.value, hint) from error
        raise
    sweeper, launcher = node["sweeper"], node["launcher"]
    search = not str(sweeper.get("_target_")).endswith(".BasicSweeper")
    given = set(map(key_of, items))
    of_file = (f"{key}={value}" for key, value in (sweeper.get("params") or {}).items())
    swept_by_file = in_grammar([item for item in of_file if key_of(item) not in given], config_dir, several=True)
    parsed = {each.get_key_element(): each for each in _parse([*swept_by_file, *items])}
    fixed = frozenset(key_of(key) for key, each in parsed.items() if not each.is_sweep_override())
    fixed |= frozenset(map(key_of, free))
    choices = [_choices(key, each, search=search) for key, each in parsed.items()]
    first = (*in_order([each[0] for each in choices]), *free)
    submitit = "submitit" in str(launcher.get("_target_"))
    sweep_file = next((item.partition("=")[2] for item in items if key_of(item) == "sweep"), None)
    config = compose(first, config_dir)
    direction = checked_direction(config.sweep.metric, config.sweep.direction)
    _check_sweeper(sweeper, direction, explicit="hydra.sweeper.direction" in map(key_of, of_hydra))
    return Multirun(
        config=config,
        jobs=() if search else tuple((*in_order(each), *free) for each in itertools.product(*choices)),
        first=first,
        fixed=fixed,
        arguments=(*items, *of_hydra),
        free=free,
        sweep_file=sweep_file,
        search=search,
        direction=direction,
        sets_direction=search and "direction" in sweeper,
        trials=sweeper.get("n_trials") if search else None,
        submitit=submitit,
        minutes=launcher.get("timeout_min") if submitit else None,
    )


def run_multirun(
    multirun: Multirun, name: str, directory: Path, config_dir: Path | None, run_job: Callable[[list[str]], Any]
) -> None:
    """Have Hydra call `run_job` with the overrides of every job, here or wherever its launcher runs it.

    Args:
        run_job: returns the job's value, or None; must be picklable. A `SystemExit` from it ends the sweep.

    Raises:
        ConfigError: if Hydra rejects the command line.
        RunError: if submitit cannot start the jobs, or loses one.
    """
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    free = multirun.free

    def task(_: object) -> Any:
        return run_job([*HydraConfig.get().overrides.task, *free])

    options = [
        f"hydra.sweep.dir={quoted(directory)}", "hydra.sweep.subdir=.", "hydra.output_subdir=null",
        "hydra.job.chdir=false", f"hydra.job.name={quoted(name)}", "hydra/job_logging=none",
        "hydra/hydra_logging=none", *search_path(config_dir),
    ]  # fmt: skip
    if multirun.search and "hydra.sweeper.study_name" not in map(key_of, multirun.arguments):
        options.append(f"hydra.sweeper.study_name={quoted(name)}")
    if multirun.sets_direction:
        options.append(f"hydra.sweeper.direction={multirun.direction}")
    given = set(map(key_of, multirun.arguments))
    options = [item for item in options if key_of(item) not in given]
    door = hydra.main(config_path=str(conf_dir()), config_name="config", version_base="1.3")(task)
    command_line = _command_line([*options, *multirun.arguments])
    try:
        with (
            command_line,
            _quiet_search(multirun),
            _without_secrets(),
            exported_import_path(),
        ):  # `exported_import_path`: submitit starts the jobs itself
            door()
    except (HydraException, OmegaConfBaseException) as error:
        raise explain(error, multirun.arguments) from error
    except Exception as error:
        if multirun.submitit:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise RunError(f"submitit: {lines[-1].strip()}; the jobs' own logs are in {directory}/.submitit") from error
        if "No trials are completed" not in str(error):  # Optuna's error if every job failed
            raise


@contextmanager
def _command_line(arguments: list[str]) -> Iterator[None]:
    """Set `sys.argv`, which Hydra's entry point reads, and the variable that makes it raise errors, not exit."""
    argv, full = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    sys.argv = [argv[0], "--multirun", *arguments]
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    finally:
        sys.argv = argv
        if full is None:
            os.environ.pop("HYDRA_FULL_ERROR", None)
        else:
            os.environ["HYDRA_FULL_ERROR"] = full


@contextmanager
def _without_secrets() -> Iterator[None]:
    """Remove credentials from `multirun.yaml`, in which Hydra stores the URLs of the command line."""
    from omegaconf import OmegaConf

    def save(config: Any, f: Any, resolve: bool = False) -> None:
        write_bytes(Path(f), redact(OmegaConf.to_yaml(config, resolve=resolve)).encode())

    before = OmegaConf.save
    OmegaConf.save = save
    try:
        yield
    finally:
        OmegaConf.save = before


@contextmanager
def _quiet_search(multirun: Multirun) -> Iterator[None]:
    """Silence what Optuna and its plugin print for every trial, because the sweep reports trials itself."""
    if not multirun.search:
        yield
        return
    with contextlib.suppress(ImportError):  # the search is not Optuna's
        import optuna  # noqa: F401  # sets the level of its logger when it is imported
    levels = {"optuna": logging.ERROR, "hydra_plugins.hydra_optuna_sweeper": logging.CRITICAL}
    before = {name: logging.getLogger(name).level for name in levels}
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)
    try:
        yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)


def _refuse_own(overrides: Sequence[str]) -> None:
    for item in overrides:
        key, value = key_of(item), item.partition("=")[2]
        hint = next((why for own, why in OWN_KEYS.items() if key == own or key.startswith(f"{own}.")), None)
        if hint and key not in FREE_KEYS:
            raise ConfigError(key, value, hint)


def _parse(items: Sequence[str]) -> list[Any]:
    """Return Hydra's parsed overrides, which can expand a glob over the names of a group."""
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.override_parser.overrides_parser import OverridesParser

    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return OverridesParser.create(GlobalHydra.instance().config_loader()).parse_overrides(list(items))


def _first_values(items: Sequence[str]) -> list[str]:
    """Return the overrides of a single run: those of a sweep with their first value."""
    return [_choices(each.get_key_element(), each, search=True)[0] for each in _parse(items)]


def _choices(key: str, override: Any, *, search: bool) -> list[str]:
    """Return one override per value of a sweep; for an interval, its lower end."""
    if not override.is_sweep_override():
        # A deletion without a value must remain one.
        return [override.input_line if override.is_delete() else f"{key}={override.get_value_element_as_str()}"]
    value = (override.input_line or "").partition("=")[2]
    if override.is_discrete_sweep():
        values = [f"{key}={value}" for value in override.sweep_string_iterator()]
        if values:
            return values
        raise ConfigError(key_of(key), value, "contains no value")
    if search:
        return [f"{key}={override.value().start}"]
    hint = "an interval is for a search, such as hydra/sweeper=optuna (see conf/sweep/optuna.yaml)"
    raise ConfigError(key_of(key), value, hint)


def _hydra_section(overrides: Sequence[str], config_dir: Path | None) -> dict[str, Any]:
    """Return Hydra's own section, with sweeper and launcher, as plain data."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            items = [*overrides, *search_path(config_dir)]
            composed = hydra_compose("config", overrides=items, return_hydra_config=True)
            direction = OmegaConf.select(composed, "hydra.sweeper.direction")
            found = {
                key: OmegaConf.to_container(OmegaConf.select(composed, f"hydra.{key}"), resolve=False)
                for key in ("sweeper", "launcher")
            }
    except (HydraException, OmegaConfBaseException) as error:
        raise explain(error, overrides) from error
    if direction is not None:
        found["sweeper"]["direction"] = getattr(direction, "name", direction)
    return found


def _check_sweeper(sweeper: dict[str, Any], direction: str, *, explicit: bool) -> None:
    """Reject a search in the opposite direction. The sweep sets an unset one, whose default is minimize."""
    found = sweeper.get("direction")
    if found not in (None, direction) and (explicit or found != "minimize"):
        hint = f"the metric of the sweep is to {direction}; omit hydra.sweeper.direction"
        raise ConfigError("hydra.sweeper.direction", found, hint)
