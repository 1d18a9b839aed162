"""`metrics.jsonl`: one JSON object per line, one line per optimizer step or evaluation.

Every other display of a run is derived from this file. It stays valid for strict JSON parsers (non-finite numbers
become null) and contains each step once, even after a crash and a resume.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from swinv2_train.reading import UnreadableError, is_count, parse_json, put_aside
from swinv2_train.writing import write_bytes


def json_number(value: float | int | None) -> float | int | None:
    """Return the value for strict JSON: integers stay integers, nan and the infinities become None."""
    if value is None or isinstance(value, int):
        return value
    number = float(value)
    return number if math.isfinite(number) else None


class MetricsFile:
    """Appends to `metrics.jsonl`; drops what a crashed run wrote past the step that is resumed from.

    A run of weeks must not end because a disk is full for an hour: lines that cannot be written wait in memory, in
    order, and are retried with the next ones.

    Args:
        path: the file; need not exist.
        start_step: step that the run resumes from; 0 for a run from the beginning, which starts an empty file.

    Raises:
        OSError: with a one-sentence message, if the file cannot be written at the start.
    """

    def __init__(self, path: Path, start_step: int) -> None:
        self.path = path
        self.failure: str | None = None
        """Why the file is not up to date; None if it is."""
        self._waiting: list[bytes] = []
        """Lines that are not in the file yet."""
        self._rewind_to: int | None = None
        """Step past which lines must still be dropped from the file, but not from the waiting ones; None if none."""
        self._whole: int | None = None
        """Length of the file before the remains of a failed write, in bytes; None if there are none."""
        try:
            if path.is_dir():  # a folder in its place is kept, and does not end the run
                put_aside(path)
            # A run from step 0 keeps nothing: a line at step 0 is an evaluation that will run again.
            self.dropped_lines = self._rewrite(start_step if start_step > 0 else -1)
            """Lines dropped at start: past `start_step`, or truncated by a crash."""
            self.missing_steps = self._missing(start_step)
            """Steps up to `start_step` without a line, because the file was damaged or removed."""
        except OSError as error:
            reason = _reason(error)
            raise OSError(
                error.errno,
                f"cannot write the metrics: {reason}; make room or fix the path, then rerun the same command",
                str(path),
            ) from error

    @property
    def waiting(self) -> int:
        """Number of lines that are not in the file yet."""
        return len(self._waiting)

    def append(self, records: Iterable[Mapping[str, float | int | None]]) -> None:
        """Write one line per record and flush it to the operating system; if that fails, `failure` is set."""
        for record in records:
            values = {key: json_number(value) for key, value in record.items()}
            self._waiting.append(json.dumps(values, allow_nan=False).encode() + b"\n")
        self.settle()

    def rewind(self, step: int) -> None:
        """Drop the lines past `step`, written or waiting; if that fails, `failure` is set."""
        self._waiting = [line for line in self._waiting if _step_of(line) <= step]
        self._rewind_to = step if self._rewind_to is None else min(step, self._rewind_to)
        self.settle()

    def settle(self) -> None:
        """Complete all pending changes of the file; if that fails, `failure` is set."""
        self.failure = None
        try:
            self._cut()
            if self._rewind_to is not None:
                self._rewrite(self._rewind_to)
                self._rewind_to = None
            if self._waiting:
                self._write()
        except OSError as error:
            self.failure = _reason(error)
            with contextlib.suppress(OSError):
                self._cut()

    def _cut(self) -> None:
        """Remove the remains of a failed write, which may be half a line."""
        if self._whole is not None and self._is_there() and self.path.stat().st_size > self._whole:
            os.truncate(self.path, self._whole)
        self._whole = None

    def _write(self) -> None:
        # Opened per call and unbuffered, so that no data stays in a buffer after an error; even closing may fail.
        with self.path.open("ab", buffering=0) as file:
            self._whole = os.fstat(file.fileno()).st_size
            data = memoryview(b"".join(self._waiting))
            while data:
                data = data[file.write(data) :]
        self._whole = None
        self._waiting.clear()

    def _missing(self, step: int) -> int:
        if not step:
            return 0
        with self.path.open("rb") if self._is_there() else io.BytesIO() as file:
            return step - len({_step_of(line) for line in file if b'"loss":' in line})

    def _is_there(self) -> bool:
        self.path.parent.stat()  # raises if the directory is gone: a lost disk is not an empty file
        return self.path.exists()

    def _rewrite(self, step: int) -> int:
        """Keep the lines up to `step`, in a new file that replaces the old one. Return the number of dropped lines."""
        if not self._is_there():
            return 0
        dropped = 0

        def kept(old: Iterable[bytes]) -> Iterator[bytes]:
            nonlocal dropped
            for line in old:
                if _step_of(line) <= step:
                    yield line.rstrip(b"\r\n") + b"\n"
                else:
                    dropped += 1

        with self.path.open("rb") as old:
            write_bytes(self.path, kept(old), flush=True)
        return dropped


def _reason(error: OSError) -> str:
    return error.strerror or str(error) or type(error).__name__


def _step_of(line: bytes) -> float:
    """Return the step of a line; infinity if it is truncated or not a record, so that it counts as past every step."""
    try:
        record: Any = parse_json(line)
        step = record["step"]
    except (UnreadableError, KeyError, TypeError):
        return math.inf
    return step if is_count(step) else math.inf
