"""Configs, training runs, and evaluations from Python. Torch-free until a run begins."""

from __future__ import annotations

import copy
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

from swinv2_train.api.checks import at_least, check_device, check_main_thread, check_names
from swinv2_train.config.checks import one_of
from swinv2_train.config.schema import Config
from swinv2_train.errors import RunError
from swinv2_train.exit_codes import FINISHED, STOPPED

if TYPE_CHECKING:  # imports torch
    from swinv2_train.analysis.evaluate import Evaluated

_COLLECTIVE_MINUTES = 24 * 60.0


def compose(*overrides: str, config_dir: str | Path | None = None) -> Config:
    """Return the config that `swinv2-train` would run for the same arguments, checked. It may be changed until `train`.

    Args:
        overrides: such as `+experiment=simmim_demo` and `optim.lr=1e-3`; see conf/README.md.
        config_dir: a directory of your own configs.

    Raises:
        ConfigError: if they cannot be run.
    """
    from swinv2_train.cli.train import load

    place = Path(config_dir) if config_dir is not None else None
    return load(Namespace(overrides=list(overrides), config_dir=place, resolved=None, cfg=None, info=False))


def train(config: Config) -> Path:
    """Train as `swinv2-train` does, or resume the run in `config.run.dir`; return this directory.

    With one rank, the run is in this process; more ranks are started as processes. Ctrl-C stops after the current step,
    with a checkpoint. With `launch.dry_run`, print what would happen, and do nothing else.

    Args:
        config: see `compose`; it is not changed.

    Raises:
        ConfigError, DataError, CheckpointError: if the run cannot start.
        RunError: if it did not finish; its `exit_code` is that of the command, 75 after a stop with a checkpoint.
    """
    from swinv2_train.cli.dry_run import show
    from swinv2_train.cli.train import run
    from swinv2_train.config.validate import validate

    check_main_thread()
    own = copy.deepcopy(config)  # a run completes and freezes its config
    validate(own)
    if own.launch.dry_run:
        show(own, [], print_config=False)
        return Path(own.run.dir)
    code = run(own, None, launched=False)
    if code == STOPPED:
        raise RunError(f"the run in {own.run.dir} was stopped after saving; train the same config to resume it", code)
    if code != FINISHED:
        raise RunError(f"the run in {own.run.dir} failed with exit code {code}; its log.txt has the cause", code)
    return Path(own.run.dir)


class EvaluateOptions(TypedDict, total=False):
    """Options of `evaluate`, as for `swinv2-eval`."""

    which: str
    ema: bool
    batch: int
    precision: str
    max_samples: int | None
    workers: int
    label_map: str | None
    real_labels: Path | None
    cache_dir: str
    cache_gib: float


def evaluate(
    checkpoint: str | Path,
    data: str | list[str],
    *overrides: str,
    device: str = "auto",
    **options: Unpack[EvaluateOptions],
) -> Evaluated:
    """Evaluate weights on shards as `swinv2-eval` does, in this process; the result has `metrics` and `samples`.

    Args:
        checkpoint: as for `load`.
        data: shards, see `open_shards`; labeled ones for a classifier.
        overrides: changes to the model, such as `model.window=24`.
        device: auto, cuda, or cpu.

    Raises:
        ConfigError: if the options contradict the model or the data.
        DataError, CheckpointError: if data or weights cannot be read.
        RunError: if no sample counts, or the outputs are not finite.
    """
    from swinv2_train.analysis.evaluate import EvalOptions
    from swinv2_train.analysis.evaluate import evaluate as evaluate_on
    from swinv2_train.launch.local_ranks import choose_ranks
    from swinv2_train.launch.ranks import joined_ranks

    chosen: dict[str, Any] = dict(options)
    check_names(chosen, EvaluateOptions.__annotations__)
    check_device(device)
    one_of("precision", chosen.get("precision", "fp32"), ("fp32", "bf16", "fp16"))
    one_of("which", chosen.get("which", "newest"), ("newest", "best"))
    for name, lowest in (("batch", 1), ("workers", 0), ("max_samples", 1)):
        if chosen.get(name) is not None or (name in chosen and name != "max_samples"):
            at_least(name, chosen[name], lowest)
    request = EvalOptions(str(checkpoint), data, overrides=overrides, **chosen)
    with joined_ranks(choose_ranks(device, 1)[0], _COLLECTIVE_MINUTES) as ranks:
        return evaluate_on(request, ranks)
