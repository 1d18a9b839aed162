"""Which checkpoints are kept."""

from __future__ import annotations

import math
import shutil
from collections.abc import Collection
from pathlib import Path

from swinv2_train.checkpoint.errors import CheckpointError
from swinv2_train.checkpoint.layout import PARTIAL_PREFIX, list_checkpoints, read_manifest, step_of
from swinv2_train.checkpoint.survey import check_sizes
from swinv2_train.config.schema import CheckpointConfig


def _is_whole(path: Path) -> bool:
    try:
        check_sizes(path, read_manifest(path))
    except CheckpointError:
        return False
    return True


def _newest(paths: list[Path], count: int) -> set[Path]:
    """The newest checkpoint and so many of the newest that look whole; broken ones beside them do not count."""
    kept, whole = set(paths[:1]), 0
    for path in paths:
        if whole == count:
            break
        if _is_whole(path):
            kept.add(path)
            whole += 1
    return kept


def _best(paths: list[Path], policy: CheckpointConfig) -> set[Path]:
    """Those with the best value of the metric; of equals, the newest."""
    values: list[tuple[float, int, Path]] = []
    for age, path in enumerate(paths):
        try:
            value = float(read_manifest(path).metrics.get(policy.best_metric, math.nan))
        except (CheckpointError, TypeError, ValueError):
            continue
        if math.isfinite(value):
            values.append((-value if policy.best_mode == "max" else value, age, path))
    return {path for _, _, path in sorted(values)[: policy.keep_best]}


def surplus(directory: Path, policy: CheckpointConfig, protected: Collection[str] = ()) -> list[Path]:
    """The checkpoints that a policy lets go of, newest first.

    Kept are the newest `keep_last` (of those whose files are all there: a broken one is no substitute for a whole one),
    every `keep_every_steps`-th, and the `keep_best` best.

    Args:
        protected: names of checkpoints that are kept whatever the policy says.
    """
    paths = list_checkpoints(directory)
    kept = _newest(paths, max(1, policy.keep_last))
    if policy.keep_best:
        kept |= _best(paths, policy)
    if policy.keep_every_steps:
        kept |= {path for path in paths if (step_of(path) or 0) % policy.keep_every_steps == 0}
    return [path for path in paths if path not in kept and path.name not in protected]


def prune(directory: Path, policy: CheckpointConfig, protected: Collection[str] = ()) -> list[str]:
    """Remove surplus checkpoints and what crashes left behind; return the names. One rank calls it, between saves.

    A checkpoint first loses its valid name, so that a crash in the middle leaves nothing that looks whole.

    Raises:
        OSError: if something could not be removed; the rest is.
    """
    removed, failure = [], None
    for path in surplus(directory, policy, protected):
        try:
            path.rename(path.with_name(f"{PARTIAL_PREFIX}removed-{path.name}"))
            removed.append(path.name)
        except OSError as error:
            failure = failure or error
    for left in sorted(directory.glob(f"{PARTIAL_PREFIX}*")):
        try:
            shutil.rmtree(left)
        except OSError as error:
            failure = failure or error
    if failure is not None:
        raise failure
    return removed
