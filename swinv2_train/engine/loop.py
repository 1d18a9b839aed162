"""The training loop, top to bottom.

One step: fetch the micro-batches, forward and backward of each, update, remember the numbers. After a step every
collaborator is asked whether it is its turn: log, evaluate, draw, save, stop. Numbers stay on the device until a log
step; nothing else waits for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from swinv2_train.checkpoint.errors import CheckpointError
from swinv2_train.config.plan import Plan
from swinv2_train.config.schema import Config
from swinv2_train.engine.deepspeed import Engine
from swinv2_train.engine.ranks import Ranks
from swinv2_train.engine.schedule import learning_rate
from swinv2_train.engine.signals import StopRequest
from swinv2_train.engine.state import TrainState
from swinv2_train.errors import RunError
from swinv2_train.exit_codes import FINISHED, STOPPED
from swinv2_train.tasks.task import NORMALISER_EPSILON, Batch, Task
from swinv2_train.tracking.clock import StepClock
from swinv2_train.tracking.memory import memory_gib
from swinv2_train.tracking.tracker import Tracker


@dataclass
class StepRecord:
    """The numbers of one step; the loss is this rank's share and still on the device."""

    step: int
    loss: torch.Tensor
    grad_norm: Callable[[], float]
    learning_rate: float
    applied: bool
    skipped_steps: int
    extras: dict[str, torch.Tensor] = field(default_factory=dict)


@dataclass
class Trainer:
    """Everything a run consists of, and the loop over it. All ranks run it in step."""

    config: Config
    plan: Plan
    ranks: Ranks
    engine: Engine
    task: Task
    state: TrainState
    batches: Iterator[Batch]
    """Training micro-batches on the host, from the sample position that `state` is at."""
    held_out: Callable[[int | None, int], Any] | None
    """Opens this rank's share of the first n held-out samples (None: all) in batches of a size; None without any."""
    save: Callable[[], None]
    """Writes a checkpoint of the present state."""
    tracker: Tracker
    clock: StepClock
    stop: StopRequest
    missed: set[str] = field(default_factory=set)
    """`evaluate`, `draw`: what was due at the present step when a signal stopped the run there."""
    records: list[StepRecord] = field(default_factory=list)

    def run(self) -> int:
        """Train to the end, or until a stop signal reached any rank. Returns the exit code."""
        if self.state.step == 0 and self.config.eval.at_start:
            self.evaluate()
        self.evaluate_and_draw(evaluate="evaluate" in self.missed, draw="draw" in self.missed)
        while self.state.step < self.plan.total_steps:
            with self.clock.waiting():
                batches = [next(self.batches) for _ in range(self.plan.accumulation)]
            if not self.train_step(batches):
                return self.stop_here()
            last = self.state.step == self.plan.total_steps
            if last or self.is_turn(self.config.tracking.log_every_steps):
                self.log()
            evaluate = last or self.is_turn(self.config.eval.every_steps)
            draw = last or self.is_turn(self.config.eval.figure_every_steps)
            # An evaluation can take longer than a stop signal leaves time for; it is made up for after the resume.
            if (evaluate or draw) and not last and self.stop_agreed():
                return self.stop_here()
            self.evaluate_and_draw(evaluate=evaluate, draw=draw)
            if last:
                self.save_or_fail()
            elif self.is_turn(self.config.checkpoint.every_steps):
                self.try_save()
        return FINISHED

    def evaluate_and_draw(self, *, evaluate: bool, draw: bool) -> None:
        """Evaluate, draw, or both."""
        if evaluate:
            self.evaluate()
        if draw:
            self.draw()

    def stop_agreed(self) -> bool:
        """Whether a stop signal has reached any rank; all ranks ask together and get the same answer."""
        return self.ranks.sum([float(self.stop.requested)])[0] > 0

    def stop_here(self) -> int:
        """Save the step that was finished last, and leave."""
        self.log()
        self.save_or_fail()
        step = self.state.step
        self.tracker.message(f"stopped by a signal after step {step}, which is saved; the same command continues")
        return STOPPED

    def is_turn(self, every: int) -> bool:
        """Whether something that happens every so many steps happens after this one; 0 is never."""
        return every > 0 and self.state.step % every == 0

    def train_step(self, batches: list[Batch]) -> bool:
        """One optimizer step over this rank's micro-batches; False, and nothing done, if a stop signal came."""
        broken = [line for batch in batches for line in batch.pop("broken", [])]
        # The loss is divided by the weight of the whole global batch, so that neither the number of ranks nor the
        # accumulation changes it.
        weight = sum(self.task.weight(batch) for batch in batches)
        global_weight, stops, num_broken = self.ranks.sum([weight, float(self.stop.requested), float(len(broken))])
        if stops:
            return False
        scale = 1.0 / (global_weight + NORMALISER_EPSILON)
        total, extras = torch.zeros((), device=self.ranks.device), {}
        for index, batch in enumerate(batches):
            losses = self.task.loss(self.engine.model, self.to_device(batch))
            self.engine.backward(losses.total * (scale * self.ranks.world_size))
            if index < len(batches) - 1:
                self.engine.micro_step()
            total += losses.total.detach() * scale
            for name, value in losses.extras.items():
                extras[name] = extras.get(name, 0.0) + value.detach() * scale
        rate = learning_rate(self.state.step, self.config.optim, self.plan)
        applied = self.engine.step(rate)

        self.state.step += 1
        self.state.samples_seen += self.plan.global_batch
        self.state.skipped_steps += not applied
        self.clock.step()
        norm = self.engine.grad_norm
        self.records.append(StepRecord(self.state.step, total, norm, rate, applied, self.state.skipped_steps, extras))
        if not applied:
            self.warn(f"step {self.state.step}: a gradient was not finite; the update was skipped")
        if num_broken:
            self.note_broken(broken, int(num_broken))
        return True

    def warn(self, text: str) -> None:
        """Warn of something that every rank knows, once."""
        if self.ranks.is_main:
            self.tracker.warn(text)

    def to_device(self, batch: Batch) -> Batch:
        """The batch with its tensors on the device."""
        return {
            key: value.to(self.ranks.device, non_blocking=True) if isinstance(value, torch.Tensor) else value
            for key, value in batch.items()
        }

    def note_broken(self, broken: list[tuple[int, str, str]], count: int) -> None:
        """Name samples that were replaced, and end the run where they are too many."""
        self.state.broken_samples += count
        for lines in self.ranks.gather(broken):
            for position, key, reason in lines:
                self.warn(f"sample {key} (position {position}) is broken and was replaced: {reason}")
        allowed = self.config.data.max_broken_share * max(self.state.samples_seen, 1000)
        if self.state.broken_samples > allowed:
            raise RunError(
                f"{self.state.broken_samples} of {self.state.samples_seen} samples were broken, more than "
                f"data.max_broken_share={self.config.data.max_broken_share} allows; "
                "mend the shards (swinv2-data inspect names the broken samples) or allow more"
            )

    def log(self) -> None:
        """Fetch the numbers of the steps since the last log, add up over ranks, and record them."""
        if not self.records:
            return
        names = sorted(self.records[0].extras)
        local = torch.stack(
            [torch.stack([record.loss, *(record.extras[name] for name in names)]) for record in self.records]
        )
        summed = torch.tensor(self.ranks.sum(local.double().flatten().tolist())).view(local.shape).tolist()
        pace = self.clock.read(self.plan.total_steps - self.state.step)
        rows = []
        for record, (loss, *extras) in zip(self.records, summed, strict=True):
            rows.append(
                {
                    "step": record.step,
                    "samples_seen": record.step * self.plan.global_batch,
                    "loss": loss,
                    **dict(zip(names, extras, strict=True)),
                    "grad_norm": record.grad_norm(),
                    "lr": record.learning_rate,
                    "images_per_second": pace.images_per_second,
                    "data_wait_share": pace.data_wait_share,
                    "skipped_steps": record.skipped_steps,
                    "broken_samples": self.state.broken_samples,
                    "memory_gib": memory_gib(),
                    "seconds_left": pace.seconds_left,
                }
            )
        self.records.clear()
        self.tracker.log_steps(rows)

    @torch.no_grad()
    def evaluate(self) -> None:
        """Metrics on the held-out samples, every one of them counted once, over all ranks."""
        if self.held_out is None or not self.config.eval.every_steps:
            return
        samples = self.config.eval.max_samples
        with self.clock.paused(), self.open_held_out(samples, self.plan.micro_batch) as batches:
            sums = self.task.evaluate(self.engine.model, batches)
            keys = sorted(sums)
            totals = dict(zip(keys, self.ranks.sum([sums[key] for key in keys]), strict=True))
            metrics = {f"eval/{name}": value for name, value in self.task.metrics(totals).items()}
        self.tracker.log_evaluation(self.state.step, metrics)

    @torch.no_grad()
    def draw(self) -> None:
        """The task's picture of the first held-out samples."""
        if self.held_out is None or not self.config.eval.figure_every_steps:
            return
        samples = self.config.eval.figure_samples
        # Every rank draws its own, because under ZeRO-3 a forward pass is a collective; the main rank's is kept.
        with self.clock.paused(), self.open_held_out(samples * self.ranks.world_size, samples) as batches:
            batch = next(iter(batches))
            valid = batch["valid"]
            shown = {key: value[valid] for key, value in batch.items() if isinstance(value, torch.Tensor)}
            figure = self.task.figure(self.engine.model, shown if valid.any() else batch)
            self.tracker.log_figure(self.state.step, self.config.task.name, figure)

    def open_held_out(self, num_samples: int | None, micro_batch: int) -> HeldOut:
        """The first held-out samples, as a context."""
        assert self.held_out is not None
        return HeldOut(self, self.held_out(num_samples, micro_batch))

    def try_save(self) -> str | None:
        """Save, and give the reason if that failed. It is loud, but the run goes on: the older checkpoints stand."""
        with self.clock.paused():
            self.log()
            try:
                self.save()
            except CheckpointError as error:
                self.warn(f"saving step {self.state.step} FAILED ({error}); older checkpoints are untouched")
                return str(error)
        return None

    def save_or_fail(self) -> None:
        """Save the step that the run ends at."""
        reason = self.try_save()
        if reason is not None:
            raise RunError(
                f"step {self.state.step} could not be saved ({reason}); older checkpoints are untouched: mend that, "
                "and the same command continues from the newest of them"
            )


class HeldOut:
    """Held-out batches on the device, with the model in eval mode while they are open."""

    def __init__(self, trainer: Trainer, loader: Any) -> None:
        self.trainer, self.loader = trainer, loader

    def __enter__(self) -> Iterator[Batch]:
        self.trainer.engine.model.eval()
        return self._batches()

    def _batches(self) -> Iterator[Batch]:
        for batch in self.loader:
            for position, key, reason in batch.pop("broken", []):
                self.trainer.tracker.warn(f"held-out sample {key} (number {position}) is broken and left out: {reason}")
            yield self.trainer.to_device(batch)

    def __exit__(self, *_: object) -> None:
        self.loader.close()
        self.trainer.engine.model.train()
