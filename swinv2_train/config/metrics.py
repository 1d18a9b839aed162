"""Names of the metrics of a run, and the end of each that is the better one.

A direction belongs to a metric, not to a recipe: it is defined here once, and `checkpoint.best_mode` and
`sweep.direction` are derived from it. A setting that contradicts it is refused.
"""

from __future__ import annotations

from swinv2_train.config.checks import one_of
from swinv2_train.config.errors import ConfigError
from swinv2_train.config.schema import CheckpointConfig, Config
from swinv2_train.config.tasks import TASK_SECTIONS

EVALUATED = "eval/"
"""Beginning of the names of what an evaluation measures."""
AVERAGED = "eval/ema_"
"""Beginning of the names of what an evaluation measures with the moving average of the weights."""
PROBED = "eval/probe/"
"""Beginning of the names of what the probes measure."""
_PROBE_KINDS = {"knn": "max", "linear": "max"}
_STEP = {
    "loss": "min", "grad_norm": None, "lr": None, "samples_seen": None, "images_per_second": "max",
    "mfu": "max", "data_wait_share": "min", "skipped_steps": "min", "broken_samples": "min", "memory_gib": "min",
    "seconds_left": None,
}  # fmt: skip
"""What every optimizer step records, and its better end, if it has one."""
TERM = "loss/"
"""Beginning of the names of the terms of a loss that has several."""
_SIGNAL = {"eval/signal/largest": None, "eval/signal/discrepancy": None}
_MODES = {"min": "min", "max": "max"}
_DIRECTIONS = {"min": "minimize", "max": "maximize"}


def better_end(metric: str) -> str | None:
    """Return `min` or `max`, the better end of a metric as metrics.jsonl names it; None if it is not known to have one.

    The names of all tasks are known, because files of any run are read.
    """
    if metric.startswith(PROBED):
        return _PROBE_KINDS.get(metric.removeprefix(PROBED).removesuffix("_top1"))
    if not metric.startswith(EVALUATED):
        return "min" if metric.startswith(TERM) else _STEP.get(metric)
    name = metric.removeprefix(AVERAGED) if metric.startswith(AVERAGED) else metric.removeprefix(EVALUATED)
    ends = (known[name].better for known in (section.METRICS for section in TASK_SECTIONS.values()) if name in known)
    return next(ends, None)


def evaluated_metrics(config: Config) -> list[str]:
    """Return what one evaluation of a run measures and can be compared by, without the probes."""
    names = [*config.task.metrics()]
    averaged = [f"{AVERAGED}{name}" for name in names] if config.optim.ema_decay and config.eval.ema else []
    return [*(f"{EVALUATED}{name}" for name in names), *averaged]


def probed_metrics(config: Config) -> list[str]:
    """Return what the probes of a run measure."""
    probe = config.probe
    return [f"{PROBED}{kind}_top1" for kind in _PROBE_KINDS if probe.shards and getattr(probe, kind)]


def recorded_metrics(config: Config) -> list[str]:
    """Return the names of all numbers that a run will write into metrics.jsonl, those of evaluations first."""
    names = evaluated_metrics(config) if config.data.eval_shards and config.eval.every_steps else []
    names = [*names, *probed_metrics(config)]
    if config.data.eval_shards and config.eval.signal_every_steps:
        names += _SIGNAL
    terms = config.task.terms()
    return [*names, *_STEP, *(f"{TERM}{name}" for name in terms if len(terms) > 1)]


def best_mode(settings: CheckpointConfig) -> str:
    """Return which end of `checkpoint.best_metric` is the best: `min` or `max`.

    The metric decides if its direction is known, whatever an older config says: `best_mode` was free to contradict it.
    """
    return better_end(settings.best_metric) or settings.best_mode or "min"


def checked_mode(metric: str, mode: str | None, option: str = "checkpoint.best_mode") -> str:
    """Return which end of a metric is the best, `min` or `max`, from the metric or from what was given.

    Args:
        mode: what was given; None to derive it.
        option: the key or option that it was given as.

    Raises:
        ConfigError: if it contradicts the metric, or neither is known.
    """
    return _checked(metric, mode, option, _MODES)


def checked_direction(metric: str, direction: str | None, option: str = "sweep.direction") -> str:
    """Return the direction of a sweep, `minimize` or `maximize`; arguments and errors as of `checked_mode`."""
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
    """Check that a run will record the metric that a sweep compares.

    Raises:
        ConfigError: if it will not, with what it records.
    """
    names = recorded_metrics(config)
    if config.launch.dry_run and not config.data.eval_shards:  # a recipe may be looked at before there is data
        names += evaluated_metrics(config)
    if metric in names:
        return
    hint = "the run does not record it"
    if metric.startswith(EVALUATED) and not (config.data.eval_shards and config.eval.every_steps):
        hint += ", because it evaluates nothing: set data.eval_shards and eval.every_steps, or use another metric"
    raise ConfigError("sweep.metric", metric, f"{hint}; there are {', '.join(names)}")
