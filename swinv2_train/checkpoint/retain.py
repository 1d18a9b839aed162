"""Checkpoint retention policy."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from swinv2_train.checkpoint.errors import CheckpointError
from swinv2_train.checkpoint.identity import is_foreign, same_run
from swinv2_train.checkpoint.layout import PARTIAL_PREFIX, Manifest, list_checkpoints, read_manifest, step_of
from swinv2_train.checkpoint.survey import check_sizes, ranked
from swinv2_train.config.metrics import best_mode
from swinv2_train.config.schema import CheckpointConfig

_Metadata = Mapping[str, Any] | None


def _whole(path: Path, metadata: _Metadata) -> Manifest | None:
    """Return the manifest of a checkpoint of this run if all its files have their full length; else None."""
    try:
        manifest = read_manifest(path)
        check_sizes(path, manifest)
    except CheckpointError:
        return None
    return manifest if metadata is None or same_run(manifest.metadata, metadata) else None


def _newest(paths: list[Path], count: int, metadata: _Metadata) -> set[Path]:
    """Return the newest checkpoint and the newest `count` that look complete; incomplete ones do not count."""
    return {*paths[:1], *islice((path for path in paths if _whole(path, metadata)), count)}


def _best(paths: list[Path], policy: CheckpointConfig, metadata: _Metadata) -> set[Path]:
    whole = [(path, manifest) for path in paths if (manifest := _whole(path, metadata))]
    return set(ranked(whole, policy.best_metric, best_mode(policy))[: policy.keep_best])


def surplus(
    directory: Path,
    policy: CheckpointConfig,
    protected: Collection[str] = (),
    damaged: Collection[str] = (),
    metadata: _Metadata = None,
) -> list[Path]:
    """Return the checkpoints that a policy does not keep, newest first.

    It keeps the newest `keep_last` (counting only those whose files are all there, because a broken one cannot replace
    a complete one), every `keep_every_steps`-th, and the `keep_best` best (also counting only complete ones).

    Args:
        protected: names of checkpoints that are kept regardless of the policy.
        damaged: names of checkpoints that are known to be damaged although their files have the right sizes. They do
            not count either, and they are kept, because the policy does not cover them.
        metadata: that of the run; checkpoints of other runs are treated like damaged ones.
    """
    paths = [path for path in list_checkpoints(directory) if path.name not in damaged]
    kept = _newest(paths, max(1, policy.keep_last), metadata)
    if policy.keep_best:
        kept |= _best(paths, policy, metadata)
    if policy.keep_every_steps:
        kept |= {path for path in paths if (step_of(path) or 1) % policy.keep_every_steps == 0}
    left = [path for path in paths if path not in kept and path.name not in protected]
    return [path for path in left if not is_foreign(path, metadata)]


def prune(
    directory: Path,
    policy: CheckpointConfig,
    protected: Collection[str] = (),
    damaged: Collection[str] = (),
    metadata: _Metadata = None,
) -> list[str]:
    """Remove surplus checkpoints and leftovers of crashes; return their names. Only one rank calls it, between saves.

    The arguments are those of `surplus`.

    A checkpoint is renamed before it is deleted, so a crash in between never leaves a partial one under a valid name.

    Raises:
        OSError: if something could not be removed; everything else is removed.
    """
    removed, failure = [], None
    for path in surplus(directory, policy, protected, damaged, metadata):
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
