"""Display of a pipeline: the chain with its metrics, and the results compared with those without pretraining."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

from swinv2_train.checkpoint.layout import is_misnamed, list_checkpoints, step_of
from swinv2_train.launch.status import read_status
from swinv2_train.pipeline.state import Record, State, last_sign, now
from swinv2_train.reading import UnreadableError, finite_number, is_count, parse_json


@dataclass(frozen=True)
class StageView:
    """State of a stage, from its run directory and its record."""

    name: str
    title: str
    state: str
    """to do, starting, running, stopped, failed, or finished, as in status.json."""
    step: int | None
    total_steps: int | None
    metric: str
    last: float | None
    """Metric at its last evaluation."""
    best: float | None
    weights: str | None
    """Checkpoint that it started from."""
    seconds: float
    silent_seconds: float | None
    """Seconds since it last wrote something, while it is not finished."""
    run_dir: str
    baseline_of: str | None = None


def is_finished(run_dir: Path) -> bool:
    """Return whether the run in a directory finished."""
    return read_status(run_dir).get("status") == "finished"


def is_begun(run_dir: Path) -> bool:
    """Return whether a run has left files in a directory."""
    return bool(read_status(run_dir)) or bool(list_checkpoints(run_dir / "checkpoints"))


def view(name: str, record: Record, run_dir: Path) -> StageView:
    """Return the state of a stage."""
    status = read_status(run_dir)
    state = str(status.get("status", "to do"))
    logged, values = progress(run_dir, record.metric)
    best = (max if record.metric_mode == "max" else min)(values, default=None)
    steps = (step_of(path) for path in list_checkpoints(run_dir / "checkpoints") if not is_misnamed(path))
    saved = [number for number in islice(steps, 1) if number]
    sign = last_sign(run_dir)
    silent = now() - sign if sign and state not in ("finished", "to do") else None
    running = record.working_since is not None and state != "finished"
    return StageView(
        name=name,
        title=record.title,
        state=state,
        step=max(status.get("step", 0), logged, *saved) if status or saved else None,
        total_steps=record.total_steps,
        metric=record.metric,
        last=values[-1] if values else None,
        best=best,
        weights=record.weights,
        seconds=record.seconds + (max(0.0, (sign or 0) - (record.working_since or 0)) if running else 0.0),
        silent_seconds=silent,
        run_dir=str(run_dir),
        baseline_of=record.baseline_of,
    )


def progress(run_dir: Path, metric: str) -> tuple[int, list[float]]:
    """Read `metrics.jsonl`: (last step, finite values of a metric in order). A truncated line is skipped."""
    step, values = 0, []
    try:
        lines = (run_dir / "metrics.jsonl").read_bytes().decode(errors="replace").splitlines()
    except OSError:
        return 0, []
    for line in lines:
        if f'"{metric}"' not in line and line is not lines[-1]:
            continue
        try:
            record = parse_json(line)
        except UnreadableError:
            continue
        if not isinstance(record, dict) or not is_count(record.get("step")):
            continue
        step = max(step, record["step"])
        value = finite_number(record.get(metric))
        if value is not None:
            values.append(value)
    return step, values


def views(directory: Path, state: State) -> list[StageView]:
    """Return all stages of a pipeline's directory, in order."""
    return [view(name, record, directory / name) for name, record in state.stages.items()]


def chain_text(stages: Sequence[StageView]) -> str:
    """Return the chain as a table: stage, state, step, metric, weights, time."""
    rows = [["stage", "state", "step", "metric", "last", "best", "started from", "time"]]
    for stage in stages:
        step = "" if stage.step is None else str(stage.step)
        rows.append(
            [
                f"{stage.name} ({stage.title})" if stage.title else stage.name,
                stage.state + (f", last sign {time_text(stage.silent_seconds)} ago" if stage.silent_seconds else ""),
                f"{step} of {stage.total_steps}" if step and stage.total_steps else step,
                stage.metric,
                number(stage.last),
                number(stage.best),
                _weights_text(stage.weights),
                time_text(stage.seconds) if stage.seconds else "",
            ]
        )
    return _table(rows)


def comparison_text(stages: Sequence[StageView]) -> str:
    """Return the stages that have a baseline, each next to it; empty if none has."""
    known = {stage.name: stage for stage in stages}
    rows = [["", "metric", "with pretraining", "without", "difference"]]
    for baseline in stages:
        stage = known.get(baseline.baseline_of or "")
        if stage is None or stage.last is None or baseline.last is None:
            continue
        rows.append(
            [stage.name, stage.metric, number(stage.last), number(baseline.last), f"{stage.last - baseline.last:+.4g}"]
        )
    return _table(rows) if len(rows) > 1 else ""


def as_json(pipeline: str, stages: Sequence[StageView]) -> str:
    """Return the chain for scripts."""
    return json.dumps({"pipeline": pipeline, "stages": [asdict(stage) for stage in stages]}, indent=1)


def number(value: float | None) -> str:
    """Return a metric for a table."""
    return "" if value is None else f"{value:.4f}" if abs(value) < 10 else f"{value:.2f}"


def time_text(seconds: float) -> str:
    """Return a time for display."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 6000:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 360_000 else f"{seconds / 86400:.1f} days"


def _weights_text(weights: str | None) -> str:
    if weights is None:
        return ""
    path = Path(weights)
    return f"{path.parent.parent.name}, {path.name}" if step_of(path) is not None else str(path)


def _table(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
