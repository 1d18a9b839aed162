"""Faults injected into a rank, and the record of the samples that it consumed.

A rank that runs with these patches appends to `<trace>/start-<n>-rank-<r>.jsonl`: first who it is, then a line for
every step that it finished. The lines are written without a buffer, so a kill loses none.
"""

from __future__ import annotations

import errno
import functools
import json
import os
import threading
import time
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

VARIABLE = "SWINV2_TEST_FAULTS"
"""The environment variable that holds a rank's `Faults` as JSON."""
SAVING = "/.saving-"
_POLL_SECONDS = 0.01
_FIRST_STEP_SECONDS = 0.1
"""Guess for how long the first step takes."""


@dataclass(frozen=True)
class Hit:
    """A signal that a rank sends itself at a given place."""

    where: str
    """step: inside a step. after: right after a step. save: while it writes. evaluation: while it evaluates."""
    count: int
    """Number of the step, save, or evaluation, counted from 1 at the start of the process."""
    signal: int
    rank: int | None = None
    """None: every rank."""
    fraction: float = 0.5
    """step: how far into it, as a part of the time that the one before took."""
    flush: int = 1
    """save: before which of the rank's files is forced to the disk, counted from 1."""


@dataclass(frozen=True)
class Faults:
    """Everything planted in the ranks of one start."""

    trace: str
    """Folder of the records; `start` numbers the files of this start in it."""
    start: int
    world_size: int
    harness: int
    """Process id of who planted them; a rank does not wait for somebody who is gone."""
    hits: tuple[Hit, ...] = ()
    nan_positions: tuple[int, ...] = ()
    """Samples whose picture is NaN when it reaches the model."""
    hold_after: int = 0
    """Every rank waits after this step (counted like those of a hit) until `release` of the job; 0: never."""
    slow_saves: float = 0.0
    """Seconds that each file of a checkpoint takes longer."""
    failing_saves: int = 0
    """Number of times that a rank finds the disk full when it writes a checkpoint."""

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_environment(cls) -> Faults:
        values = json.loads(os.environ[VARIABLE])
        values["hits"] = tuple(Hit(**hit) for hit in values["hits"])
        return cls(**values | {"nan_positions": tuple(values["nan_positions"])})

    def record(self, rank: int) -> Path:
        """The file that a rank of this start writes."""
        return Path(self.trace) / f"start-{self.start:03d}-rank-{rank}.jsonl"

    @property
    def held(self) -> Path:
        """Made by a rank that waits."""
        return Path(self.trace) / f"start-{self.start:03d}-held"

    @property
    def released(self) -> Path:
        """Made by the job to let the waiting ranks go on."""
        return Path(self.trace) / f"start-{self.start:03d}-released"


class Rank:
    """The patches of this process, and what they count."""

    def __init__(self, faults: Faults) -> None:
        self.faults, self.rank = faults, int(os.environ.get("RANK", "0"))
        self.hits = [hit for hit in faults.hits if hit.rank in (None, self.rank)]
        self.steps = self.evaluations = self.failed_saves = 0
        self.step_seconds = _FIRST_STEP_SECONDS
        self.saves: list[str] = []
        """The folders that were written to, in order."""
        self.flushes = 0
        """Files of the newest of them that were forced to the disk."""
        Path(faults.trace).mkdir(parents=True, exist_ok=True)
        self._file = os.open(faults.record(self.rank), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self.write({"pid": os.getpid(), "rank": self.rank, "world_size": faults.world_size})

    def write(self, line: dict[str, Any]) -> None:
        os.write(self._file, (json.dumps(line) + "\n").encode())

    def due(self, where: str, count: int) -> list[Hit]:
        return [hit for hit in self.hits if (hit.where, hit.count) == (where, count)]

    def strike(self, hits: list[Hit]) -> None:
        for hit in hits:
            self.write({"hit": hit.where, "signal": hit.signal})
            os.kill(os.getpid(), hit.signal)

    def apply(self) -> None:
        """Patch the product in this process."""
        from swinv2_train.engine.loop import Trainer
        from swinv2_train.tasks.simmim import SimMIM

        Trainer.train_step = self.around_step(Trainer.train_step)  # type: ignore[method-assign]
        SimMIM.evaluate = self.around_evaluation(SimMIM.evaluate)  # type: ignore[method-assign]
        SimMIM.loss = self.around_loss(SimMIM.loss)  # type: ignore[method-assign]
        os.fsync = self.around_flush(os.fsync)

    def around_step(self, train_step: Callable[..., Any]) -> Callable[..., Any]:
        """Hold, hit, and record the step's samples and a fingerprint of the weights that it left."""

        @functools.wraps(train_step)
        def patched(trainer: Any, current: Any) -> Any:
            self.steps += 1
            for hit in self.due("step", self.steps):
                delay = hit.fraction * self.step_seconds
                threading.Thread(target=self.strike_later, args=(delay, hit), daemon=True).start()
            step = trainer.state.step + 1
            positions = [position for batch in current.batches for position in batch["position"].tolist()]
            begin = time.monotonic()
            result = train_step(trainer, current)
            if trainer.state.step == step:  # else a stop signal came first
                self.step_seconds = time.monotonic() - begin
                self.write({"step": step, "positions": positions, "weights": fingerprint(trainer.engine.module)})
                self.strike(self.due("after", self.steps))
                if self.steps == self.faults.hold_after:
                    self.hold()
            return result

        return patched

    def strike_later(self, seconds: float, hit: Hit) -> None:
        time.sleep(seconds)
        self.strike([hit])

    def hold(self) -> None:
        self.faults.held.touch()
        while not self.faults.released.exists():
            if not Path(f"/proc/{self.faults.harness}").exists():
                os._exit(1)
            time.sleep(_POLL_SECONDS)

    def around_evaluation(self, evaluate: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(evaluate)
        def patched(*arguments: Any, **named: Any) -> Any:
            self.evaluations += 1
            self.strike(self.due("evaluation", self.evaluations))
            return evaluate(*arguments, **named)

        return patched

    def around_loss(self, loss: Callable[..., Any]) -> Callable[..., Any]:
        planted = set(self.faults.nan_positions)

        @functools.wraps(loss)
        def patched(task: Any, model: Any, batch: dict[str, Any]) -> Any:
            rows = [row for row, position in enumerate(batch["position"].tolist()) if position in planted]
            return loss(task, _NanInput(model, rows) if rows else model, batch)

        return patched

    def around_flush(self, fsync: Callable[[int], None]) -> Callable[[int], None]:
        """Hit, fail or take longer where a file of an unfinished checkpoint is forced to the disk."""

        def patched(descriptor: int) -> None:
            path = os.readlink(f"/proc/self/fd/{descriptor}") if isinstance(descriptor, int) else ""
            if SAVING in path and not os.path.isdir(path):
                self.flushing(path)
            fsync(descriptor)

        return patched

    def flushing(self, path: str) -> None:
        folder = path[: path.index("/", path.index(SAVING) + 1)]
        if not self.saves or self.saves[-1] != folder:
            self.saves.append(folder)
            self.flushes = 0
        self.flushes += 1
        time.sleep(self.faults.slow_saves)
        self.strike([hit for hit in self.due("save", len(self.saves)) if hit.flush == self.flushes])
        if self.failed_saves < self.faults.failing_saves:
            self.failed_saves += 1
            self.write({"full": path})
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)


class _NanInput:
    """A model whose input has NaN in some rows."""

    def __init__(self, model: Any, rows: list[int]) -> None:
        self._model, self._rows = model, rows

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def __call__(self, images: Any, *more: Any, **named: Any) -> Any:
        images = images.clone()
        images[self._rows] = float("nan")
        return self._model(images, *more, **named)


def fingerprint(model: Any) -> int:
    """A checksum of a model's weights."""
    import torch

    checksum = 0
    for parameter in model.parameters():
        checksum = zlib.crc32(parameter.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes(), checksum)
    return checksum
