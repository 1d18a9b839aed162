"""Rerun of exactly one step: the one that an incident records.

The run trains from the newest checkpoint before the step up to it, exactly as before, and then examines it: the numbers
next to the recorded ones, the loss of every single sample, and where in the model numbers stop being finite. The run
itself is not changed; the findings go to <run>/incidents/, into a folder named after the incident.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from swinv2_train.checkpoint.errors import CheckpointError
from swinv2_train.checkpoint.verify import verify
from swinv2_train.data.batch import Batch, select, to_device
from swinv2_train.engine.batch_change import continued
from swinv2_train.engine.checkpoints import load
from swinv2_train.engine.drawing import same_number
from swinv2_train.engine.feed import StepInput
from swinv2_train.engine.incidents import Incident, base_checkpoints, read_incident
from swinv2_train.engine.init_from import start_from
from swinv2_train.engine.loop import StepOutcome, Trainer
from swinv2_train.engine.schedule import learning_rate
from swinv2_train.engine.state import TrainState
from swinv2_train.engine.step import forward_backward
from swinv2_train.errors import RunError
from swinv2_train.exit_codes import FINISHED, STOPPED
from swinv2_train.launch.status import write_text
from swinv2_train.tasks.task import mean_loss
from swinv2_train.text import counted
from swinv2_train.tracking.figures import with_heading
from swinv2_train.tracking.metrics_file import json_number

WORST_SAMPLES = 8
"""Number of samples with the largest losses that are listed and drawn."""


def restore(trainer: Trainer, incident: Incident, run_dir: Path) -> TrainState:
    """Restore engine and state from the newest checkpoint before the incident. A collective.

    Raises:
        RunError: if all checkpoints are damaged or of another run.
    """
    base, passed_over = None, []
    if trainer.ranks.is_main:
        base, passed_over = _base(trainer, incident, run_dir / "checkpoints")
    base, passed_over = trainer.ranks.broadcast((base, passed_over))
    if base is None and passed_over:
        raise RunError(f"step {incident.step} cannot be replayed: {'; '.join(passed_over)}")
    for line in passed_over:
        trainer.tracker.message(f"skipped {line}")
    if base is None and incident.state.get("changed_step"):
        hint = "no checkpoint from before it with the same global batch is left"
        raise RunError(f"step {incident.step} cannot be replayed: {hint}")
    if base is None:
        trainer.tracker.message(
            f"no checkpoint from before step {incident.step} is left: {counted(incident.step - 1, 'step')} from the "
            "initial weights come first, as the config of the incident would have run them"
        )
        if trainer.config.init_from:
            names = trainer.checkpoints.identity.class_names
            for line in start_from(trainer.config, trainer.engine, trainer.ranks, names):
                trainer.tracker.message(line)
        state = TrainState()
    else:
        found = load(base, trainer.engine, trainer.ranks)
        trainer.tracker.message(found.lines[-1])
        state = found.state
    # The checkpoint may predate or follow a rollback; use the avoided batches that the incident recorded.
    state.avoided_batches = list(incident.state["avoided_batches"])
    return state


def _base(trainer: Trainer, incident: Incident, checkpoints: Path) -> tuple[Path | None, list[str]]:
    """Return the newest usable checkpoint, and a line for each skipped one. Only the main rank calls it."""
    passed_over = []
    # Compare only what determines the samples: model and task may be varied to investigate a step.
    own = trainer.checkpoints.identity
    own = replace(own, metadata={"order": own.metadata["order"]})
    for path in base_checkpoints(incident, checkpoints):
        try:
            reason = own.foreign(verify(path))
        except CheckpointError as error:
            reason = str(error)
        if reason is None:
            return path, passed_over
        passed_over.append(f"{path.name}: {reason}")
    return None, passed_over


def replay(trainer: Trainer) -> int:
    """Replay the incident of a trainer's config and return the exit code. A collective.

    Raises:
        RunError: if no checkpoint leads to the step.
    """
    path = Path(trainer.config.replay or "")
    incident = read_incident(path)
    trainer.state = restore(trainer, incident, path.parents[1])
    trainer.plan = continued(trainer.plan, trainer.config.optim, trainer.state)
    trainer.feed = trainer.open_feed()
    try:
        while trainer.state.step < incident.step - 1:
            trainer.phase.training(trainer.state.step, "running up to the step")
            if trainer.train_step(trainer.take()) is not StepOutcome.STEP:
                return STOPPED
        current = trainer.take()
        if current.stops:
            return STOPPED
    finally:
        trainer.feed.close()
    with trainer.phase("examining the step", "evaluation", incident.step):
        report = examine(trainer, incident, current)
    if trainer.ranks.is_main:
        target = Path(trainer.config.run.dir) / "replay.json"
        write_text(target, json.dumps(report, indent=1))
        for line in [*summary(report), f"the complete report is in {target}"]:
            trainer.tracker.message(line)
    return FINISHED


def examine(trainer: Trainer, incident: Incident, current: StepInput) -> dict[str, Any]:
    """Run the step itself, without its update, and examine its samples one by one."""
    batches = current.batches
    sums = forward_backward(trainer.engine, trainer.task, batches, current.global_weights, trainer.ranks)
    rate = learning_rate(trainer.state.step, trainer.config.optim, trainer.plan)
    trainer.engine.step(rate, lambda norm: False, loss=sums.loss)
    loss, norm = trainer.engine.loss, trainer.engine.grad_norm
    here = sample_losses(trainer, batches)
    everywhere = [entry for entries in trainer.ranks.gather(here) for entry in entries]
    worst = sorted(everywhere, key=lambda entry: -math.inf if math.isnan(entry[1]) else -entry[1])[:WORST_SAMPLES]
    names = {entry["position"]: entry["sample"] for entry in incident.samples}
    draw_worst(trainer, batches, [position for position, _, _ in worst])
    same_split = (incident.world_size, incident.micro_batch) == (trainer.plan.world_size, trainer.plan.micro_batch)
    return {
        "step": incident.step,
        "reason": incident.reason,
        "loss": {"recorded": incident.loss, "replayed": json_number(loss)},
        "grad_norm": {"recorded": incident.grad_norm, "replayed": json_number(norm)},
        "same_to_the_bit": same_split and _same(incident.loss, loss) and _same(incident.grad_norm, norm),
        "ranks": trainer.plan.world_size,
        "worst_samples": [
            {
                "position": position,
                "sample": names.get(position, "?"),
                "loss": json_number(value),
                "not_finite_in": where,
            }
            for position, value, where in worst
        ],
        "sample_losses": {str(position): json_number(value) for position, value, _ in sorted(everywhere)},
    }


def _same(recorded: float | None, replayed: float) -> bool:
    return recorded == replayed or (recorded is None and not math.isfinite(replayed))


@torch.no_grad()
def sample_losses(trainer: Trainer, batches: list[Batch]) -> list[tuple[int, float, str | None]]:
    """Return (position, mean loss, first module whose output is not finite) for each of this rank's samples."""
    found = []
    for batch in batches:
        for index, position in enumerate(batch["position"].tolist()):
            one = to_device(select(batch, [index]), trainer.ranks.device)
            with first_not_finite(trainer.engine.module) as where:
                terms = trainer.task.loss(trainer.engine.model, one).terms
                loss = mean_loss(terms, trainer.task.weights(one), trainer.config.task.terms())
            found.append((position, loss, where.module))
    return found


@dataclass
class Where:
    """First place in a forward pass with a non-finite number."""

    module: str | None = None


@contextmanager
def first_not_finite(model: nn.Module) -> Iterator[Where]:
    """Watch the forward passes inside this block for non-finite outputs."""
    where = Where()

    def watch(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if where.module is None and isinstance(output, torch.Tensor) and not bool(output.isfinite().all()):
                where.module = name

        return hook

    leaves = [(name, module) for name, module in model.named_modules() if not list(module.children())]
    handles = [module.register_forward_hook(watch(name)) for name, module in leaves]
    try:
        yield where
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def draw_worst(trainer: Trainer, batches: list[Batch], positions: list[int]) -> None:
    """Draw the worst of the main rank's own samples with the task's figure. A collective."""
    for batch in batches:
        own = [index for index, position in enumerate(batch["position"].tolist()) if position in positions]
        # Every rank must run this, because under ZeRO-3 a forward pass is a collective.
        chosen = same_number(own, len(batch["position"]), trainer.ranks)
        shown = to_device(select(batch, chosen), trainer.ranks.device)
        figure = trainer.task.figure(trainer.engine.model, shown)
        if own:
            step, name = trainer.state.step + 1, f"worst-samples-{int(shown['position'][0])}"
            trainer.tracker.log_figure(step, name, with_heading(figure, f"step {step:,}, rejected"))


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.8g}"


def summary(report: dict[str, Any]) -> list[str]:
    """Return the lines of a report for display."""
    lines = [f"step {report['step']} was rejected because {report['reason']}"]
    for name in ("loss", "grad_norm"):
        recorded, replayed = (_number(report[name][when]) for when in ("recorded", "replayed"))
        lines.append(f"{name}: recorded {recorded}, replayed {replayed}")
    lines.append(
        f"bitwise identical: {'yes' if report['same_to_the_bit'] else 'no'} ({counted(report['ranks'], 'rank')})"
    )
    for entry in report["worst_samples"]:
        where = f"; first not finite in {entry['not_finite_in']}" if entry["not_finite_in"] else ""
        lines.append(f"sample {entry['sample']} (position {entry['position']}): loss {_number(entry['loss'])}{where}")
    return lines
