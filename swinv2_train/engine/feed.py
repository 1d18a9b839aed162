"""Micro-batches of the steps, and what all ranks must know before a step, both one step ahead.

    step N: fetch the micro-batches of step N + 1 -> forward and backward of N -> begin the sum for N + 1 -> update

The sum is one small exchange over all ranks, in the background while the device works. It adds up the weights of the
loss terms, which depend only on the batches, the replaced samples, and the ranks that were asked to stop or cannot read
their data. A request that reaches a rank in step N before this moment stops the run after step N, a later one after
step N + 1. A saved state has no trace of this: a resume, or a return to a checkpoint, begins with the batches of its
step.

Host memory holds the micro-batches of at most two steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice

from swinv2_train.data.batch import Batch
from swinv2_train.data.loader import Broken, TrainLoader
from swinv2_train.engine.step import summed_weights
from swinv2_train.launch.failures import begun, together
from swinv2_train.launch.pending import PendingSum
from swinv2_train.launch.ranks import Ranks
from swinv2_train.launch.signals import StopRequest
from swinv2_train.tasks.task import Task

_PATIENCE_SECONDS = 2.0
"""Seconds to wait, after an error, for a sum that is under way: its thread should not outlive the interpreter."""


@dataclass
class StepInput:
    """Input of one step on this rank, and what the ranks agreed on before it."""

    batches: list[Batch]
    """Micro-batches of this rank."""
    weights: list[dict[str, float]]
    """Weights of the loss terms in each of them."""
    global_weights: list[float]
    """Weights of the terms, in their order, summed over all ranks."""
    broken: list[Broken]
    """Samples of this rank that were replaced."""
    num_broken: int
    """Their number on all ranks."""
    stops: bool
    """True if a rank was asked to stop: the step must not run."""


class Feed:
    """Inputs of the steps in turn. All methods but `fetch` are collectives.

    Args:
        loader: this rank's training micro-batches, from the next step on.
        accumulation: micro-batches of a step.
    """

    def __init__(self, loader: TrainLoader, accumulation: int, task: Task, ranks: Ranks, stop: StopRequest) -> None:
        self._loader, self._accumulation = loader, accumulation
        self._task, self._ranks, self._stop = task, ranks, stop
        self._next: StepInput | None = None
        self._failure: Exception | None = None
        self._sum: PendingSum | None = None

    def fetch(self) -> None:
        """Wait for the micro-batches of the next step, unless they are here already. An error is raised only by its
        `take`, so the current step can still be completed and saved."""
        if self._next is not None:
            return
        batches: list[Batch] = []
        try:
            batches = list(islice(self._loader, self._accumulation))
            broken = [line for batch in batches for line in batch.pop("broken", [])]
            weights = [self._task.weights(batch) for batch in batches]
        except Exception as error:
            self._failure = error
            weights, broken = [], []
        self._next = StepInput(batches, weights, [], broken, 0, stops=False)

    def begin(self) -> None:
        """Begin the sum over all ranks for the step that was fetched, if any."""
        if self._next is None:
            return
        own = summed_weights(self._task, self._next.weights)
        flags = [self._stop.requested, len(self._next.broken), self._failure is not None]
        self._sum = self._ranks.begin_sum([*own, *(float(flag) for flag in flags)])

    def take(self) -> StepInput:
        """Return the input of the next step; fetches it first if that was not done ahead.

        Raises:
            RunError, MainRankError: on every rank, if one of them cannot read its batches.
            LostRanks: if another rank died or does not respond.
        """
        self.fetch()
        if self._sum is None:
            self.begin()
        assert self._sum is not None
        assert self._next is not None
        *weights, stops, num_broken, failures = self._sum.result()
        taken, self._next, self._sum = self._next, None, None
        taken.global_weights, taken.num_broken, taken.stops = weights, int(num_broken), bool(stops)
        if failures and not stops:
            together(self._ranks, self._raise)
        return taken

    def _raise(self) -> None:
        with begun():  # on the rank itself, so that all ranks end with the code of a failure
            if self._failure is not None:
                raise self._failure

    def drain(self) -> None:
        """Complete the sum that is under way, and forget it with the step that was fetched."""
        if self._sum is not None:
            self._sum.result()
        self._next = self._sum = self._failure = None

    def close(self) -> None:
        """End the loader. Not a collective."""
        if self._sum is not None:
            self._sum.wait(_PATIENCE_SECONDS)
        self._loader.close()
