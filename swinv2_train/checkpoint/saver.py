"""Background saving: training waits only for a copy of the state in host memory, not for the disk.

begin: wait for the current save, copy, agree -> thread: write, retry, prune -> poll: the outcome
"""

from __future__ import annotations

import copy
import functools
import threading
import time
from collections.abc import Callable, Collection, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch

from swinv2_train.checkpoint.disk import check_space, has_space
from swinv2_train.checkpoint.errors import CheckpointError
from swinv2_train.checkpoint.fragment import Fragment
from swinv2_train.checkpoint.layout import list_checkpoints, step_name
from swinv2_train.checkpoint.ranks import Ranks
from swinv2_train.checkpoint.retain import prune
from swinv2_train.checkpoint.save import Saved, save
from swinv2_train.config.schema import CheckpointConfig

_BLOCK_ELEMENTS = 1 << 26
"""Host memory is allocated in blocks of at most this many fp32 elements: 256 MiB."""


@dataclass
class Outcome:
    """Outcome of a save. Every rank has one; they agree on failure unless a rank was lost."""

    step: int
    path: Path
    pause_seconds: float
    """Seconds that training waited: for the previous save and the copy, or in the foreground for the entire save."""
    failure: str | None = None
    """Cause of the failure; None if the checkpoint is complete on disk."""
    attempts: int = 0
    size_bytes: int = 0
    """Of the files of all ranks."""
    write_seconds: float = 0.0
    """Seconds from the start of the first attempt to the end of the last."""
    warnings: list[str] = field(default_factory=list)
    """Why it was not written in the background, attempts that failed before the last one, and errors while removing
    surplus checkpoints."""


def _tensors(fragment: Fragment) -> dict[str, torch.Tensor]:
    values = {item.name: getattr(fragment, item.name) for item in fields(fragment)}
    return {name: value for name, value in values.items() if isinstance(value, torch.Tensor)}


class HostCopy:
    """Host memory for a copy of a rank's fragments, allocated for the first save and reused by later ones.

    It is pinned if the fragments are on a GPU, which makes the copy several times faster.
    """

    def __init__(self) -> None:
        self._layout: list[Any] = []
        self._copies: list[Fragment] = []

    @torch.no_grad()
    def take(self, fragments: list[Fragment]) -> list[Fragment]:
        """Return copies of the fragments, complete on return and valid until the next call.

        Raises:
            CheckpointError: if there is not enough host memory.
        """
        layout = [(item.name, item.shape, item.start, _sizes(item)) for item in fragments]
        if layout != self._layout:
            self._layout, self._copies = [], []  # free the memory before allocating more
            try:
                self._copies = _allocate(fragments)
            except (MemoryError, RuntimeError) as error:
                size = sum(4 * count for item in fragments for count in _sizes(item).values())
                raise CheckpointError(
                    f"a save in the background needs {size / 2**30:.1f} GiB of host memory on every rank, which is not "
                    "available: set checkpoint.background=false"
                ) from error
            self._layout = layout
        devices = set()
        for source, target in zip(fragments, self._copies, strict=True):
            targets = _tensors(target)
            for part, tensor in _tensors(source).items():
                targets[part].copy_(tensor, non_blocking=True)
                devices.add(tensor.device)
        for device in devices:
            if device.type == "cuda":
                torch.cuda.current_stream(device).synchronize()
        return self._copies


def _sizes(fragment: Fragment) -> dict[str, int]:
    return {part: tensor.numel() for part, tensor in _tensors(fragment).items()}


def _allocate(fragments: list[Fragment]) -> list[Fragment]:
    """Return fragments like the given ones, in host memory.

    Pinned memory is rounded up to a power of two, so they share blocks of such a size.
    """
    pinned = any(tensor.is_cuda for item in fragments for tensor in _tensors(item).values())
    wanted = [(index, part, count) for index, item in enumerate(fragments) for part, count in _sizes(item).items()]
    blocks: list[list[tuple[int, str, int]]] = []
    room = -1
    for entry in wanted:
        if entry[2] > room:
            blocks.append([])
            room = max(_BLOCK_ELEMENTS, entry[2])
        blocks[-1].append(entry)
        room -= entry[2]
    parts: list[dict[str, torch.Tensor]] = [{} for _ in fragments]
    for block in blocks:
        memory = torch.empty(sum(count for _, _, count in block), dtype=torch.float32, pin_memory=pinned)
        for (index, part, _), tensor in zip(block, memory.split([count for _, _, count in block]), strict=True):
            parts[index][part] = tensor
    return [replace(item, **tensors) for item, tensors in zip(fragments, parts, strict=True)]


def _no_check() -> None:
    """Check nothing."""


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


class Saver:
    """Writer of a run's checkpoints, one at a time, in the background.

    Args:
        directory: directory of the checkpoints; shared by all ranks.
        ranks: a dedicated communicator, because a thread uses it while training uses another one.
        policy: background or not, retries, and which checkpoints to keep.
        watch: a context manager around the writing, including retries, such as a time limit.
        protected: called on the main rank for the names of checkpoints to keep regardless of the policy.
        damaged: names of checkpoints that were found to be damaged: they do not count as kept, and are not removed.
        check: called on the main rank before anything is written; an exception fails the save.
    """

    def __init__(
        self,
        directory: Path,
        ranks: Ranks,
        policy: CheckpointConfig,
        *,
        watch: Callable[[], AbstractContextManager[None]] = nullcontext,
        protected: Callable[[], Collection[str]] = tuple,
        damaged: Collection[str] = (),
        check: Callable[[], None] = _no_check,
    ) -> None:
        self._directory, self._ranks, self._policy = directory, ranks, policy
        self._watch, self._protected, self._check = watch, protected, check
        self.damaged = set(damaged)
        """Names of checkpoints that do not count; change it only between saves. Saving one of them again removes it."""
        self._host = HostCopy()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._outcomes: list[Outcome] = []
        self.last_saved: int | None = None
        """Step of the last save that this process knows to be complete on disk; None also after a rollback."""

    def begin(
        self,
        step: int,
        *,
        fragments: Iterable[Fragment],
        state: dict[str, Any],
        metadata: dict[str, Any],
        metrics: dict[str, float],
    ) -> None:
        """Save the current state; every argument may be changed afterward. A collective: every rank must call it.

        Waits for the current save first. The arguments are those of `save`; the result is an `Outcome`. If a rank lacks
        host memory for the copy, all ranks write this save in the foreground.
        """
        started = time.perf_counter()
        self.close()
        content = {"fragments": list(fragments), "state": state, "metadata": metadata, "metrics": metrics}
        outcome = Outcome(step, self._directory / step_name(step), 0.0)
        try:
            copied = self._copied(content, outcome) if self._policy.background else None
        except Exception as error:  # for example, from a collective after another rank died
            outcome.failure = _said(error)
            self._end(outcome)
        else:
            if copied is not None:
                if self._started(outcome, copied):
                    outcome.pause_seconds = time.perf_counter() - started
                    return
                content = copied
            self._run(outcome, content)
        outcome.pause_seconds = time.perf_counter() - started

    def _started(self, outcome: Outcome, content: dict[str, Any]) -> bool:
        """Start the writing thread; return False if no thread can be started, so the caller must write."""
        thread = threading.Thread(target=self._run, args=(outcome, content), name="saver", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            outcome.warnings.append(f"{error}; training waits while this save is written")
            return False
        self._thread = thread
        return True

    def _copied(self, content: dict[str, Any], outcome: Outcome) -> dict[str, Any] | None:
        """Return a copy of what is to be saved; None, on all ranks, if any rank lacks the memory."""
        own, failure = [], None
        try:
            own = self._host.take(content["fragments"])
        except Exception as error:  # any exception, because the other ranks would wait forever
            reason = str(error) if isinstance(error, CheckpointError) else _said(error)
            failure = f"rank {self._ranks.rank}: {reason}"
        failures = [reason for reason in self._ranks.gather(failure) if reason]
        if failures:
            self._host = HostCopy()  # frees the memory: another process may need it
            others = f" (and {len(failures) - 1} more)" if len(failures) > 1 else ""
            outcome.warnings.append(f"{failures[0]}{others}; training waits while this save is written")
            return None
        return {**copy.deepcopy({**content, "fragments": ()}), "fragments": own}

    def poll(self) -> list[Outcome]:
        """Return the outcomes of the saves that ended since the last call."""
        with self._lock:
            outcomes, self._outcomes = self._outcomes, []
        return outcomes

    def finish(self) -> list[Outcome]:
        """Wait for the current save, then return like `poll`."""
        self.close()
        return self.poll()

    def close(self) -> None:
        """Wait for the current save."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _run(self, outcome: Outcome, content: dict[str, Any]) -> None:
        try:
            with self._watch():
                saved = self._attempt(outcome, content)
                outcome.size_bytes = saved.size_bytes
                if saved.kept_as is not None:
                    outcome.warnings.append(f"the {outcome.path.name} of another run is kept as {saved.kept_as.name}")
                self.last_saved = outcome.step
                self.damaged.discard(outcome.path.name)
                self._prune(outcome, content["metadata"])
        except CheckpointError as error:
            outcome.failure = str(error)
        except Exception as error:  # for example, another rank died in a collective: a retry is impossible
            outcome.failure = _said(error)
        self._end(outcome)

    def _end(self, outcome: Outcome) -> None:
        with self._lock:
            self._outcomes.append(outcome)

    def _attempt(self, outcome: Outcome, content: dict[str, Any]) -> Saved:
        """Write until it succeeds or all attempts fail. `save` fails on all ranks together, so all of them retry."""
        started = time.perf_counter()
        while True:
            outcome.attempts += 1
            try:
                room = functools.partial(self._have_room, outcome, content["metadata"])
                return save(self._directory, outcome.step, ranks=self._ranks, room=room, **content)
            except CheckpointError as error:
                if outcome.attempts > self._policy.retries:
                    raise
                outcome.warnings.append(f"attempt {outcome.attempts} failed: {error}")
            finally:
                outcome.write_seconds = time.perf_counter() - started
            time.sleep(self._policy.retry_seconds)

    def _have_room(self, outcome: Outcome, metadata: dict[str, Any], size: int) -> None:
        """Ensure that a checkpoint fits, removing old ones first if it does not. Only the main rank calls it.

        It first removes checkpoints that the policy does not keep, for example after `keep_last` was lowered, then
        those that it would not keep after this save. The newest complete checkpoint always stays.
        """
        self._check()
        self._directory.mkdir(parents=True, exist_ok=True)
        last = max(1, self._policy.keep_last)
        for keep in dict.fromkeys((last, max(1, last - 1))):
            if has_space(self._directory, size):
                return
            policy = replace(self._policy, keep_last=keep)
            removed = prune(self._directory, policy, self._protected(), self.damaged, metadata)
            if removed:
                outcome.warnings.append(f"the disk is nearly full: removed {', '.join(removed)} before writing")
        fewer = "lower checkpoint.keep_last, " if last > 1 and len(list_checkpoints(self._directory)) > 1 else ""
        check_space(self._directory, size, f"{fewer}delete other files on this disk, or move the run (run.dir)")

    def _prune(self, outcome: Outcome, metadata: dict[str, Any]) -> None:
        if self._ranks.rank != 0:
            return
        try:
            # Always keep the checkpoint that was just written, even if broken ones of later steps still exist.
            protected = {*self._protected(), outcome.path.name}
            prune(self._directory, self._policy, protected, self.damaged, metadata)
        except Exception as error:  # the checkpoint is complete: an error here must not fail the save
            outcome.warnings.append(f"removing surplus checkpoints failed: {error}")
