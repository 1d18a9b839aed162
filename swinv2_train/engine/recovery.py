"""Recovery from a rejected step: record it, then skip the update, return to a checkpoint, or end the run.

`guard.policy` applies to spikes. Non-finite values are always skipped.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from swinv2_train.config.schema import Config
from swinv2_train.engine.checkpoints import Checkpoints, Loaded, load_newest
from swinv2_train.engine.deepspeed import Engine
from swinv2_train.engine.guard import Guard, Refusal
from swinv2_train.engine.incidents import IncidentLog
from swinv2_train.engine.phase import Phases
from swinv2_train.engine.state import TrainState
from swinv2_train.engine.step import StepSums
from swinv2_train.launch.ranks import Ranks
from swinv2_train.tasks.task import mean_loss
from swinv2_train.text import counted
from swinv2_train.tracking.tracker import Tracker


class Action(enum.Enum):
    """Response to a rejected step."""

    SKIP = enum.auto()
    ROLLBACK = enum.auto()
    END = enum.auto()


@dataclass(frozen=True)
class Response:
    """Action after a rejected step, and the reason."""

    action: Action
    refusal: Refusal
    message: str
    """Message for the log, or for the error that ends the run."""


@dataclass
class Recovery:
    """Decides on rejected steps, identically on all ranks."""

    config: Config
    ranks: Ranks
    engine: Engine
    checkpoints: Checkpoints
    incidents: IncidentLog
    tracker: Tracker
    phase: Phases

    def respond(
        self, guard: Guard, loss: float, sums: StepSums, weights: list[dict[str, float]], state: TrainState
    ) -> Response:
        """Record a step whose update was rejected, and return the response.

        Args:
            weights: of the loss terms, in each micro-batch of this rank.
            state: state before the step.

        Raises:
            RunError, MainRankError: if no update is possible any longer.
        """
        step, norm = state.step + 1, self.engine.grad_norm
        refusal = guard.judge(loss, norm, state) or Refusal("a gradient is not finite", spike=False)
        guard.refuse(refusal, state)
        factors = self.config.task.terms()
        micro = [mean_loss(terms, own, factors) for terms, own in zip(sums.micro_terms, weights, strict=True)]
        again = self.incidents.record(refusal, loss, norm, micro, state)
        if self.engine.scale_exhausted:
            raise self.ranks.end(
                f"step {step}: gradients overflow in fp16 even at the smallest loss scale, so no update is possible "
                f"({again}): set engine.precision=bf16 or a lower optim.lr, and resume from the newest checkpoint"
            )
        policy = self.config.guard.policy if refusal.spike else "skip"
        if policy == "stop":
            message = (
                f"step {step}: {refusal.reason}, and guard.policy=stop; the state before it is saved; {again}; "
                "guard.policy=skip continues without it"
            )
            return Response(Action.END, refusal, message)
        if policy == "rollback":
            return Response(Action.ROLLBACK, refusal, f"step {step}: {refusal.reason}; going back; {again}")
        scale = ", and the loss scale lowered" if self.config.engine.precision == "fp16" and not refusal.spike else ""
        return Response(Action.SKIP, refusal, f"step {step}: {refusal.reason}; update skipped{scale}; {again}")

    def go_back(self, refusal: Refusal, before: TrainState) -> Loaded:
        """Load the newest checkpoint, with the offending batches excluded from its state. A collective.

        Args:
            before: state before the rejected step.

        Raises:
            RunError, MainRankError: if `guard.max_rollbacks` is exhausted, or there is no valid checkpoint.
        """
        guard, step = self.config.guard, before.step + 1
        if before.rollbacks >= guard.max_rollbacks:
            raise self.ranks.end(
                f"step {step}: {refusal.reason}, and the run has already gone back {counted(before.rollbacks, 'time')} "
                "(guard.max_rollbacks): lower optim.lr, or look at the incidents of the run"
            )
        checkpoints = self.checkpoints
        with self.phase("waiting for a checkpoint to be written", "save", before.step):
            checkpoints.settle()
        with self.phase("going back to a checkpoint", "start", before.step):
            found = load_newest(checkpoints.directory, self.engine, self.ranks, before.step, checkpoints.identity)
        state = found.state
        if state is None:
            raise self.ranks.end(f"step {step}: {refusal.reason}, and there is no valid checkpoint to go back to")
        if state.changed_position != before.changed_position:
            hint = "and the only valid checkpoints are from before the last change of optim.global_batch"
            raise self.ranks.end(f"step {step}: {refusal.reason}, {hint}")
        left_out = range(before.batch - guard.rollback_batches + 1, before.batch + 1)
        state.avoid([*before.avoided_batches, *left_out])
        state.rollbacks = before.rollbacks + 1
        checkpoints.saver.damaged.update(found.damaged)
        checkpoints.saver.last_saved = None
        self.tracker.rewind(state.step)
        avoided = ", ".join(str(batch) for batch in state.avoided_batches)
        for line in [*found.lines, f"avoided batches: {avoided}"]:
            self.tracker.message(line)
        return found
