"""Watchdog: ends a run that hangs, with the stacks of every rank on record.

A thread of each rank compares the duration of the rank's current activity with its limit. If one takes too long, that
rank leaves a marker in the run directory, and the other ranks follow it. Each writes the stacks of all its threads to
`<run>/stacks/step-00000012/rank-00003.txt` and ends. An empty file there belongs to a rank that could not even do that:
it was suspended, or its host is gone.

Three things may hang together with the training, and none may keep a rank from ending:

- the file system: only dedicated threads access it, and no other thread waits for them for long;
- Python itself, if foreign code holds the GIL: a timer of `faulthandler`, which needs no Python, is reset while the
  watchdog's thread runs, and otherwise writes the stacks and ends the process;
- another rank: the ranks share only the marker, and each has its own clock.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import re
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import psutil

from swinv2_train.checkpoint.layout import step_name
from swinv2_train.config.schema import WatchdogConfig
from swinv2_train.exit_codes import FAILED
from swinv2_train.launch.environment import several_hosts
from swinv2_train.launch.status import read_status, write_status
from swinv2_train.reading import UnreadableError, read_object

if TYPE_CHECKING:
    from swinv2_train.launch.ranks import Ranks

STACKS = "stacks"
"""Directory in the run directory for the output of watchdogs."""
LOOK_SECONDS = 1.0
"""Seconds between two checks of a rank: of its own clock, and for the marker of another rank."""
WRITE_SECONDS = 20.0
"""Seconds that a rank waits for the file system before it writes to stderr instead."""
GRACE_SECONDS = 10.0
"""Seconds that a rank stays after it has written: a launcher ends the others as soon as the first one exits."""
FAR_GRACE_SECONDS = 60.0
"""The same for several hosts: a network file system may show a marker with such a delay."""
MARGIN_SECONDS = 15.0
"""Seconds after the watchdog's thread stops at which the timer of `faulthandler` ends the process."""
_TRACED = 64
"""Number of most recent collectives to write from torch's flight recorder."""
_SETTINGS = {"start": "start_minutes", "step": "step_minutes", "evaluation": "eval_minutes", "save": "save_minutes"}
_SENTENCES = {
    "start": "the first step is not done",
    "step": "step {step} is not done",
    "evaluation": "the evaluation of step {step} is not done",
    "save": "the checkpoint of step {step} is not saved",
}


@dataclass(frozen=True)
class _Activity:
    name: str
    done: int
    """Finished steps."""
    begun: float
    limit: float
    """Seconds."""

    @property
    def left(self) -> float:
        return self.begun + self.limit - time.monotonic()

    @property
    def step(self) -> int:
        """Step that the activity belongs to."""
        return self.done + (self.name == "step")

    def overdue(self) -> str:
        what = _SENTENCES[self.name].format(step=self.step)
        return f"{what} after {self.limit / 60:.3g} minutes (watchdog.{_SETTINGS[self.name]})"


@dataclass(frozen=True)
class _Hang:
    what: str
    """Message about the activity that took too long."""
    folder: str
    """Folder in `stacks` in which the ranks write."""
    is_ours: bool
    """True if this rank detected it first."""


class Watchdog:
    """Ends this rank, with its stacks on record, if an activity takes longer than its limit.

    Every rank must create one; creating it is a collective. The clock runs from `start` to `close`.

    Args:
        limits: minutes for each activity.
        directory: the run directory, which all ranks share.
        ranks: the other ranks.
    """

    def __init__(self, limits: WatchdogConfig, directory: Path, ranks: Ranks) -> None:
        self._limits = {name: 60 * getattr(limits, setting) for name, setting in _SETTINGS.items()}
        self._directory, self._ranks = directory, ranks
        self.doing = "starting"
        """Current work of the main thread, in a few words, for the report."""
        # Named after this start, so that a marker of an earlier start has no effect, however late it becomes visible.
        self._own = directory / STACKS / f"start-{ranks.broadcast(secrets.token_hex(4))}"
        self._marker = self._own / "incident.json"
        self._last_words: TextIO | None = None
        self._main = self._activity("start", 0)
        self._background: dict[object, _Activity] = {}
        self._lock = threading.Lock()
        self._elsewhere: _Hang | None = None
        self._closed = threading.Event()
        self._look_seconds = min(LOOK_SECONDS, min(self._limits.values()) / 4)
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def start(self) -> None:
        """Start to watch, with the activity `start`."""
        try:
            self._own.mkdir(parents=True, exist_ok=True)
            self._last_words = (self._own / _rank_file(self._ranks.rank)).open("w")
            if self._ranks.is_main:
                _sweep(self._own)
        except OSError as error:
            _say(f"the watchdog cannot write to {self._own} ({error.strerror}): it will write to stderr")
        self.now("start", 0)
        self._thread.start()
        threading.Thread(target=self._look_for_marker, name="watchdog's look-out", daemon=True).start()

    def close(self) -> None:
        """Stop watching."""
        self._closed.set()
        if self._thread.is_alive():
            self._thread.join()
        faulthandler.cancel_dump_traceback_later()
        if self._last_words is not None:
            self._last_words.close()
            with contextlib.suppress(OSError):
                (self._own / _rank_file(self._ranks.rank)).unlink()
                self._own.rmdir()  # the last rank succeeds
                self._own.parent.rmdir()

    def __enter__(self) -> Watchdog:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def now(self, activity: str, step: int) -> None:
        """Begin an activity of the main thread and restart its clock. Costs a microsecond.

        Args:
            activity: `start`, `step`, `evaluation`, or `save`.
            step: step that was completed last.
        """
        self._main = self._activity(activity, step)

    @contextlib.contextmanager
    def background(self, activity: str) -> Iterator[None]:
        """Run an activity of another thread in the background, with its own clock."""
        key = object()
        with self._lock:
            self._background[key] = self._activity(activity, self._main.done)
        try:
            yield
        finally:
            with self._lock:
                del self._background[key]

    def _activity(self, name: str, step: int) -> _Activity:
        return _Activity(name, step, time.monotonic(), self._limits[name])

    def _activities(self) -> list[_Activity]:
        with self._lock:
            return [self._main, *self._background.values()]

    def _watch(self) -> None:
        while not self._closed.is_set():
            nearest = min(self._activities(), key=lambda activity: activity.left)
            if nearest.left <= 0:
                by = f"rank {self._ranks.rank} on {socket.gethostname()}"
                self._end(_Hang(f"{by}: {nearest.overdue()}", step_name(nearest.step), is_ours=True))
            if self._elsewhere is not None:
                self._end(self._elsewhere)
            self._set_timer(nearest.left + MARGIN_SECONDS)
            self._closed.wait(self._look_seconds)

    def _set_timer(self, seconds: float) -> None:
        # It needs a native thread, which a limit on memory or threads may refuse: then this thread watches alone.
        with contextlib.suppress(RuntimeError, MemoryError):
            faulthandler.dump_traceback_later(max(seconds, self._look_seconds), exit=True, file=self._last_words or 2)

    def _look_for_marker(self) -> None:
        while not self._closed.wait(self._look_seconds):
            with contextlib.suppress(OSError):
                if self._marker.exists():
                    self._elsewhere = self._read_marker()
                    return

    def _read_marker(self) -> _Hang:
        for _ in range(5):  # it may exist without content yet
            with contextlib.suppress(OSError, UnreadableError):
                marker = read_object(self._marker)
                what, folder = marker.get("what"), marker.get("folder")
                if isinstance(what, str) and isinstance(folder, str) and re.fullmatch(r"[\w-]+", folder):
                    return _Hang(what, folder, is_ours=False)
            time.sleep(self._look_seconds / 5)
        return _Hang("another rank hangs", step_name(self._main.step), is_ours=False)

    def _end(self, hang: _Hang) -> None:
        """Write the report, wait for the other ranks, and end the process."""
        grace = FAR_GRACE_SECONDS if several_hosts() else GRACE_SECONDS
        self._set_timer(5 * WRITE_SECONDS + grace + MARGIN_SECONDS)
        found: list[_Hang] = []
        if _within(WRITE_SECONDS, lambda: found.append(self._claim(hang))):
            hang = found[0]
        path = self._directory / STACKS / hang.folder / _rank_file(self._ranks.rank)
        if _within(WRITE_SECONDS, lambda: self._write_report(hang, path)):
            place = f"the stacks of all ranks are in {path.parent}"
        else:
            place = f"{path} could not be written, so the stacks of rank {self._ranks.rank} are above"
            _within(WRITE_SECONDS, lambda: self._write_report(hang, 2))
        if hang.is_ours:  # only this rank reports; the main rank may be the one that hangs
            _say(f"{hang.what}: {place}; rerun the same command to resume from the newest checkpoint")
            _within(WRITE_SECONDS, self._write_status)
        if self._ranks.world_size > 1:
            time.sleep(grace)
            if hang.is_ours:
                _within(WRITE_SECONDS, lambda: self._collect(hang))
        os._exit(FAILED)

    def _claim(self, hang: _Hang) -> _Hang:
        """Create the marker, or follow the existing one."""
        if not hang.is_ours:
            return hang
        try:
            with self._marker.open("x") as file:
                json.dump({"what": hang.what, "folder": hang.folder}, file)
        except FileExistsError:
            return self._read_marker()
        return hang

    def _write_status(self) -> None:
        known = self._main.done or read_status(self._directory).get("step", 0)  # unknown here at the start
        write_status(self._directory, "failed", known)

    def _write_report(self, hang: _Hang, file: Path | int) -> None:
        if isinstance(file, Path):
            file.parent.mkdir(parents=True, exist_ok=True)
        with open(file, "w", closefd=file != 2) as opened:
            self._report(hang, opened)

    def _collect(self, hang: _Hang) -> None:
        # A rank whose Python hangs still has its file open: what its timer writes later ends up at the new path.
        for file in self._own.glob("rank-*.txt"):
            place = self._directory / STACKS / hang.folder / file.name
            if not place.exists():
                file.rename(place)

    def _report(self, hang: _Hang, file: TextIO) -> None:
        doing = "; ".join(
            f"{activity.name} (step {activity.step}) for {time.monotonic() - activity.begun:.0f} s"
            for activity in self._activities()
        )
        print(hang.what, file=file)
        print(f"this is rank {self._ranks.rank} of {self._ranks.world_size}, {_process()}", file=file)
        print(f"doing: {doing}", file=file)
        print(f"where: {self.doing}", file=file)
        print(f"last collective: {self._ranks.last_collective}", file=file)
        print(f"main thread: {threading.main_thread().ident:#018x}\n", file=file, flush=True)
        faulthandler.dump_traceback(file, all_threads=True)
        print("\nchild processes:", *_children(), sep="\n", file=file, flush=True)
        print("\ncollectives, from torch's flight recorder:", *_flight_recorder(), sep="\n", file=file, flush=True)


def _rank_file(rank: int) -> str:
    return f"rank-{rank:05d}.txt"


def _process() -> str:
    return f"host {socket.gethostname()}, pid {os.getpid()}, {time.strftime('%Y-%m-%d %H:%M:%S %z')}"


def _sweep(own: Path) -> None:
    """Remove leftovers of earlier starts: markers, and files without content."""
    for directory in own.parent.glob("start-*"):
        if directory != own:
            with contextlib.suppress(OSError):
                for file in directory.iterdir():
                    if file.suffix != ".txt" or file.stat().st_size == 0:
                        file.unlink()
                directory.rmdir()


def _within(seconds: float, work: Callable[[], Any]) -> bool:
    """Return whether work finished in time and without an error; otherwise it continues in its thread."""
    done = threading.Event()

    def run() -> None:
        with contextlib.suppress(Exception):
            work()
            done.set()

    thread = threading.Thread(target=run, name="watchdog's writer", daemon=True)
    try:
        thread.start()
    except RuntimeError:  # no more threads: rather risk waiting than write nothing
        run()
        return done.is_set()
    thread.join(seconds)
    return done.is_set()


def _say(text: str) -> None:
    with contextlib.suppress(OSError):
        os.write(2, f"swinv2-train: {text}\n".encode())


def _children() -> list[str]:
    lines = []
    with contextlib.suppress(psutil.Error):
        for child in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                lines.append(f"{child.pid} {child.status()} {' '.join(child.cmdline())[:120]}")
    return lines or ["none"]


def _flight_recorder() -> list[str]:
    """Return the newest collectives of all groups of this process, one JSON object per line, if torch records them."""
    from torch._C import _distributed_c10d as library

    lines = []
    for backend, name in (("gloo", "_dump_fr_trace_json"), ("nccl", "_dump_nccl_trace_json")):
        dump = getattr(library, name, None)  # not a public interface, and incomplete without NCCL
        if dump is not None:
            with contextlib.suppress(Exception):
                entries = json.loads(dump()).get("entries", [])[-_TRACED:]
                lines += [f"{backend} {json.dumps(entry, sort_keys=True)}" for entry in entries]
    return lines or ["none on record"]
