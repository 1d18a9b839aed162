"""Fields of the config that decide the order of samples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from swinv2_train.config.checks import at_least, one_of
from swinv2_train.config.errors import ConfigError
from swinv2_train.config.resume import GLOBAL_BATCH
from swinv2_train.config.schema import Config

LANES, GROUPS = "lanes", "groups"
"""Values of `data.order`."""
_MOST_LANES = 64
DRAWS_PER_DEAL = 2
"""Samples in a row that belong to the same lane, because mixup and cutmix blend them."""
_BLOCK_SAMPLES = 16
_GROUPS_BLOCKS = 32
"""Blocks of a group in the order of earlier versions."""


def check_order(config: Config) -> None:
    """Raise ConfigError if the fields of the order contradict each other or the batch."""
    data = config.data
    one_of("data.order", data.order, (None, LANES, GROUPS))
    for key in ("lanes", "block_samples"):
        if getattr(data, key) is not None:
            at_least(f"data.{key}", getattr(data, key), 1)
    if data.lanes is None or data.lanes == 1:
        return
    if data.order == GROUPS:
        raise ConfigError("data.lanes", data.lanes, "needs data.order=lanes; data.order=groups has no lanes")
    if not _fits(config, data.lanes):
        most = _most_lanes(config, data.lanes)
        batch = f"optim.global_batch={config.optim.global_batch}"
        hint = f"must divide half of the samples that a step draws ({batch}); the largest number below is {most}"
        raise ConfigError("data.lanes", data.lanes, hint)


def fill_in_order(config: Config, saved: Mapping[str, Any] | None) -> None:
    """Set the fields of the order that are null.

    Args:
        config: not frozen; changed in place.
        saved: section `order` of the metadata of the run's checkpoints; None if the run has not begun. Earlier versions
            recorded only `data.shuffle_samples`.
    """
    begun = (saved or {}).get("data.lanes")
    if begun and GLOBAL_BATCH in config.resume.allow and not _fits(config, begun):
        unit = begun * DRAWS_PER_DEAL * config.task.repeats
        hint = f"must be a multiple of {unit}, because the order of the run has {begun} lanes"
        raise ConfigError(GLOBAL_BATCH, config.optim.global_batch, hint)
    config.data.order, config.data.lanes, config.data.block_samples = order_of(config, saved)


def order_of(config: Config, saved: Mapping[str, Any] | None = None) -> tuple[str, int, int]:
    """Return the order, its lanes, and its samples per block, with fields that are null filled in; arguments as for
    `fill_in_order`."""
    data = config.data
    new = saved is None and not config.replay  # the config of a replay is complete, unless an earlier version wrote it
    before = (saved or {}).get("data.order", GROUPS)
    order = data.order or (LANES if new else before)
    kept = (saved or {}) if order == before else {}
    lanes, block = _most_lanes(config, _MOST_LANES), _BLOCK_SAMPLES
    if order == GROUPS:
        lanes, block = 1, groups_block(config)
    # With another batch, the lanes may be impossible; then the check of the run names the batch.
    begun = kept.get("data.lanes")
    lanes = data.lanes or (begun if begun and _fits(config, begun) else lanes)
    return order, lanes, data.block_samples or kept.get("data.block_samples") or block


def _fits(config: Config, lanes: int) -> bool:
    deals = _deals(config)
    return lanes == 1 or (deals is not None and deals % lanes == 0)


def groups_block(config: Config) -> int:
    """Return the samples of a block in the order of earlier versions."""
    return max(1, config.data.shuffle_samples // _GROUPS_BLOCKS)


def _deals(config: Config) -> int | None:
    """Return how often two samples in a row are dealt to a lane in a step; None if the batch is not made of pairs."""
    deals, rest = divmod(config.optim.global_batch, DRAWS_PER_DEAL * config.task.repeats)
    return None if rest else deals


def _most_lanes(config: Config, limit: int) -> int:
    """Return the largest number of lanes up to a limit that the global batch allows."""
    deals = _deals(config)
    if deals is None:
        return 1
    return next(lanes for lanes in range(min(limit, deals), 0, -1) if deals % lanes == 0)
