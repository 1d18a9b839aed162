"""Incidents: steps that the guard rejected, with everything needed to rerun exactly that step.

    <run>/incidents/step-00000123-batch-00000122.json      one file per rejected step

An incident contains no weights. A replay starts from the newest checkpoint before the step and trains up to it, which
is bitwise reproducible on the same number of ranks; the checkpoint that the latest incident needs is therefore not
pruned. Torch-free, so that the commands can use it.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swinv2_train.checkpoint.errors import CheckpointError
from swinv2_train.checkpoint.layout import list_checkpoints, read_manifest, step_of
from swinv2_train.checkpoint.survey import read_state
from swinv2_train.config.compose import override, to_yaml
from swinv2_train.config.errors import ConfigError
from swinv2_train.config.override_text import quoted
from swinv2_train.config.plan import Plan
from swinv2_train.config.schema import Config
from swinv2_train.data.errors import DataError
from swinv2_train.engine.guard import Refusal
from swinv2_train.engine.state import TrainState
from swinv2_train.launch.status import write_text
from swinv2_train.reading import UnreadableError, from_object, is_count, read_json, read_text
from swinv2_train.redact import HIDDEN, redact
from swinv2_train.shortage import remedied
from swinv2_train.tracking.metrics_file import json_number

if TYPE_CHECKING:
    from swinv2_train.launch.ranks import Ranks

FOLDER = "incidents"


@dataclass(frozen=True)
class Incident:
    """A step whose update was rejected."""

    step: int
    """Number of the step, counted from 1 as in metrics.jsonl."""
    reason: str
    action: str
    """Response of the guard: skip, rollback, or stop."""
    batch: int
    """Batch of the step; `TrainState.first_position` is the first of its sample positions."""
    loss: float | None
    """None if it was not finite, like every number here."""
    grad_norm: float | None
    world_size: int
    micro_batch: int
    micro_losses: list[list[float | None]]
    """By rank and micro-batch: the mean loss."""
    seed: int
    """All randomness of a sample is a function of the seed and its position, so this is the random state."""
    samples: list[dict[str, Any]]
    """Position and shard/key of every sample of the batch."""
    state: dict[str, Any]
    """State of the run before the step."""
    config: str
    """Config of the run, as stored in resolved.yaml."""


def incident_path(run_dir: Path, step: int, batch: int) -> Path:
    """Return the path of an incident. After a rollback the same step has another batch, and may be rejected as well."""
    return run_dir / FOLDER / f"step-{step:08d}-batch-{batch:08d}.json"


def write_incident(run_dir: Path, incident: Incident) -> Path:
    """Write an incident and return its path; a different one of the same step and batch gets a numeric suffix.

    Raises:
        OSError: if it cannot be written.
    """
    path = first = incident_path(run_dir, incident.step, incident.batch)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(asdict(incident), indent=1, allow_nan=False)
    for number in itertools.count(2):
        try:
            if read_text(path) == text:
                break
        except FileNotFoundError:
            break
        except UnreadableError:  # damaged, or a folder: keep it and use another name
            pass
        path = first.with_stem(f"{first.stem}-{number}")
    write_text(path, text)
    return path


def read_incident(path: Path) -> Incident:
    """Read an incident.

    Raises:
        ConfigError: if it is missing or is not an incident.
    """
    try:
        incident = from_object(Incident, read_json(path))
        _state(incident.state)
    except FileNotFoundError as error:
        raise ConfigError(
            "replay", path, f"cannot be read ({error.strerror}); use <run>/incidents/step-*.json"
        ) from error
    except UnreadableError as error:
        raise ConfigError(
            "replay", path, f"is not an incident of a run ({error}); use <run>/incidents/step-*.json"
        ) from error
    counts = (incident.step, incident.batch, incident.world_size, incident.micro_batch)
    places = all(is_count(entry.get("position")) for entry in incident.samples)
    if min(counts) < 0 or 0 in (incident.step, incident.world_size, incident.micro_batch) or not places:
        raise ConfigError("replay", path, "has impossible numbers; it is damaged or was edited")
    return incident


def replay_config(path: Path, overrides: list[str]) -> Config:
    """Return the config of a replay: that of the incident's run, with its number of ranks unless overridden.

    Raises:
        ConfigError: if the incident cannot be read, an override is wrong, or the credentials of the shards are missing.
    """
    incident = read_incident(path)
    own = [f"replay={quoted(path)}", f"run.dir={quoted(path.with_suffix(''))}", "resume=auto"]
    own += ["tracking.tensorboard=false", "tracking.wandb=disabled"]
    config = override(incident.config, [f"launch.nproc_per_node={incident.world_size}", *own, *overrides])
    shards = str(config.data.shards)
    if "://" in shards and HIDDEN in shards:
        hint = "the incident contains no credentials; set the value of the run again, such as data.shards='https://...'"
        raise ConfigError("data.shards", shards, hint)
    return config


def _state(values: Any) -> TrainState:
    """Return the state of a run from a file.

    Raises:
        UnreadableError: if it is not one.
    """
    state = from_object(TrainState, values)
    counts = (state.step, state.samples_seen, state.changed_step, state.changed_samples, state.changed_position)
    if min(*counts, *state.avoided_batches) < 0:
        raise UnreadableError("it has impossible numbers")
    return state


def base_checkpoints(incident: Incident, checkpoints: Path) -> Iterator[Path]:
    """Yield the checkpoints from which a run reaches this step with the same batches, newest first.

    The caller must check whether they are complete.
    """
    before = _state(incident.state)
    for path in list_checkpoints(checkpoints):
        try:
            saved = _state(read_state(path).get("train"))
            if saved.step != step_of(path) or _seed(path) not in (None, incident.seed):
                continue  # renamed, or of another run
        except (CheckpointError, UnreadableError):
            continue
        if saved.comes_to(before):
            yield path


def _seed(path: Path) -> int | None:
    """Return the seed of the run that a checkpoint belongs to; None if its manifest cannot be read."""
    try:
        return read_manifest(path).metadata.get("order", {}).get("seed")
    except (CheckpointError, AttributeError):
        return None


@dataclass
class IncidentLog:
    """Writes the incidents of a run."""

    run_dir: Path
    config: Config
    plan: Plan
    ranks: Ranks
    sample_name: Callable[[int], str]
    """Returns the shard/key of the sample at a position."""

    def record(
        self, refusal: Refusal, loss: float, grad_norm: float, micro_losses: list[float], state: TrainState
    ) -> str:
        """Record the step after `state`. A collective. Return how to rerun it, or why it was not recorded.

        Args:
            micro_losses: mean loss of each of this rank's micro-batches.
        """
        by_rank = self.ranks.gather([json_number(value) for value in micro_losses])
        if not self.ranks.is_main:
            return ""
        first = state.first_position(state.batch, self.plan.global_batch)
        incident = Incident(
            step=state.step + 1,
            reason=refusal.reason,
            action=self.config.guard.policy if refusal.spike else "skip",
            batch=state.batch,
            loss=json_number(loss),
            grad_norm=json_number(grad_norm),
            world_size=self.plan.world_size,
            micro_batch=self.plan.micro_batch,
            micro_losses=by_rank,
            seed=self.config.seed,
            samples=[
                {"position": position, "sample": self._name(position)}
                for position in range(first, first + self.plan.global_batch)
            ],
            state=state.to_dict(),
            config=redact(to_yaml(self.config)),
        )
        try:
            return f"swinv2-train replay={write_incident(self.run_dir, incident)} reruns it"
        except OSError as error:
            return f"its incident cannot be written ({remedied(error)})"

    def _name(self, position: int) -> str:
        try:
            return self.sample_name(position)
        except DataError as error:
            return f"not known: {error}"


def protector(run_dir: Path) -> Callable[[], set[str]]:
    """Return a function that names the checkpoints that a replay of the latest incident needs."""

    def needed() -> set[str]:
        # A damaged incident is useless; the one before it can still be replayed.
        for path in sorted((run_dir / FOLDER).glob("step-*.json"), reverse=True):
            try:
                base = next(base_checkpoints(read_incident(path), run_dir / "checkpoints"), None)
            except ConfigError:
                continue
            return {base.name} if base else set()
        return set()

    return needed
