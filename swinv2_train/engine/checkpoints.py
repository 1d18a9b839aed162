"""Checkpoints of a run: their content, their reporting, and the return to one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from swinv2_train.checkpoint.errors import CheckpointError
from swinv2_train.checkpoint.identity import Identity
from swinv2_train.checkpoint.layout import read_manifest
from swinv2_train.checkpoint.load import check_parameters, check_trained, load_fragments
from swinv2_train.checkpoint.saver import Outcome, Saver
from swinv2_train.checkpoint.survey import read_state
from swinv2_train.checkpoint.verify import newest_valid
from swinv2_train.config.resume import DATA, GLOBAL_BATCH
from swinv2_train.engine.deepspeed import Engine
from swinv2_train.engine.state import TrainState
from swinv2_train.launch.failures import together
from swinv2_train.launch.lock import check_in_place
from swinv2_train.launch.ranks import Ranks
from swinv2_train.launch.status import write_status
from swinv2_train.models.state import state_shapes
from swinv2_train.shortage import remedied
from swinv2_train.tracking.tracker import Tracker


@dataclass
class Loaded:
    """Result of the search for a checkpoint to resume from."""

    state: TrainState | None
    """State of the run in the checkpoint; None without a valid checkpoint."""
    metrics: dict[str, float]
    """Evaluation at the checkpoint's step."""
    lines: list[str]
    """Lines for the log."""
    damaged: list[str]
    """Names of the checkpoints that were skipped, damaged or of another run."""
    metadata: dict[str, Any] | None = None
    """Metadata in the checkpoint; None without a valid checkpoint."""
    batch_before: int | None = None
    """Global batch of the checkpoint, if the run continues with another one."""


def load_newest(
    directory: Path, engine: Engine, ranks: Ranks, until: int | None = None, own: Identity | None = None
) -> Loaded:
    """Load the newest checkpoint that verifies and belongs to the run, if there is one. A collective.

    Args:
        until: ignore checkpoints of later steps.
        own: identity of the run; None: any run.
    """
    found = newest_valid(directory, ranks, until, own.foreign if own else None)
    lines = [f"skipped {line}" for line in found.passed_over]
    if found.path is None:
        return Loaded(None, {}, lines, found.damaged)
    loaded = load(found.path, engine, ranks, lines, found.damaged)
    saved = loaded.metadata or {}
    for one in own.accepted(saved, DATA) if own else ():
        loaded.lines.append(f"continuing with different data (resume.allow=[{DATA}]): {one}")
    for one in own.accepted(saved, GLOBAL_BATCH) if own else ():
        assert loaded.state is not None
        loaded.batch_before = one.before
        loaded.state.change_batch(one.before, one.now)
    return loaded


def load(path: Path, engine: Engine, ranks: Ranks, lines: Sequence[str] = (), damaged: Sequence[str] = ()) -> Loaded:
    """Load a checkpoint that was verified. A collective.

    Raises:
        CheckpointError: if it belongs to another model.
        ConfigError: if it lacks the moments of a parameter that is trained now.
    """
    manifest = read_manifest(path)

    def check() -> list[str]:
        check_parameters(manifest, state_shapes(engine.module))
        return check_trained(manifest, [name for name, one in engine.module.named_parameters() if one.requires_grad])

    dropped = together(ranks, check)
    load_fragments(path, engine.fragments_to_load())
    saved = read_state(path)
    engine.load_scalars(saved["optimizer"])
    engine.publish()
    count = manifest.world_size
    ranks_then = "" if count == ranks.world_size else f" (saved by {count} rank{'s' if count > 1 else ''})"
    said = [*lines, f"resuming from {path}{ranks_then}", *dropped]
    if manifest.has_ema and not engine.averages:
        said.append("its moving average of the weights is dropped, because optim.ema_decay is 0 now")
    return Loaded(TrainState(**saved["train"]), manifest.metrics, said, list(damaged), manifest.metadata)


@dataclass
class Checkpoints:
    """Saves the run's state through a saver and reports the outcomes."""

    run_dir: Path
    engine: Engine
    ranks: Ranks
    metadata: dict[str, Any]
    identity: Identity
    """Identity that a checkpoint must match to return to it."""
    tracker: Tracker
    saver: Saver

    @property
    def directory(self) -> Path:
        """Directory of the checkpoints."""
        return self.run_dir / "checkpoints"

    def begin(self, state: TrainState, metrics: dict[str, float]) -> None:
        """Save the current state, in the background unless configured otherwise. A collective."""
        self.saver.begin(
            state.step,
            fragments=self.engine.fragments_to_save(self.ranks),
            state={"train": state.to_dict(), "optimizer": self.engine.scalars()},
            metadata=self.metadata,
            metrics=metrics,
        )

    def report(self, step_seconds: float | None = None) -> None:
        """Report the outcome of finished saves. A failed save is a prominent warning, but the run continues without
        it."""
        self._say(self.saver.poll(), step_seconds)

    def settle(self) -> None:
        """Wait for the current save and report it."""
        self._say(self.saver.finish())

    def finish(self, state: TrainState, metrics: dict[str, float]) -> None:
        """Save the current state and wait until it is on disk. A collective.

        Raises:
            RunError, MainRankError: if it cannot be saved.
        """
        self.settle()
        self._check_place()
        if self.saver.last_saved == state.step:
            return
        self.begin(state, metrics)
        outcomes = self.saver.finish()
        self._say(outcomes)
        if self.saver.last_saved != state.step:
            reason = next((outcome.failure for outcome in outcomes if outcome.step == state.step), "it did not end")
            raise self.ranks.end(
                f"step {state.step} cannot be saved ({reason}); older checkpoints are untouched: fix the cause "
                "and rerun the same command to resume from the newest of them"
            )

    def _check_place(self) -> None:
        """End the run if its directory no longer exists: the last saves may be in a different place."""
        lost = None
        if self.ranks.is_main:
            try:
                check_in_place(self.run_dir)
            except CheckpointError as error:
                lost = str(error)
        lost = self.ranks.broadcast(lost)
        if lost is not None:
            raise self.ranks.end(lost)

    def _say(self, outcomes: list[Outcome], step_seconds: float | None = None) -> None:
        if not self.ranks.is_main:
            return
        for outcome in outcomes:
            for line in outcome.warnings:
                self.tracker.warn(f"saving step {outcome.step}: {line}")
            if outcome.failure is not None:
                self.tracker.warn(
                    f"saving step {outcome.step} FAILED ({outcome.failure}); older checkpoints are untouched"
                )
                continue
            self.tracker.message(f"saved {outcome.path} ({_figures(outcome, step_seconds)})")
            try:
                write_status(self.run_dir, "running", outcome.step)
            except OSError as error:
                self.tracker.warn(f"status.json cannot be written: {remedied(error)}")


def _figures(outcome: Outcome, step_seconds: float | None) -> str:
    share = f", {outcome.pause_seconds / step_seconds:.0%} of a step" if step_seconds else ""
    size = f"{outcome.size_bytes / 2**20:.1f} MiB in {outcome.write_seconds:.2f} s"
    return f"{size}; training waited {outcome.pause_seconds:.3f} s{share}"
