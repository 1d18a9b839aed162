"""Tracker of a run: every number and figure goes through it to the run directory, the console, and W&B.

Run directory: metrics.jsonl (the record), tb/, figures/, log.txt, wandb/, and wandb_*.txt. Only the main rank writes;
on the others every method does nothing, except that warnings go to stderr with the rank.
"""

from __future__ import annotations

import io
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from PIL import Image
from rich.console import Console

from swinv2_train.config.schema import Config
from swinv2_train.redact import redact
from swinv2_train.shortage import remedied
from swinv2_train.text import counted
from swinv2_train.tracking.console import RunConsole
from swinv2_train.tracking.metrics_file import MetricsFile
from swinv2_train.tracking.sinks import Sink, TensorBoardSink, WandbSink
from swinv2_train.writing import write_bytes


class Tracker:
    """Records one start or resume of a run.

    First drop what a crashed run recorded past `start_step`, from metrics.jsonl and from TensorBoard, so that every
    step is recorded once. W&B keeps both passes over such steps.

    Args:
        run_dir: the run directory; created if necessary.
        config: the resolved config.
        total_steps: length of the run in optimizer steps.
        start_step: step that the run resumes from; 0 for a run from the beginning.
        is_main: True if this process is global rank 0.
        console: the output; stdout by default.

    Raises:
        ConfigError: if W&B should be online but cannot be reached, or the user is not logged in.
        OSError: if metrics.jsonl cannot be written at the start. Later that is a warning, and the lines wait in memory.
    """

    def __init__(
        self,
        run_dir: Path,
        config: Config,
        *,
        total_steps: int,
        start_step: int,
        is_main: bool,
        console: Console | None = None,
    ) -> None:
        self.run_dir = Path(run_dir)
        self.is_main = is_main
        self._sinks: list[Sink] = []
        self._closed = not is_main
        if not is_main:
            return
        self.run_dir.mkdir(parents=True, exist_ok=True)
        inputs = "clips" if config.data.frames else "images"
        self._console = RunConsole(self.run_dir / "log.txt", config.run.name, total_steps, console, inputs)
        # W&B first: if it refuses to start, the record of the run is still untouched.
        if config.tracking.wandb != "disabled":
            wandb = WandbSink(self.run_dir, config)
            self._sinks.append(wandb)
            self.message(wandb.where)
        self._metrics = MetricsFile(self.run_dir / "metrics.jsonl", start_step)
        self._outage = False
        """True if the last write to metrics.jsonl failed."""
        if self._metrics.dropped_lines:
            count = self._metrics.dropped_lines
            self.message(f"dropped {counted(count, 'line')} of metrics.jsonl, past step {start_step} or damaged")
        if self._metrics.missing_steps:
            count = self._metrics.missing_steps
            self.warn(
                f"metrics.jsonl has no line for {count} of the steps up to {start_step}: it was damaged, removed, or "
                "could not be written"
            )
        if config.tracking.tensorboard:
            self._sinks.append(TensorBoardSink(self.run_dir / "tb", start_step, config))

    def log_steps(self, records: Sequence[Mapping[str, float | int | None]]) -> None:
        """Record optimizer steps, in order, and report the last of them on the console.

        Keys: step, samples_seen, loss, grad_norm, lr, images_per_second (all ranks together), mfu (model FLOPs
        utilization, 0 to 1; absent if the peak of the device is not known), data_wait_share (0 to 1), skipped_steps,
        memory_gib, seconds_left, and what the task adds. An unknown value is None.
        """
        if self._closed or not records:
            return
        self._metrics.append(records)
        self._watch_metrics()
        for record in records:
            step, values = record["step"], _known({f"train/{key}": record[key] for key in record if key != "step"})
            self._to_sinks(lambda sink, step=step, values=values: sink.scalars(step, values))
        self._to_sinks(lambda sink: sink.flush())
        self._console.progress(records[-1])

    def log_evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record an evaluation as a separate line and report it. Keys get the prefix `eval/` if they lack it."""
        if self._closed:
            return
        values = {f"eval/{key.removeprefix('eval/')}": value for key, value in metrics.items()}
        self._metrics.append([{"step": step, **values}])
        self._watch_metrics()
        self._to_sinks(lambda sink: sink.scalars(step, values))
        self._to_sinks(lambda sink: sink.flush())
        shown = "  ".join(f"{key} {_number(value)}" for key, value in values.items())
        self.message(f"evaluation at step {step}: {shown}")

    def log_figure(self, step: int, name: str, image: Image.Image) -> Path:
        """Save a figure as figures/<name>-step-<8 digits>.png and forward it. Return its path, on every rank.

        If it cannot be written, this is only a warning, because the run is worth more.
        """
        path = self.run_dir / "figures" / f"{name}-step-{step:08}.png"
        if self._closed:
            return path
        stream = io.BytesIO()
        image.save(stream, format="PNG")
        try:
            path.parent.mkdir(exist_ok=True)
            write_bytes(path, stream.getvalue())
        except OSError as error:
            self.warn(f"{path} was not written: {remedied(error)}")
        self._to_sinks(lambda sink: sink.figure(step, f"figures/{name}", image))
        self._to_sinks(lambda sink: sink.flush())
        return path

    def rewind(self, step: int) -> None:
        """Return to a step: drop what was recorded past it."""
        if self._closed:
            return
        self._metrics.rewind(step)
        self._watch_metrics()
        self._to_sinks(lambda sink: sink.rewind(step))

    def message(self, text: str) -> None:
        """Print a time-stamped line on the console and append it to log.txt."""
        if self.is_main:
            self._console.message(text)

    def warn(self, text: str) -> None:
        """Warn: like a message on the main rank, and on the others a line on stderr with the rank."""
        if self.is_main:
            self._console.message(f"warning: {text}", style="yellow")
        else:
            print(redact(f"[rank {os.environ.get('RANK', '?')}] warning: {text}"), file=sys.stderr)

    def close(self, exit_status: str) -> None:
        """Write everything and release the terminal. Closing twice is allowed; messages still work afterward.

        Args:
            exit_status: finished, stopped (by a signal, to be resumed: W&B shows it as preempted), or failed.
        """
        if self._closed:
            return
        self._closed = True
        self._console.close()
        self._settle_metrics()
        self._to_sinks(lambda sink: sink.close(exit_status))
        self.message(f"run {exit_status}")

    def _watch_metrics(self) -> None:
        """Report once when metrics.jsonl cannot be written, and when it can be written again."""
        failure = self._metrics.failure
        if failure and not self._outage:
            self.warn(
                f"{self._metrics.path} cannot be written ({failure}): its lines wait in memory; make room "
                "or fix the path, because they are lost if the run ends first"
            )
        if self._outage and not failure:
            self.message(f"{self._metrics.path} can be written again: nothing is missing in it")
        self._outage = failure is not None

    def _settle_metrics(self) -> None:
        """Try a last time to write the waiting lines."""
        if not self._metrics.failure:
            return
        self._metrics.settle()
        self._watch_metrics()
        if failure := self._metrics.failure:
            count = self._metrics.waiting
            lost = f"lines LOST: {count}" if count else "lines past the rollback stay in it"
            self.warn(f"{self._metrics.path} still cannot be written ({failure}): {lost}")

    def _to_sinks(self, call: Callable[[Sink], None]) -> None:
        """Call every sink. Drop one that fails, with a warning: a long run must not end because of a copy of its
        numbers."""
        for sink in list(self._sinks):
            try:
                call(sink)
            except Exception as error:
                self._sinks.remove(sink)
                self.warn(f"{sink.name} failed and is disabled from now on: {error}")


def _number(value: float) -> str:
    """Return a metric for display: nan, such as of absent classes, as `none`, as in the tables of swinv2-eval."""
    if math.isnan(value):
        return "none"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}"


def _known(values: Mapping[str, float | int | None]) -> dict[str, float | int]:
    return {key: value for key, value in values.items() if value is not None}
