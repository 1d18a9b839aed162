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
from swinv2_train.exit_codes import FAILED, FINISHED, STOPPED
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
    evaluation_batches: Callable[[int | None], Any] | None
    """Opens the held-out micro-batches of this rank (of the first n samples), or None where nothing is held out."""
    save: Callable[[], None]
    """Writes a checkpoint of the present state."""
    tracker: Tracker
    clock: StepClock
    stop: StopRequest
    records: list[StepRecord] = field(default_factory=list)
    stop_agreed: bool = False

    def run(self) -> int:
        """Train to the end, or until a stop signal reached any rank. Returns the exit code."""
        if self.state.step == 0 and self.config.eval.at_start:
            self.evaluate()
        while self.state.step < self.plan.total_steps:
            with self.clock.waiting():
                batches = [next(self.batches) for _ in range(self.plan.accumulation)]
            self.train_step(batches)
            last = self.state.step == self.plan.total_steps
            if last or self.stop_agreed or self.is_turn(self.config.tracking.log_every_steps):
                self.log()
            if last or (self.is_turn(self.config.eval.every_steps) and not self.stop_agreed):
                self.evaluate()
            if last or (self.is_turn(self.config.eval.figure_every_steps) and not self.stop_agreed):
                self.draw()
            if last or self.stop_agreed or self.is_turn(self.config.checkpoint.every_steps):
                saved = self.try_save()
                if not saved and (last or self.stop_agreed):
                    return FAILED
            if self.stop_agreed and not last:
                self.tracker.message(
                    f"stopped by a signal after step {self.state.step}, which is saved; the same command continues"
                )
                return STOPPED
        return FINISHED

    def is_turn(self, every: int) -> bool:
        """Whether something that happens every so many steps happens after this one; 0 is never."""
        return every > 0 and self.state.step % every == 0

    def train_step(self, batches: list[Batch]) -> None:
        """One optimizer step over this rank's micro-batches."""
        broken = [line for batch in batches for line in batch.pop("broken", [])]
        # The loss is divided by the weight of the whole global batch, so that neither the number of ranks nor the
        # accumulation changes it. The sum travels while the first forward pass runs.
        weight = sum(self.task.weight(batch) for batch in batches)
        pending = self.ranks.sum_start([weight, float(self.stop.requested), float(len(broken))])
        scale, total, extras = 0.0, torch.zeros((), device=self.ranks.device), {}
        for index, batch in enumerate(batches):
            losses = self.task.loss(self.engine.model, self.to_device(batch))
            if index == 0:
                global_weight, stops, num_broken = pending.wait()
                scale = 1.0 / (global_weight + NORMALISER_EPSILON)
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
        self.stop_agreed = stops > 0
        self.clock.step()
        norm = self.engine.grad_norm
        self.records.append(StepRecord(self.state.step, total, norm, rate, applied, self.state.skipped_steps, extras))
        if not applied:
            self.tracker.warn(f"step {self.state.step}: a gradient was not finite; the update was skipped")
        if num_broken:
            self.note_broken(broken, int(num_broken))

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
                self.tracker.warn(f"sample {key} (position {position}) is broken and was replaced: {reason}")
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
        if self.evaluation_batches is None or not self.config.eval.every_steps:
            return
        with self.clock.paused(), self.held_out(self.config.eval.max_samples) as batches:
            sums = self.task.evaluate(self.engine.model, batches)
            keys = sorted(sums)
            totals = dict(zip(keys, self.ranks.sum([sums[key] for key in keys]), strict=True))
            metrics = {f"eval/{name}": value for name, value in self.task.metrics(totals).items()}
        self.tracker.log_evaluation(self.state.step, metrics)

    @torch.no_grad()
    def draw(self) -> None:
        """The task's picture of the first held-out samples."""
        if self.evaluation_batches is None or not self.config.eval.figure_every_steps:
            return
        with self.clock.paused(), self.held_out(self.config.eval.figure_samples * self.ranks.world_size) as batches:
            # Every rank draws, because under ZeRO-3 a forward pass is a collective; one picture is kept.
            batch = next(iter(batches))
            figure = self.task.figure(self.engine.model, batch)
            self.tracker.log_figure(self.state.step, self.config.task.name, figure)

    def held_out(self, num_samples: int | None) -> HeldOut:
        assert self.evaluation_batches is not None
        return HeldOut(self, self.evaluation_batches(num_samples))

    def try_save(self) -> bool:
        """Save; a failure is loud but does not end the run before its end, since the older checkpoints stand."""
        with self.clock.paused():
            self.log()
            try:
                self.save()
            except CheckpointError as error:
                self.tracker.warn(f"saving step {self.state.step} FAILED ({error}); older checkpoints are untouched")
                return False
        return True


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
