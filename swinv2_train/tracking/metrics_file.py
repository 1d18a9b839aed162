"""`metrics.jsonl`: one JSON object per line, one line per optimizer step or evaluation.

The file is the record of a run that every other display is drawn from, so it stays valid for strict JSON parsers
(numbers that are not finite become null) and, after a crash and a resume, holds each step once.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


def json_number(value: float | int | None) -> float | int | None:
    """The value as strict JSON can hold it: whole numbers stay whole, nan and the infinities become None."""
    if value is None or isinstance(value, int):
        return value
    number = float(value)
    return number if math.isfinite(number) else None


class MetricsFile:
    """Appends to `metrics.jsonl`; drops what a crashed run wrote past the step that is resumed from.

    Args:
        path: the file; it need not exist.
        start_step: the step the run continues from; 0 for a run from the beginning, which starts an empty file.

    Raises:
        OSError: one sentence, when the disk is full or the file cannot be written.
    """

    def __init__(self, path: Path, start_step: int) -> None:
        self.path = path
        # From step 0 nothing is kept: what stands at step 0 is an evaluation that will run again.
        self.dropped_lines = self.rewind(start_step if start_step > 0 else -1) if path.exists() else 0
        """Lines dropped at start: past `start_step`, or torn by a crash."""

    def append(self, records: Iterable[Mapping[str, float | int | None]]) -> None:
        """Write one line per record and hand them to the operating system.

        Raises:
            OSError: one sentence naming the file and the mend.
        """
        lines = [
            json.dumps({key: json_number(value) for key, value in record.items()}, allow_nan=False)
            for record in records
        ]
        if not lines:
            return
        try:
            # Opened per call, so that no buffered half line outlives an error.
            with self.path.open("a", encoding="utf-8") as file:
                file.write("\n".join(lines) + "\n")
        except OSError as error:
            raise self._explained(error) from error

    def rewind(self, step: int) -> int:
        """Keep the lines up to `step`, in a new file that replaces the old one whole. Gives the lines dropped.

        Raises:
            OSError: one sentence naming the file and the mend.
        """
        temporary = self.path.with_name(self.path.name + ".tmp")
        dropped = 0
        try:
            with self.path.open("rb") as old, temporary.open("wb") as new:
                for line in old:
                    if _step_of(line) <= step:
                        new.write(line.rstrip(b"\r\n") + b"\n")
                    else:
                        dropped += 1
                new.flush()
                os.fsync(new.fileno())
            temporary.replace(self.path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise self._explained(error) from error
        return dropped

    def _explained(self, error: OSError) -> OSError:
        reason = error.strerror or str(error)
        return OSError(
            error.errno,
            f"cannot write the metrics: {reason}; make room or mend the path, then start the same command again",
            str(self.path),
        )


def _step_of(line: bytes) -> float:
    """The step of a line; infinity when the line is torn or is no record, so that it counts as past every step."""
    try:
        record: Any = json.loads(line)
        step = record["step"]
    except (ValueError, KeyError, TypeError):
        return math.inf
    return step if isinstance(step, int) and step >= 0 else math.inf
