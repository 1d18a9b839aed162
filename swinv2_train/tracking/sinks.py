"""TensorBoard and Weights & Biases: copies of `metrics.jsonl`, for viewing a run.

Both record the scalars of a step, the metrics of an evaluation, and figures. Training scalars have the prefix `train/`,
evaluation metrics `eval/`, and figures `figures/`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import secrets
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from swinv2_train.config.compose import to_yaml
from swinv2_train.config.errors import ConfigError
from swinv2_train.config.metrics import evaluated_metrics
from swinv2_train.config.schema import Config
from swinv2_train.config.section import flat
from swinv2_train.reading import UnreadableError, put_aside, read_text
from swinv2_train.redact import redact, redacted

DEFAULT_PROJECT = "swinv2-train"
"""W&B project if neither the config nor WANDB_PROJECT names one."""
ID_FILE, PROJECT_FILE = "wandb_id.txt", "wandb_project.txt"
"""W&B project if neither the config nor the environment names one."""
_HYPERPARAMETERS = ("seed", "model", "task", "data", "optim", "engine", "guard")
"""Sections of the config that TensorBoard compares runs by."""
_LOGIN_SECONDS = 60
"""Seconds that W&B may wait for the user to enter a key; the other ranks are already waiting for this one."""
_CONNECT_SECONDS = 60
"""Seconds that W&B may try to reach its server at the start."""


class Sink(Protocol):
    """A destination for scalars and figures of a run."""

    name: str

    def scalars(self, step: int, values: Mapping[str, float | int]) -> None:
        """Record scalars under their full names."""

    def figure(self, step: int, name: str, image: Image.Image) -> None:
        """Record a figure under its full name."""

    def flush(self) -> None:
        """Make recorded values visible."""

    def rewind(self, step: int) -> None:
        """Return to a step: everything recorded past it will be recorded again."""

    def close(self, exit_status: str) -> None:
        """Write everything; nothing may be recorded afterward."""


class TensorBoardSink:
    """TensorBoard event files, with the config as a text and as hyperparameters.

    A resume hides events past the step it resumes from.
    """

    name = "TensorBoard"

    def __init__(self, directory: Path, start_step: int, config: Config) -> None:
        self._directory = str(directory)
        if directory.is_file():  # a file in its place is kept, and does not end the run
            put_aside(directory)
        # A run from the beginning logs step 0 again; a resumed one does not.
        self._open(start_step + 1 if start_step else 0)
        self._describe(config, start_step)

    def _open(self, first_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(self._directory, purge_step=first_step)  # hides older events from this step

    def _describe(self, config: Config, step: int) -> None:
        """Write the config: Text shows it as it is stored, HPARAMS compares runs by it."""
        from torch.utils.tensorboard.summary import hparams

        # Markdown shows indented lines as they are.
        lines = redact(to_yaml(config)).splitlines()
        self._writer.add_text("config", "\n".join(f"    {line}" for line in lines), step)
        metrics = {"train/loss": 0.0, **dict.fromkeys(evaluated_metrics(config), 0.0)}
        *started, self._ended = hparams(hyperparameters(config), metrics)
        for summary in started:
            self._writer.file_writer.add_summary(summary)

    def scalars(self, step: int, values: Mapping[str, float | int]) -> None:
        for key, value in values.items():
            self._writer.add_scalar(key, value, step)

    def figure(self, step: int, name: str, image: Image.Image) -> None:
        self._writer.add_image(name, np.asarray(image.convert("RGB")), step, dataformats="HWC")

    def flush(self) -> None:
        self._writer.flush()

    def rewind(self, step: int) -> None:
        self._writer.close()
        self._open(step + 1)

    def close(self, exit_status: str) -> None:
        if exit_status == "finished":
            self._writer.file_writer.add_summary(self._ended)
        self._writer.close()


def hyperparameters(config: Config) -> dict[str, Any]:
    """Return the values that TensorBoard compares runs by: numbers and text, by dotted key."""
    values = {key: value for key, value in flat(config).items() if key.partition(".")[0] in _HYPERPARAMETERS}
    plain = {key: value if isinstance(value, (int, float)) else str(value) for key, value in values.items()}
    return {key: redacted(plain[key]) for key, value in values.items() if value is not None}


class WandbSink:
    """A Weights & Biases run that keeps its id and its project, in `<run>/wandb_*.txt`, across resumes.

    Raises:
        ConfigError: if W&B cannot be reached, or the user is not logged in.
    """

    name = "W&B"

    def __init__(self, run_dir: Path, config: Config) -> None:
        import wandb

        tracking = config.tracking
        project = _project(run_dir, tracking.wandb_project)
        sys.argv[:] = map(redact, sys.argv)  # W&B records the command line
        try:
            self.run = wandb.init(
                id=_stored_wandb_id(run_dir),
                resume="allow",
                mode=tracking.wandb,
                name=config.run.name,
                project=project,
                entity=tracking.wandb_entity,
                group=tracking.wandb_group,
                tags=tracking.wandb_tags or None,  # None: WANDB_TAGS
                dir=str(run_dir),
                config=redacted(dataclasses.asdict(config)),
                # The console is in log.txt; capturing it would fill W&B's log with redraws of the progress bar.
                settings=wandb.Settings(
                    console="off", silent=True, login_timeout=_LOGIN_SECONDS, init_timeout=_CONNECT_SECONDS
                ),
            )
        except (wandb.errors.Error, TimeoutError) as error:
            raise _unreachable(tracking.wandb, _first_line(error)) from error
        # Without a key in time, W&B silently switches to another mode.
        if tracking.wandb == "online" and (self.run.disabled or self.run.offline):
            self.run.finish()
            raise _unreachable(tracking.wandb, "not logged in")
        if redact(project) == project:  # not if it is secret
            (run_dir / PROJECT_FILE).write_text(project + "\n", encoding="utf-8")
        # Use our own x axis: W&B's counter rejects the steps that a resume repeats.
        self.run.define_metric("step", hidden=True)
        self.run.define_metric("*", step_metric="step")

    @property
    def where(self) -> str:
        """Return a sentence about where to view the run."""
        if self.run.offline:
            return f"W&B is offline; upload later with: wandb sync {Path(self.run.dir).parent}"
        return f"W&B run: {self.run.url}"

    def scalars(self, step: int, values: Mapping[str, float | int]) -> None:
        self.run.log({**values, "step": step})

    def figure(self, step: int, name: str, image: Image.Image) -> None:
        import wandb

        self.run.log({name: wandb.Image(image), "step": step})

    def flush(self) -> None:
        """Do nothing: W&B sends by itself."""

    def rewind(self, step: int) -> None:
        """Do nothing: W&B cannot take back what it was sent, and keeps both passes over the steps."""

    def close(self, exit_status: str) -> None:
        self.run.summary["exit_status"] = exit_status
        if exit_status == "stopped":
            self.run.mark_preempting()  # W&B shows the run as preempted, not as crashed or finished
        self.run.finish(exit_code=0 if exit_status == "finished" else 1)


def _project(run_dir: Path, configured: str | None) -> str:
    """Return the project of a run: that of the config, else that of its last start, else that of WANDB_PROJECT.

    Called before the run has an id. Earlier versions stored an id and no project, which was the default.
    """
    path = run_dir / PROJECT_FILE
    stored = DEFAULT_PROJECT if (run_dir / ID_FILE).exists() else ""
    try:
        stored = read_text(path).strip()
    except FileNotFoundError:
        if not stored:
            path.touch()  # a start that W&B then refuses leaves an id, and is of this version nevertheless
    except UnreadableError:
        put_aside(path)
    return configured or stored or os.environ.get("WANDB_PROJECT") or DEFAULT_PROJECT


def _stored_wandb_id(run_dir: Path) -> str:
    path = run_dir / ID_FILE
    with contextlib.suppress(FileNotFoundError, UnreadableError):
        stored = read_text(path).strip()
        if re.fullmatch(r"[\w-]{1,64}", stored, re.ASCII):
            return stored
    if path.exists():  # damaged: W&B would reject it
        put_aside(path)
    new = secrets.token_hex(4)
    path.write_text(new + "\n", encoding="utf-8")
    return new


def _unreachable(mode: str, reason: str) -> ConfigError:
    hint = "run `wandb login` or set WANDB_API_KEY, or set tracking.wandb=offline and upload later with `wandb sync`"
    return ConfigError("tracking.wandb", mode, f"Weights & Biases did not start ({reason}); {hint}")


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
