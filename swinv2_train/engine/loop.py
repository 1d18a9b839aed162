"""The training loop, top to bottom.

One step: take the micro-batches, run forward and backward on each, check the numbers, update. After a step, whatever
is due runs: log, evaluate, draw, save. Checkpoints are written in the background. Logged values stay on the device
until a log step; only the loss is fetched every step, for the guard, at a point where DeepSpeed waits for the device
anyway. The micro-batches, and what the ranks must exchange before a step, are ready one step ahead (`feed.py`).
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from swinv2_train.config.metrics import TERM
from swinv2_train.config.plan import Plan
from swinv2_train.config.schema import Config
from swinv2_train.data.loader import TrainLoader
from swinv2_train.engine.checkpoints import Checkpoints
from swinv2_train.engine.deepspeed import Engine
from swinv2_train.engine.early_stopping import observe, stopping_reason
from swinv2_train.engine.evaluation import PARTS, Evaluation, Interrupted, due
from swinv2_train.engine.feed import Feed, StepInput
from swinv2_train.engine.guard import Guard, Refusal, mostly_skipped
from swinv2_train.engine.phase import Phases
from swinv2_train.engine.recovery import Action, Recovery
from swinv2_train.engine.schedule import ema_decay, learning_rate
from swinv2_train.engine.state import TrainState
from swinv2_train.engine.step import forward_backward
from swinv2_train.exit_codes import FINISHED, STOPPED
from swinv2_train.launch.ranks import Ranks
from swinv2_train.launch.signals import StopRequest
from swinv2_train.tasks.task import Task
from swinv2_train.tracking.clock import StepClock, Throughput
from swinv2_train.tracking.memory import memory_gib
from swinv2_train.tracking.tracker import Tracker


class StepOutcome(enum.Enum):
    """Outcome of an attempt at a step."""

    STEP = enum.auto()
    """A step was taken; its update was applied or skipped."""
    STOP = enum.auto()
    """No step: a stop signal reached a rank."""
    ROLLBACK = enum.auto()
    """The run is back at a checkpoint."""


@dataclass
class StepRecord:
    """Numbers of one step; the terms are this rank's part and still on the device."""

    step: int
    loss: float
    grad_norm: float
    learning_rate: float
    skipped_steps: int
    samples_seen: int
    terms: dict[str, torch.Tensor]
    """Terms of the loss by name, if there is more than one."""


@dataclass
class Trainer:
    """All parts of a run, and the loop over it. All ranks run it in lockstep."""

    config: Config
    plan: Plan
    ranks: Ranks
    engine: Engine
    task: Task
    state: TrainState
    open_batches: Callable[[TrainState], TrainLoader]
    """Opens this rank's training micro-batches from the position of a state."""
    evaluation: Evaluation
    checkpoints: Checkpoints
    recovery: Recovery
    tracker: Tracker
    clock: StepClock
    phase: Phases
    stop: StopRequest
    seconds_at_peak: float | None
    """Seconds per image if all ranks computed at their peak; None if the peak is unknown."""
    missed: set[str] = field(default_factory=set)
    """Evaluations that were due at the current step when the run ended there (see `due`)."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Evaluation at the current step."""
    save_first: bool = False
    """Save the state before the first step, because no checkpoint of this run directory has it."""

    def __post_init__(self) -> None:
        self.guard = Guard(self.config.guard)
        self.records: list[StepRecord] = []
        self.pace: Throughput | None = None

    def run(self) -> int:
        """Train to the end, or until a stop signal reaches any rank. Return the exit code."""
        self.feed = self.open_feed()
        try:
            return self._run()
        except Interrupted:
            self.feed.drain()
            return self.stop_here()
        finally:
            self.feed.close()

    def open_feed(self) -> Feed:
        """Return the inputs of the steps after the current state."""
        loader = self.open_batches(self.state)
        return Feed(loader, self.plan.accumulation, self.task, self.ranks, self.stop)

    def _run(self) -> int:
        at_start = self.state.step == 0 and self.config.eval.at_start
        first = due(self.config, 0, last=False) & {"evaluate", "probe"} if at_start else set()
        ended = self.stopping()
        self.evaluate(self.missed | first)
        if not ended and self.state.step < self.plan.total_steps and (ended := self.stopping()):
            # A repeated evaluation ends the run here, so everything else that is due after the last step is due now.
            self.evaluate(due(self.config, self.state.step, last=True) - due(self.config, self.state.step, last=False))
        if self.save_first or (self.state.step == 0 and self.config.guard.policy == "rollback"):
            self.save()  # a checkpoint for rollbacks
        self.phase.watchdog.now("start", self.state.step)
        save_due, first = False, self.state.step + 1
        while self.state.step < self.plan.total_steps and not ended:
            outcome = self.train_step(self.take())
            if outcome is StepOutcome.STOP:
                return self.stop_here()
            self.phase.training(self.state.step, "between steps")
            if outcome is StepOutcome.ROLLBACK:
                continue
            self.checkpoints.report(self.pace.seconds_per_step if self.pace else None)
            last = self.state.step == self.plan.total_steps
            if last or self.state.step == first or self.is_turn(self.config.tracking.log_every_steps):
                self.log()
            done = due(self.config, self.state.step, last=last)
            self.evaluate(done)
            if not last and (ended := self.stopping()):
                self.feed.drain()  # the next step, which was prepared, is not taken
                self.evaluate(due(self.config, self.state.step, last=True) - done)
                break
            save_due = save_due or self.is_turn(self.config.checkpoint.every_steps)  # stays due until it is saved
            # If step after step is rejected, the weights themselves may be bad: they must not replace good checkpoints.
            if save_due and not last and self.state.skipped_in_row < 2:
                self.save()
                save_due = False
            self.phase.training(self.state.step, "between steps")
        self.finish_saving()
        if failure := mostly_skipped(self.state):
            raise self.ranks.end(failure)
        if ended:
            where = f"step {self.state.step} of {self.plan.total_steps}"
            self.tracker.message(f"the run ends early, after {where}: {ended}")
        return FINISHED

    def stopping(self) -> str | None:
        """Return why the run ends before its last step; None if it goes on."""
        return stopping_reason(self.state, self.config.eval.early_stopping)

    def is_turn(self, every: int) -> bool:
        """Return whether something that is due every N steps is due after this one; 0 means never."""
        return every > 0 and self.state.step % every == 0

    def take(self) -> StepInput:
        """Wait for the input of the next step."""
        with self.phase.waiting():
            self.feed.fetch()
        self.phase.watchdog.doing = "agreeing on the step with the other ranks"
        return self.feed.take()

    def train_step(self, current: StepInput) -> StepOutcome:
        """Run one optimizer step over this rank's micro-batches."""
        if current.stops:  # a sum over the ranks, so all of them stop before the same step
            return StepOutcome.STOP
        if self.state.step + 1 < self.plan.total_steps:
            with self.phase.waiting():  # now, while the device is idle: later, its work would count as waiting
                self.feed.fetch()
        self.phase.watchdog.doing = "forward and backward, with the gradients' reduction"
        sums = forward_backward(self.engine, self.task, current.batches, current.global_weights, self.ranks)
        current.batches.clear()
        self.feed.begin()
        self.phase.watchdog.doing = "the optimizer's step"
        rate = learning_rate(self.state.step, self.config.optim, self.plan)
        # The loss and the norm are sums over the ranks, so the gate decides the same on every rank.
        applied = self.engine.step(
            rate, lambda norm: self.guard.judge(self.engine.loss, norm, self.state) is None, loss=sums.loss
        )
        loss = self.engine.loss
        if applied:
            self.engine.update_average(ema_decay(self.state.step, self.config.optim))
            self.guard.accept(loss, self.engine.grad_norm, self.state)
        else:
            response = self.recovery.respond(self.guard, loss, sums, current.weights, self.state)
            if response.action is Action.END:
                self.finish_saving()
                raise self.ranks.end(response.message)
            self.warn(response.message)
            if response.action is Action.ROLLBACK:
                self.roll_back(response.refusal)
                return StepOutcome.ROLLBACK
        self.count(applied=applied)
        terms = sums.terms if len(sums.terms) > 1 else {}
        state = self.state
        self.records.append(
            StepRecord(state.step, loss, self.engine.grad_norm, rate, state.skipped_steps, state.samples_seen, terms)
        )
        if current.num_broken:
            self.note_broken(current.broken, current.num_broken)
        self.check_skipped()
        return StepOutcome.STEP

    def roll_back(self, refusal: Refusal) -> None:
        """Continue from the newest checkpoint, without the offending batches."""
        self.feed.drain()
        found = self.recovery.go_back(refusal, self.state)
        self.state, self.metrics = found.state, found.metrics
        self.records.clear()
        self.feed.close()
        self.feed = self.open_feed()
        # Save the same weights again: a restart must not forget which batches are excluded.
        with self.phase("beginning a checkpoint", "save", self.state.step):
            self.checkpoints.begin(self.state, self.metrics)

    def count(self, *, applied: bool) -> None:
        """Count a step that was taken."""
        state = self.state
        state.step += 1
        state.samples_seen += self.plan.global_batch
        state.skipped_steps += not applied
        state.skipped_in_row = 0 if applied else state.skipped_in_row + 1
        self.metrics = {}
        self.clock.step()

    def check_skipped(self) -> None:
        """End a run that only skips steps."""
        allowed = self.config.guard.max_skipped_in_row
        if self.state.skipped_in_row >= allowed:
            self.log()
            raise self.ranks.end(
                f"{allowed} steps in a row were skipped, the last of them step {self.state.step} "
                "(guard.max_skipped_in_row): the run no longer learns; look at its incidents, then resume with a "
                "lower optim.lr or other data; if the newest checkpoint leads to the same result, its weights "
                "are bad: remove it to resume from the one before"
            )

    def warn(self, text: str) -> None:
        """Warn once of something that every rank knows."""
        if self.ranks.is_main:
            self.tracker.warn(text)

    def note_broken(self, broken: list[tuple[int, str, str]], count: int) -> None:
        """Report samples that were replaced, and end the run if there are too many."""
        self.state.broken_samples += count
        for lines in self.ranks.gather(broken):
            for position, key, reason in lines:
                self.warn(f"sample {key} (position {position}) is broken and was replaced: {reason}")
        allowed = self.config.data.max_broken_share * max(self.state.samples_seen, 1000)
        if self.state.broken_samples > allowed:
            raise self.ranks.end(
                f"{self.state.broken_samples} of {self.state.samples_seen} samples were broken, more than "
                f"data.max_broken_share={self.config.data.max_broken_share} allows; "
                "fix the shards (swinv2-data inspect names the broken samples) or allow more"
            )

    def log(self) -> None:
        """Fetch the numbers of the steps since the last log, sum them over the ranks, and record them."""
        if not self.records:
            return
        names = list(self.records[0].terms)
        terms = [record.terms[name].double() for record in self.records for name in names]
        summed = iter(self.ranks.sum(torch.stack(terms).tolist()) if terms else [])
        self.pace = pace = self.clock.read(self.plan.total_steps - self.state.step)
        mfu = {} if self.seconds_at_peak is None else {"mfu": pace.images_per_second * self.seconds_at_peak}
        rows = []
        for record in self.records:
            rows.append(
                {
                    "step": record.step,
                    "samples_seen": record.samples_seen,
                    "loss": record.loss,
                    **{f"{TERM}{name}": next(summed) for name in names},
                    "grad_norm": record.grad_norm,
                    "lr": record.learning_rate,
                    "images_per_second": pace.images_per_second,
                    **mfu,
                    "data_wait_share": pace.data_wait_share,
                    "skipped_steps": record.skipped_steps,
                    "broken_samples": self.state.broken_samples,
                    "memory_gib": memory_gib(),
                    "seconds_left": pace.seconds_left,
                }
            )
        self.records.clear()
        self.tracker.log_steps(rows)

    def evaluate(self, what: set[str]) -> None:
        """Evaluate, probe, and draw what is due (see `due`)."""
        if not what:
            return
        with self.phase(f"evaluation ({', '.join(sorted(what))})", "evaluation", self.state.step):
            for part in PARTS:  # one by one: if a stop signal interrupts one, those before it have counted
                if part in what:
                    self.metrics |= self.evaluation.run(self.state.step, {part})
                    observe(self.state, self.config.eval.early_stopping, self.metrics)
        if "evaluate" in what:
            self.check_metrics()

    def check_metrics(self) -> None:
        """End the run if it needs a metric that no evaluation reports: for `keep_best` or early stopping."""
        checkpoint, stopping = self.config.checkpoint, self.config.eval.early_stopping
        wanted = {"checkpoint.best_metric": checkpoint.best_metric if checkpoint.keep_best else None}
        wanted["eval.early_stopping.metric"] = stopping.metric
        for key, metric in wanted.items():
            if metric is not None and metric not in self.metrics:
                raise self.ranks.end(f"{key}={metric}: no evaluation reports it; use one of {', '.join(self.metrics)}")

    def save(self) -> None:
        """Save the current state in the background."""
        self.log()
        with self.phase("beginning a checkpoint", "save", self.state.step):
            self.checkpoints.begin(self.state, self.metrics)

    def finish_saving(self) -> None:
        """Save the current step and wait until it is on disk."""
        self.log()
        with self.phase("waiting for a checkpoint to be written", "save", self.state.step):
            self.checkpoints.settle()
        with self.phase("saving the last step", "save", self.state.step):
            self.checkpoints.finish(self.state, self.metrics)

    def stop_here(self) -> int:
        """Save the step that was finished last and return the exit code."""
        self.finish_saving()
        step, cause = self.state.step, self.stop.cause
        self.tracker.message(f"stopped by {cause} after step {step}, which is saved; rerun the same command to resume")
        return STOPPED
