"""Messages at the start or resume of a run: changed settings, missed evaluations, and progress."""

from __future__ import annotations

import math
from importlib.metadata import version
from pathlib import Path

from swinv2_train.checkpoint.identity import EARLIER_BACKGROUND
from swinv2_train.config.compose import from_yaml
from swinv2_train.config.errors import ConfigError
from swinv2_train.config.plan import Plan, make_plan
from swinv2_train.config.schema import Config, DataConfig
from swinv2_train.config.section import flat
from swinv2_train.data import jpeg_part
from swinv2_train.data.card import Card
from swinv2_train.data.value_range import numbers_of
from swinv2_train.engine.batch_change import continued
from swinv2_train.engine.evaluation import due
from swinv2_train.engine.incidents import FOLDER, read_incident
from swinv2_train.engine.schedule import learning_rate
from swinv2_train.engine.state import TrainState
from swinv2_train.engine.utilization import utilization_lines
from swinv2_train.launch.ranks import Ranks
from swinv2_train.launch.status import read_status
from swinv2_train.reading import UnreadableError, read_json
from swinv2_train.redact import redacted
from swinv2_train.text import counted
from swinv2_train.tracking.sinks import DEFAULT_PROJECT


def missed_evaluation(directory: Path, config: Config, step: int, *, last: bool) -> set[str]:
    """Return what was due at a step but did not run because of a stop signal (see `due`).

    Args:
        last: True if the run ends at this step.
    """
    try:
        lines = (directory / "metrics.jsonl").read_bytes().decode(errors="replace").splitlines()
    except OSError:
        lines = []
    here = [line for line in lines if f'"step": {step},' in line]

    def recorded(prefix: str) -> bool:
        return any(f'"{prefix}' in line for line in here)

    done = {
        "evaluate": recorded(f"eval/{config.task.metrics()[0]}"),
        "probe": recorded("eval/probe/"),
        "signal": recorded("eval/signal/"),
        "draw": (directory / "figures" / f"{config.task.name}-step-{step:08d}.png").exists(),
    }
    return {name for name in due(config, step, last=last) if not done[name]}


def changed_since(resolved: Path, config: Config, source: Path | None = None) -> list[str]:
    """Return a line for every config value that differs from the last start.

    Args:
        resolved: config of that start.
        source: the run that it belongs to, if this is another one, which goes on from there.
    """
    since = f"those of {source}" if source else "the last start"
    if not resolved.exists():
        return []
    try:
        before = redacted(flat(from_yaml(resolved, only_read=True)))
    except ConfigError as error:
        return [f"cannot determine what changed since {since}: {error}"]
    now = redacted(flat(config))
    own = ("run.", "resume.") if source else ("run.dir",)  # another run has a name, a directory, and an origin
    changed = {key: value for key, value in now.items() if before.get(key) != value and not key.startswith(own)}
    for key in ("data.order", "data.lanes", "data.block_samples", "data.connections"):  # earlier versions stored none
        if before.get(key) is None:
            changed.pop(key, None)
    for key in ("checkpoint.best_mode", "sweep.direction"):  # earlier versions always stored a value
        if now[key] is None:  # it follows from the metric
            changed.pop(key, None)
    if before.get("tracking.wandb_project") == DEFAULT_PROJECT and now["tracking.wandb_project"] is None:
        del changed["tracking.wandb_project"]  # the default of earlier versions, which the run keeps
    lines = []
    if before.get("data.background") is None and changed.get("data.background") == EARLIER_BACKGROUND:
        del changed["data.background"]
        lines.append(
            f"data.background={EARLIER_BACKGROUND}: alpha is ignored, as when an earlier version began this run"
        )
    return [
        *lines,
        *(f"changed since {since}: {key} {before.get(key)} -> {value}" for key, value in changed.items()),
    ]


def rate_change(resolved: Path, config: Config, plan: Plan, state: TrainState) -> list[str]:
    """Return a line if the schedule has changed since the last start so that the learning rate jumps at the next step.

    Args:
        resolved: config of the last start, which still has the schedule of the steps so far.
        state: with at least 1 finished step.
    """
    step = state.step
    try:
        before = from_yaml(resolved, only_read=True)
        old_plan = continued(make_plan(before, plan.world_size, plan.num_samples), before.optim, state)
    except (OSError, ConfigError):  # `changed_since` reports an unreadable config
        return []
    planned = learning_rate(step, before.optim, old_plan)
    last, following = learning_rate(step - 1, before.optim, old_plan), learning_rate(step, config.optim, plan)
    if math.isclose(planned, following, rel_tol=1e-9):
        return []
    return [
        f"the schedule has changed: the learning rate goes from {last:.4g} in step {step} to {following:.4g} in step "
        f"{step + 1}, where the schedule before had {planned:.4g}"
    ]


def finished_lines(config: Config, plan: Plan, step: int, early: str | None) -> list[str]:
    """Return the lines about a run that has already finished, with the ways to continue from it.

    Args:
        step: the last one.
        early: reason of the end before the last step of the plan, as a clause.
    """
    optim, directory = config.optim, config.run.dir
    key, value = ("steps", optim.steps) if optim.steps is not None else ("epochs", optim.epochs)
    length = value if key == "steps" else f"{value:g}"
    rate = learning_rate(step - 1, optim, plan)
    longer = (
        "to train it longer, repeat the command with a larger eval.early_stopping.patience"
        if early
        else f"to train it longer, repeat the command with optim.{key} above {length} (its last learning rate was "
        f"{rate:.3g}; a longer schedule may continue with a higher one)"
    )
    because = f", because {early}" if early else ""
    return [
        f"the run in {directory} is finished: step {step} of {plan.total_steps}{because}; nothing to do",
        longer,
        f"to start a new run from its weights, set init_from={directory} and another run.dir",
    ]


def background_warnings(data: DataConfig, card: Card | None) -> list[str]:
    """Return a line if the dataset card's statistics assume another color behind transparent pixels than the run."""
    used = [key for key in ("mean", "std") if getattr(data, key) == "dataset"]
    if not used or card is None or not card.transparent or card.background == data.background:
        return []
    return [
        f"data.{used[0]}=dataset was counted with transparent images on {card.background}, and data.background is "
        f"{data.background}: pack with --background {data.background}, or set data.background={card.background}"
    ]


def value_warnings(data: DataConfig, card: Card | None) -> list[str]:
    """Return a line for pixels without data that are filled, and one if the dataset card counted others as missing."""
    if data.scale is None or card is None or not card.values:
        return []
    lines = []
    channels = [each for stats in card.values.values() for each in stats.channels]
    missing, total = (sum(getattr(each, name) for each in channels) for name in ("missing", "count"))
    if missing:
        lines.append(
            f"{missing / (missing + total):.2%} of the stored values in data.shards are missing, and are filled with "
            f"data.fill={data.fill}"
        )
    counted, used = (numbers_of(value) for value in (card.nodata, data.nodata))
    if counted != used:
        text = "the values that the files name" if counted is None else ",".join(f"{value:g}" for value in counted)
        lines.append(
            f"the dataset card counted {text} as missing, and data.nodata is {data.nodata}: pack with the same "
            "--nodata, or set data.nodata, because percentiles and statistics depend on it"
        )
    return lines


def damaged_records(directory: Path) -> list[str]:
    """Return a line for every damaged file that only describes the run; the run continues without it."""
    found = []
    for name, kind in (("status.json", dict), ("environment.json", list)):
        try:
            usable = isinstance(read_json(directory / name), kind) and (kind is list or read_status(directory))
            if not usable:
                found.append(f"{name} is damaged (it holds something else); its content is dropped")
        except FileNotFoundError:
            continue
        except UnreadableError as error:
            found.append(f"{name} is damaged ({error}); its content is dropped")
    for path in sorted((directory / FOLDER).glob("step-*.json")):
        try:
            read_incident(path)
        except ConfigError as error:
            found.append(f"{FOLDER}/{path.name} is damaged and cannot be replayed: {error.hint}")
    return found


def start_lines(config: Config, plan: Plan, state: TrainState, ranks: Ranks) -> list[str]:
    """Return the lines at the start of a run: its progress and its settings."""
    ranks_text, samples = counted(plan.world_size, "rank"), counted(plan.num_samples, "sample")
    batch = f"{counted(plan.micro_batch, 'sample')} x {plan.accumulation} accumulation x {ranks_text}"
    rate = f"learning rate {plan.peak_lr:.4g} after {counted(plan.warmup_steps, 'warm-up step')}"
    return [
        f"{config.run.name} in {config.run.dir}: step {state.step} of {plan.total_steps}",
        f"global batch {plan.global_batch} = {batch}; {samples}, {counted(plan.epochs, 'epoch', '.4g')}",
        f"{config.engine.precision} on {ranks.device_name}, ZeRO stage {config.engine.zero_stage}; {rate}",
        *utilization_lines(config, ranks),
        decoder_line(config),
    ]


def decoder_line(config: Config) -> str:
    """Return a line for the log about the decoder of JPEGs or videos in training."""
    if config.data.frames:
        return f"video decoder: PyAV {version('av')}, only the frames that clips need"
    if not config.data.crop_decoding:
        reason = "data.crop_decoding=false"
    elif config.task.repeats > 1:
        reason = f"every image is cropped {config.task.repeats} times (task.repeats)"
    elif config.data.scale is not None:
        reason = "data.scale is for stored values"
    else:
        reason = jpeg_part.prepare()
    scaled = config.data.scaled_decoding and config.data.scale is None
    scale = ", at a fraction of their size if twice the input size remains" if scaled else ""
    if not reason:
        return f"JPEG decoder: libjpeg-turbo, only the parts that crops need{scale}"
    if scale:
        return f"JPEG decoder: torchvision, entire images{scale} (then PIL); parts are not decoded: {reason}"
    return f"JPEG decoder: torchvision, entire images: {reason}"
