"""Console output of a run: a live bar on a terminal, plain lines anywhere else, and the same lines in `log.txt`."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from swinv2_train.config.metrics import TERM
from swinv2_train.redact import redact
from swinv2_train.shortage import remedied


class _Console(Console):
    def on_broken_pipe(self) -> None:
        # Rich would end the process. A run whose reader is gone (`| head`, a closed terminal) continues, and so does
        # its log.
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class RunConsole:
    """Messages and progress of one run.

    On a terminal, the progress is a live bar at the bottom, with messages scrolling above it; elsewhere every report is
    one line. `log.txt` gets plain, time-stamped lines of both in either case.

    Args:
        log_file: file that the lines are appended to.
        title: text to the left of the bar.
        total_steps: length of the run in optimizer steps.
        console: the output; stdout by default.
        inputs: name of the samples.
    """

    def __init__(
        self, log_file: Path, title: str, total_steps: int, console: Console | None = None, inputs: str = "images"
    ) -> None:
        self._log_file = log_file
        self._title, self._inputs = title, inputs
        self._total_steps = total_steps
        self._console = console or _Console()
        self._live: Live | None = None
        self._log_lost = False

    def message(self, text: str, style: str = "") -> None:
        """Print a time-stamped line on the console and append it to the log."""
        line = self._log(text)
        self._console.print(Text(line, style), soft_wrap=True)

    def progress(self, record: Mapping[str, float | int | None]) -> None:
        """Report one step: the live bar on a terminal, a line elsewhere; the line goes to the log in either case."""
        numbers = progress_numbers(record, self._inputs)
        step, left = record["step"], format_duration(record.get("seconds_left"))
        line = self._log(f"step {step}/{self._total_steps}  {numbers}  left {left}")
        if not self._console.is_terminal or self._console.is_dumb_terminal:
            self._console.print(Text(line), soft_wrap=True)
            return
        bar = Table.grid(padding=(0, 2))
        share = step / self._total_steps if self._total_steps else 1.0
        bar.add_row(
            Text(self._title, "bold"),
            ProgressBar(total=max(self._total_steps, 1), completed=step, width=30),
            Text(f"{step}/{self._total_steps}"),
            Text(f"{share:.0%}"),
            Text(f"left {left}"),
        )
        if self._live is None:
            # Drawn only on a report: a refresh thread would be running while data workers are forked.
            self._live = Live(console=self._console, auto_refresh=False)
            self._live.start()
        self._live.update(Group(bar, Text(numbers)), refresh=True)

    def close(self) -> None:
        """Leave the bar as it is and release the terminal."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _log(self, text: str) -> str:
        """Prefix the text with the time, append it to the log, and return the line."""
        line = f"{datetime.now():%Y-%m-%d %H:%M:%S} {redact(text)}"
        try:
            with self._log_file.open("a", encoding="utf-8", errors="backslashreplace") as file:
                file.write(line + "\n")
        except OSError as error:
            # A message is often about a failure already; a second failure must not hide it.
            if not self._log_lost:
                print(f"{self._log_file} cannot be written: {remedied(error)}", file=sys.stderr)
            self._log_lost = True
        return line


def progress_numbers(record: Mapping[str, float | int | None], inputs: str = "images") -> str:
    """Return the numbers of a step on one compact line in a fixed order; unknown numbers are omitted.

    Args:
        inputs: name of the samples.
    """
    terms = [(key, f"{key.removeprefix(TERM)} {{:.4f}}") for key in record if key.startswith(TERM)]
    formats = (
        ("loss", "loss {:.4f}"),
        *terms,
        ("grad_norm", "grad norm {:.3f}"),
        ("lr", "lr {:.2e}"),
        ("images_per_second", f"{{:,.1f}} {inputs}/s"),
        ("mfu", "MFU {:.1%}"),
        ("data_wait_share", "data wait {:.1%}"),
        ("memory_gib", "memory {:.1f} GiB"),
        ("skipped_steps", "skipped {:.0f}"),
    )
    return "  ".join(text.format(record[key]) for key, text in formats if record.get(key) is not None)


def format_duration(seconds: float | None) -> str:
    """Return hours, minutes, and seconds, with days if necessary: 0:04:59, 3 d 07:15:00; `?` if unknown."""
    if seconds is None or not math.isfinite(seconds) or seconds < 0:
        return "?"
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    return f"{days} d {hour:02}:{minute:02}:{second:02}" if days else f"{hour}:{minute:02}:{second:02}"
