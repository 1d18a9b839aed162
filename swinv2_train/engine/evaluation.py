"""Evaluation and pictures during a run, on the held-out samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass

import torch

from swinv2_train.analysis.activations import activation_chart, activation_metrics, measure_activations
from swinv2_train.analysis.probes import Probe
from swinv2_train.config.plan import Plan
from swinv2_train.config.schema import Config
from swinv2_train.data.augment import normalise
from swinv2_train.data.batch import Batch, select, to_device
from swinv2_train.data.loader import EvalLoader
from swinv2_train.engine.deepspeed import Engine
from swinv2_train.launch.ranks import Ranks
from swinv2_train.launch.signals import StopRequest
from swinv2_train.launch.watchdog import Watchdog
from swinv2_train.tasks.outcome import combine
from swinv2_train.tasks.task import Task
from swinv2_train.tracking.tracker import Tracker


class Interrupted(Exception):  # noqa: N818 -- not an error
    """A stop signal came to a rank during an evaluation; every rank raises it at the same batch."""


def check_stop(ranks: Ranks, stop: StopRequest) -> None:
    """Raise `Interrupted` on every rank if a stop signal has reached any; all ranks call it, before every batch."""
    # An evaluation can take longer than a stop signal leaves time for. Every rank has equally many batches.
    if ranks.sum([float(stop.requested)])[0]:
        raise Interrupted


def due(config: Config, step: int, *, last: bool) -> set[str]:
    """What has its turn after a step: `evaluate`, `probe`, `draw`, `signal`. What is on has it after the last step."""

    def turn(every: int) -> bool:
        return every > 0 and (last or step % every == 0)

    turns = set()
    if config.data.eval_shards:
        every = {"evaluate": config.eval.every_steps, "draw": config.eval.figure_every_steps}
        every["signal"] = config.eval.signal_every_steps
        turns = {name for name, steps in every.items() if turn(steps)}
    if config.probe.shards and (last or turn(config.probe.every_steps)):
        turns.add("probe")
    return turns


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
    probe: Probe | None = None
    """Scores the frozen features on labelled images; None without any."""

    def run(self, step: int, what: set[str]) -> dict[str, float]:
        """Do what is due at a step; returns the metrics of the evaluation and the probes.

        Raises:
            Interrupted: on every rank, if a stop signal reached any; what was under way is not recorded then.
        """
        metrics: dict[str, float] = {}
        if "evaluate" in what:
            metrics |= self.evaluate(step)
        if "probe" in what:
            metrics |= self.score_features(step)
        if "draw" in what:
            self.draw(step)
        if "signal" in what:
            self.draw_signal(step)
        return metrics

    @torch.no_grad()
    def evaluate(self, step: int) -> dict[str, float]:
        """Metrics on the held-out samples, every one of them counted once, over all ranks; recorded and returned.

        Raises:
            Interrupted: on every rank, if a stop signal reached any; nothing is recorded then.
        """
        metrics = {f"eval/{name}": value for name, value in self._measure(step).items()}
        if self.config.optim.ema_decay and self.config.eval.ema:
            with self.engine.averaged(Interrupted):
                metrics |= {f"eval/ema_{name}": value for name, value in self._measure(step).items()}
        self.tracker.log_evaluation(step, metrics)
        return metrics

    def _measure(self, step: int) -> dict[str, float]:
        self.watchdog.now("evaluation", step)
        with self._batches(self.config.eval.max_samples, self.plan.micro_batch) as batches:
            own = self.task.evaluate(self.engine.model, batches)
        return combine(self.task, own, self.ranks).metrics

    @torch.no_grad()
    def draw(self, step: int) -> None:
        """The task's picture of the first held-out samples, by the averaged weights where there are any."""
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
            figure = self.task.figure(self.engine.model, select(batch, valid) if valid.any() else batch)
        self.tracker.log_figure(step, self.config.task.name, figure)

    def score_features(self, step: int) -> dict[str, float]:
        """k-NN and linear probe of the present weights; recorded and returned."""
        assert self.probe is not None
        self.watchdog.now("evaluation", step)
        scores = {f"eval/{name}": value for name, value in self.probe.measure(self.engine.model, step).items()}
        self.tracker.log_evaluation(step, scores)
        return scores

    @torch.no_grad()
    def draw_signal(self, step: int) -> None:
        """The activation amplitude of every block on the first held-out samples, as a figure and as numbers."""
        self.watchdog.now("evaluation", step)
        samples = self.config.eval.figure_samples
        with self._batches(samples * self.ranks.world_size, samples) as batches:
            images = normalise(next(iter(batches))["image"], self.task.mean, self.task.std)
            blocks = measure_activations(self.engine.model, images)
        self.tracker.log_evaluation(step, activation_metrics(blocks))
        if self.ranks.is_main:
            self.tracker.log_figure(step, "signal", activation_chart({f"step {step}": blocks}).image)

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
            check_stop(self.ranks, self.stop)
            for position, key, reason in batch.pop("broken", []):
                self.tracker.warn(f"held-out sample {key} (number {position}) is broken and left out: {reason}")
            yield to_device(batch, self.ranks.device)
