"""Evaluation and figures during a run, on the held-out samples."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass

import torch

from swinv2_train.analysis.activations import activation_chart, activation_metrics, measure_activations
from swinv2_train.analysis.probes import Probe
from swinv2_train.config.plan import Plan
from swinv2_train.config.schema import Config
from swinv2_train.data.batch import Batch, select
from swinv2_train.data.device import on_device
from swinv2_train.data.loader import EvalLoader
from swinv2_train.engine.deepspeed import Engine
from swinv2_train.engine.drawing import same_number
from swinv2_train.launch.ranks import Ranks
from swinv2_train.launch.signals import StopRequest
from swinv2_train.launch.watchdog import Watchdog
from swinv2_train.tasks.build import OpenHeldOut
from swinv2_train.tasks.outcome import combine
from swinv2_train.tasks.task import Task
from swinv2_train.tracking.figures import with_heading
from swinv2_train.tracking.tracker import Tracker

PARTS = ("evaluate", "probe", "draw", "signal")
"""Parts of an evaluation in their order; see `due`."""


class Interrupted(Exception):  # noqa: N818 -- not an error
    """A stop signal reached a rank during an evaluation; every rank raises it at the same batch."""


def check_stop(ranks: Ranks, stop: StopRequest) -> None:
    """Raise `Interrupted` on every rank if a stop signal reached any. A collective, before every batch."""
    # An evaluation can take longer than the time that a stop signal leaves. Every rank has the same number of batches.
    if ranks.sum([float(stop.requested)])[0]:
        raise Interrupted


def due(config: Config, step: int, *, last: bool) -> set[str]:
    """Return what is due after a step: `evaluate`, `probe`, `draw`, `signal`. Everything enabled is due after the
    last."""

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
    """Evaluates and draws figures. All methods are collectives."""

    config: Config
    plan: Plan
    ranks: Ranks
    engine: Engine
    task: Task
    open_held_out: OpenHeldOut | None
    """Opens this rank's part of the held-out samples; None without any."""
    tracker: Tracker
    watchdog: Watchdog
    stop: StopRequest
    probe: Probe | None = None
    """Scores the frozen features on labeled images; None if there are none."""

    def run(self, step: int, what: set[str]) -> dict[str, float]:
        """Run what is due at a step; return the metrics of the evaluation and the probes.

        Raises:
            Interrupted: on every rank, if a stop signal reached any; the current evaluation is not recorded then.
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
        """Record and return the metrics on the held-out samples, each counted exactly once, over all ranks.

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
        """Draw the task's figure of the first held-out samples, with the averaged weights if there are any."""
        self.watchdog.now("evaluation", step)
        samples = self.config.eval.figure_samples
        # Every rank draws as many as the main rank, whose figure is kept: under ZeRO-3, a forward pass is a collective.
        averaged = self.config.optim.ema_decay and self.config.eval.ema
        with (
            self.engine.averaged(Interrupted) if averaged else nullcontext(),
            self._batches(samples * self.ranks.world_size, samples, figure=True) as batches,
        ):
            batch = next(iter(batches))
            shown = same_number(batch["valid"].nonzero()[:, 0].tolist(), len(batch["valid"]), self.ranks)
            figure = self.task.figure(self.engine.model, select(batch, shown))
        weights = ", averaged weights" if averaged else ""
        self.tracker.log_figure(step, self.config.task.name, with_heading(figure, f"step {step:,}{weights}"))

    def score_features(self, step: int) -> dict[str, float]:
        """Record and return the k-NN and linear probe scores of the current weights."""
        assert self.probe is not None
        self.watchdog.now("evaluation", step)
        scores = {f"eval/{name}": value for name, value in self.probe.measure(self.engine.model, step).items()}
        self.tracker.log_evaluation(step, scores)
        return scores

    @torch.no_grad()
    def draw_signal(self, step: int) -> None:
        """Record and plot the activation amplitude of every block on the first held-out samples."""
        self.watchdog.now("evaluation", step)
        samples = self.config.eval.figure_samples
        with self._batches(samples * self.ranks.world_size, samples, figure=True) as batches:
            images = self.task.images(next(iter(batches)))
            blocks = measure_activations(self.engine.model, images)
        self.tracker.log_evaluation(step, activation_metrics(blocks))
        if self.ranks.is_main:
            self.tracker.log_figure(step, "signal", activation_chart({f"step {step}": blocks}).image)

    @contextmanager
    def _batches(self, num_samples: int | None, micro_batch: int, *, figure: bool = False) -> Iterator[Iterator[Batch]]:
        """Yield held-out batches on the device; the model is in eval mode while the context is open. For the arguments
        see `OpenHeldOut`."""
        assert self.open_held_out is not None
        self.engine.model.eval()
        try:
            with closing(self.open_held_out(num_samples, micro_batch, figure=figure)) as loader:
                yield on_device(self._each(loader), self.ranks.device, self.task.eval_transform.on_host)
        finally:
            self.engine.model.train()

    def _each(self, loader: EvalLoader) -> Iterator[Batch]:
        for batch in loader:
            check_stop(self.ranks, self.stop)
            for position, key, reason in batch.pop("broken", []):
                self.tracker.warn(f"held-out sample {key} (number {position}) is broken and skipped: {reason}")
            yield batch
