"""Evaluation and pictures during a run, on the held-out samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass

import torch

from swinv2_train.config.plan import Plan
from swinv2_train.config.schema import Config
from swinv2_train.data.loader import EvalLoader
from swinv2_train.engine.deepspeed import Engine
from swinv2_train.engine.ranks import Ranks
from swinv2_train.engine.signals import StopRequest
from swinv2_train.engine.watchdog import Watchdog
from swinv2_train.tasks.task import Batch, Task, to_device
from swinv2_train.tracking.tracker import Tracker


class Interrupted(Exception):  # noqa: N818 -- not an error
    """A stop signal came to a rank during an evaluation; every rank raises it at the same batch."""


@dataclass
class Evaluation:
    """Evaluates and draws, all ranks together."""

    config: Config
    plan: Plan
    ranks: Ranks
    engine: Engine
    task: Task
    open_held_out: Callable[[int | None, int], EvalLoader] | None
    """Opens this rank's share of the first n held-out samples (None: all) in batches of a size; None without any."""
    tracker: Tracker
    watchdog: Watchdog
    stop: StopRequest

    @torch.no_grad()
    def evaluate(self, step: int) -> dict[str, float]:
        """Metrics on the held-out samples, every one of them counted once, over all ranks; recorded and returned.

        Raises:
            Interrupted: on every rank, if a stop signal reached any; nothing is recorded then.
        """
        if self.open_held_out is None or not self.config.eval.every_steps:
            return {}
        metrics = {f"eval/{name}": value for name, value in self._measure(step).items()}
        if self.config.optim.ema_decay and self.config.eval.ema:
            with self.engine.averaged(Interrupted):
                metrics |= {f"eval/ema_{name}": value for name, value in self._measure(step).items()}
        self.tracker.log_evaluation(step, metrics)
        return metrics

    def _measure(self, step: int) -> dict[str, float]:
        self.watchdog.now("evaluation", step)
        with self._batches(self.config.eval.max_samples, self.plan.micro_batch) as batches:
            sums = self.task.evaluate(self.engine.model, batches)
        return self.task.metrics(self.ranks.sum_all(sums))

    @torch.no_grad()
    def draw(self, step: int) -> None:
        """The task's picture of the first held-out samples, by the averaged weights where there are any."""
        if self.open_held_out is None or not self.config.eval.figure_every_steps:
            return
        self.watchdog.now("evaluation", step)
        samples = self.config.eval.figure_samples
        # Every rank draws its own, because under ZeRO-3 a forward pass is a collective; the main rank's is kept.
        averaged = self.config.optim.ema_decay and self.config.eval.ema
        with (
            self.engine.averaged(Interrupted) if averaged else nullcontext(),
            self._batches(samples * self.ranks.world_size, samples) as batches,
        ):
            batch = next(iter(batches))
            valid = batch["valid"]
            shown = {key: value[valid] for key, value in batch.items() if isinstance(value, torch.Tensor)}
            figure = self.task.figure(self.engine.model, shown if valid.any() else batch)
        self.tracker.log_figure(step, self.config.task.name, figure)

    @contextmanager
    def _batches(self, num_samples: int | None, micro_batch: int) -> Iterator[Iterator[Batch]]:
        """Held-out batches on the device, with the model in eval mode while they are open."""
        assert self.open_held_out is not None
        self.engine.model.eval()
        try:
            with closing(self.open_held_out(num_samples, micro_batch)) as loader:
                yield self._each(loader)
        finally:
            self.engine.model.train()

    def _each(self, loader: EvalLoader) -> Iterator[Batch]:
        for batch in loader:
            # An evaluation can take longer than a stop signal leaves time for. Every rank has equally many batches.
            if self.ranks.sum([float(self.stop.requested)])[0]:
                raise Interrupted
            for position, key, reason in batch.pop("broken", []):
                self.tracker.warn(f"held-out sample {key} (number {position}) is broken and left out: {reason}")
            yield to_device(batch, self.ranks.device)
