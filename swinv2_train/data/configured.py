"""The shards of a config: training and held-out ones. Torch-free."""

from __future__ import annotations

from swinv2_train.config.schema import DataConfig
from swinv2_train.data.errors import DataError
from swinv2_train.data.shards import ShardSet

OpenedSets = tuple[ShardSet, ShardSet | None]
"""Training shards, and held-out ones if there are any."""


def open_held_out(data: DataConfig) -> ShardSet | None:
    """Open `data.eval_shards`; None without any.

    Raises:
        DataError: naming the key, if they cannot be used.
    """
    if not data.eval_shards:
        return None
    try:
        return _opened(data, data.eval_shards)
    except DataError as error:
        fix = "; data.eval_shards=null trains without evaluation" if str(error).endswith(" does not exist") else ""
        error.args = (f"data.eval_shards={data.eval_shards}: {error}{fix}",)
        raise


def open_training(data: DataConfig) -> ShardSet:
    """Open `data.shards`.

    Raises:
        DataError: naming the key, if they cannot be used.
    """
    try:
        return _opened(data, data.shards)
    except DataError as error:
        error.args = (f"data.shards={data.shards}: {error}",)
        raise


def open_shards(data: DataConfig) -> OpenedSets:
    """Open the training shards and the held-out ones; errors as for `open_training`."""
    held_out = open_held_out(data)
    return open_training(data), held_out


def _opened(data: DataConfig, spec: object) -> ShardSet:
    return ShardSet.open(spec, data.cache_dir, data.cache_gib, image=data.image)
