"""Survey of a directory's checkpoints: complete or not, judged quickly by manifests and file sizes."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from swinv2_train.checkpoint.errors import CheckpointError
from swinv2_train.checkpoint.identity import strangers
from swinv2_train.checkpoint.layout import (
    MANIFEST,
    STATE,
    Manifest,
    list_checkpoints,
    read_manifest,
    step_of,
)
from swinv2_train.checkpoint.verify import verify
from swinv2_train.config.errors import ConfigError
from swinv2_train.config.metrics import best_mode
from swinv2_train.config.schema import CheckpointConfig
from swinv2_train.reading import UnreadableError, finite_number, read_object

logger = logging.getLogger("swinv2_train")


@dataclass(frozen=True)
class Entry:
    """A checkpoint and its state."""

    path: Path
    step: int | None
    """None for a directory with another name whose manifest cannot be read."""
    size: int
    """Bytes on disk."""
    written: float
    """Time of completion, in seconds since 1970; from the file system, so a copy may appear younger."""
    manifest: Manifest | None
    """None if it cannot be read."""
    hashed: bool
    """True if the hashes were checked, and not only the sizes."""
    damage: str | None
    """Description of the damage; None if it is intact."""
    foreign: bool = False
    """True if the only damage is that it belongs to another run than its directory."""

    @property
    def state(self) -> str:
        return "foreign" if self.foreign else "damaged" if self.damage else "verified" if self.hashed else "complete"


def is_checkpoint(path: Path) -> bool:
    """Return whether a path is one checkpoint, complete or not."""
    return path.is_dir() and (step_of(path) is not None or (path / MANIFEST).is_file())


def directory_of(path: Path) -> Path:
    """Return the directory of checkpoints of a run directory, or the path itself if it is one.

    Raises:
        ConfigError: if it is neither.
    """
    if not path.exists():
        raise ConfigError("", path, f"{path} does not exist")
    if is_checkpoint(path):
        raise ConfigError("", path, f"{path} is one checkpoint; use a run directory or a directory of checkpoints")
    if (path / "checkpoints").is_dir():
        return path / "checkpoints"
    if path.is_dir() and (path.name == "checkpoints" or list_checkpoints(path) or leftovers(path)):
        return path
    raise ConfigError("", path, f"{path} is neither a run directory, nor a directory of checkpoints, nor a checkpoint")


def checkpoints_of(path: Path) -> list[Path]:
    """Return the checkpoint that a path is, or those in it, newest first; none if a run has not saved yet."""
    return [path] if is_checkpoint(path) else list_checkpoints(directory_of(path))


def newest_of(path: Path) -> Path:
    """Return the checkpoint that a path is, or the newest in it that belongs to its run, complete or not.

    Raises:
        ConfigError: if there is none.
    """
    found = checkpoints_of(path)
    if not found:
        raise ConfigError("", path, f"there is no checkpoint in {directory_of(path)}")
    foreign = _strangers(path)
    return next((one for one in found if one.name not in foreign), found[0])


def _strangers(path: Path) -> dict[str, str]:
    """Return the checkpoints of other runs in a directory, with the reason; none if the path is one checkpoint."""
    return {} if is_checkpoint(path) else strangers(directory_of(path))


def leftovers(directory: Path) -> list[Path]:
    """Return directories that are being written or were left behind by a crash: those with a dot before their step."""
    return sorted(path for path in directory.glob(".*step-*") if path.is_dir())


def tree_size(path: Path) -> int:
    """Return the bytes in all files below a path; files that vanish during the scan do not count."""
    total = 0
    for folder, _, names in os.walk(path):
        for name in names:
            try:
                total += os.lstat(os.path.join(folder, name)).st_size
            except OSError:
                continue
    return total


def check_sizes(path: Path, manifest: Manifest) -> None:
    """Check that every file of a checkpoint exists with its full length.

    Raises:
        CheckpointError: naming the first file that does not.
    """
    for record in manifest.files:
        try:
            size = (path / record.path).stat().st_size
        except OSError as error:
            raise CheckpointError(f"{record.path} cannot be read ({error.strerror})") from error
        if size != record.size:
            raise CheckpointError(f"{record.path} has {size} bytes instead of {record.size}")


def examine(path: Path, *, hashes: bool = False, foreign: str | None = None) -> Entry:
    """Examine one checkpoint: its manifest (which contains its own hash) and the sizes of its files.

    Args:
        hashes: also read every byte and compare the hashes.
        foreign: why it belongs to another run than its directory; None if it does not.
    """
    manifest, damage = None, None
    try:
        manifest = read_manifest(path)
        check_sizes(path, manifest)
        if hashes:
            verify(path)
    except CheckpointError as error:
        damage = str(error)
    step = step_of(path)
    return Entry(
        path=path,
        step=manifest.step if step is None and manifest else step,
        size=tree_size(path),
        written=_written(path),
        manifest=manifest,
        hashed=hashes,
        damage=damage or foreign,
        foreign=damage is None and foreign is not None,
    )


def survey(path: Path, *, hashes: bool = False) -> Iterator[Entry]:
    """Examine the checkpoint that a path is, or those in it, newest first, one at a time."""
    foreign = _strangers(path)
    for checkpoint in checkpoints_of(path):
        entry = examine(checkpoint, hashes=hashes, foreign=foreign.get(checkpoint.name))
        if checkpoint.exists():  # an active run may remove one during the survey
            yield entry


def read_state(path: Path) -> dict[str, Any]:
    """Return the JSON state of a checkpoint.

    Raises:
        CheckpointError: if it cannot be read.
    """
    try:
        return read_object(path / STATE)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path / STATE} cannot be read ({error.strerror})") from error
    except UnreadableError as error:
        raise CheckpointError(f"{path / STATE} is broken ({error})") from error


def _written(path: Path) -> float:
    for candidate in (path / MANIFEST, path):
        try:
            return candidate.stat().st_mtime
        except OSError:
            continue
    return 0.0


def best_metric_of(directory: Path) -> tuple[str, str]:
    """Return the metric by which the run of a directory of checkpoints ranks them, and its better direction.

    Without a readable config of the run, it is `eval/loss`.
    """
    from swinv2_train.config.compose import from_yaml

    settings = CheckpointConfig()
    resolved = directory.parent / "resolved.yaml"
    if resolved.is_file():
        try:
            settings = from_yaml(resolved, only_read=True).checkpoint
        except ConfigError as error:
            logger.warning("%s; ranking the checkpoints by %s", error, settings.best_metric)
    return settings.best_metric, best_mode(settings)


def ranked(candidates: Iterable[tuple[Path, Manifest]], metric: str, mode: str) -> list[Path]:
    """Return checkpoints that have a finite value of a metric, best first; of equal ones, the first stays first.

    Args:
        mode: min or max: the better direction of the metric.
    """
    sign = -1.0 if mode == "max" else 1.0
    values = [(sign * value, path) for path, manifest in candidates if (value := _finite(manifest, metric)) is not None]
    return [path for _, path in sorted(values, key=lambda pair: pair[0])]


def _finite(manifest: Manifest, metric: str) -> float | None:
    return finite_number(manifest.metrics.get(metric))


def best_of(entries: Iterable[Entry], metric: str, mode: str) -> Path | None:
    """Return the intact checkpoint with the best value of a metric; None if none has a finite value.

    Args:
        entries: newest first.
    """
    whole = [(entry.path, entry.manifest) for entry in entries if entry.manifest and not entry.damage]
    return next(iter(ranked(whole, metric, mode)), None)
