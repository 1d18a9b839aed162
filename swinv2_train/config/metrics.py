"""Names of a run's metrics, and which direction is better for each.

The direction belongs to a metric, not to a recipe. It is defined once, here; `checkpoint.best_mode` and
`sweep.direction` are derived from it. A contradicting setting is rejected.
"""

from __future__ import annotations

from swinv2_train.config.checks import one_of
from swinv2_train.config.errors import ConfigError
from swinv2_train.config.schema import CheckpointConfig, Config
from swinv2_train.config.tasks import TASK_SECTIONS

EVALUATED = "eval/"
"""Prefix of evaluation metrics."""
AVERAGED = "eval/ema_"
"""Prefix of evaluation metrics of the averaged weights (EMA)."""
PROBED = "eval/probe/"
"""Prefix of probe metrics."""
_PROBE_KINDS = {"knn": "max", "linear": "max"}
_STEP = {
    "loss": "min", "grad_norm": None, "lr": None, "samples_seen": None, "images_per_second": "max",
    "mfu": "max", "data_wait_share": "min", "skipped_steps": "min", "broken_samples": "min", "memory_gib": "min",
    "seconds_left": None,
}  # fmt: skip
"""Metrics that every optimizer step records, each with its better direction or None."""
TERM = "loss/"
"""Prefix of the terms of a loss with several terms."""
_SIGNAL = {"eval/signal/largest": None, "eval/signal/discrepancy": None}
_MODES = {"min": "min", "max": "max"}
_DIRECTIONS = {"min": "minimize", "max": "maximize"}


def better_end(metric: str) -> str | None:
    """Return the better direction of a metric of metrics.jsonl, `min` or `max`; None if it has none or is unknown.

    Covers the metrics of all tasks, because files of any run are read.
    """
    if metric.startswith(PROBED):
        return _PROBE_KINDS.get(metric.removeprefix(PROBED).removesuffix("_top1"))
    if not metric.startswith(EVALUATED):
        return "min" if metric.startswith(TERM) else _STEP.get(metric)
    name = metric.removeprefix(AVERAGED) if metric.startswith(AVERAGED) else metric.removeprefix(EVALUATED)
    ends = (known[name].better for known in (section.METRICS for section in TASK_SECTIONS.values()) if name in known)
    return next(ends, None)


def evaluated_metrics(config: Config) -> list[str]:
    """Return the metrics by which evaluations of a run can be compared, without those of the probes."""
    names = [*config.task.metrics()]
    averaged = [f"{AVERAGED}{name}" for name in names] if config.optim.ema_decay and config.eval.ema else []
    return [*(f"{EVALUATED}{name}" for name in names), *averaged]


def probed_metrics(config: Config) -> list[str]:
    """Return the metrics that the probes of a run record."""
    probe = config.probe
    return [f"{PROBED}{kind}_top1" for kind in _PROBE_KINDS if probe.shards and getattr(probe, kind)]


def recorded_metrics(config: Config) -> list[str]:
    """Return the names of all numbers that a run writes to metrics.jsonl, evaluation metrics first."""
    names = evaluated_metrics(config) if config.data.eval_shards and config.eval.every_steps else []
    names = [*names, *probed_metrics(config)]
    if config.data.eval_shards and config.eval.signal_every_steps:
        names += _SIGNAL
    terms = config.task.terms()
    return [*names, *_STEP, *(f"{TERM}{name}" for name in terms if len(terms) > 1)]


def best_mode(settings: CheckpointConfig) -> str:
    """Return the better direction of `checkpoint.best_metric`: `min` or `max`.

    A known metric decides, even against an older config: earlier versions did not check `best_mode` against the metric.
    """
    return better_end(settings.best_metric) or settings.best_mode or "min"


def checked_mode(metric: str, mode: str | None, option: str = "checkpoint.best_mode") -> str:
    """Return the better direction of a metric, `min` or `max`, derived from the metric or else as configured.

    Args:
        mode: the configured direction; None to derive it.
        option: the key or option that sets it.

    Raises:
        ConfigError: if it contradicts the metric, or if neither is known.
    """
    return _checked(metric, mode, option, _MODES)


def checked_direction(metric: str, direction: str | None, option: str = "sweep.direction") -> str:
    """Return the direction of a sweep, `minimize` or `maximize`; arguments and errors as for `checked_mode`."""
    return _checked(metric, direction, option, _DIRECTIONS)


def _checked(metric: str, given: str | None, option: str, words: dict[str, str]) -> str:
    end = better_end(metric)
    if given is not None:
        one_of(option, given, tuple(words.values()))
    if end is None:
        if given is None:
            hint = f"which of its values are better is not known; set {option}={words['min']} or {words['max']}"
            raise ConfigError("", metric, f"{metric}: {hint}")
        return given
    if given not in (None, words[end]):
        which = "lower" if end == "min" else "higher"
        hint = f"{which} values of {metric} are better, so this would choose the worst; omit {option}"
        raise ConfigError(option, given, hint)
    return words[end]


def check_recorded(config: Config, metric: str) -> None:
    """Check that a run records the metric that a sweep compares.

    Raises:
        ConfigError: if not; the message lists the recorded metrics.
    """
    names = recorded_metrics(config)
    if config.launch.dry_run and not config.data.eval_shards:  # a dry run is allowed before any data exists
        names += evaluated_metrics(config)
    if metric in names:
        return
    hint = "the run does not record it"
    if metric.startswith(EVALUATED) and not (config.data.eval_shards and config.eval.every_steps):
        hint += ", because it evaluates nothing: set data.eval_shards and eval.every_steps, or use another metric"
    raise ConfigError("sweep.metric", metric, f"{hint}; the run records {', '.join(names)}")
