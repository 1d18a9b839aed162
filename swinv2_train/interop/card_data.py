"""Local shards of a run, as far as its model card describes them. Torch-free."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from swinv2_train.config.schema import Config
    from swinv2_train.data.card import Card


def dataset_card(shards: Any) -> Card | None:
    """Return the card next to local shards that swinv2-data packed; None for others, or if it no longer exists."""
    from swinv2_train.data.card import Card
    from swinv2_train.data.sources import manifest_url, parse_manifest

    try:
        places = {manifest_url(shard) for shard in _local_shards(shards)}
        texts = [(Path(place).read_bytes(), place) for place in sorted(filter(None, places))]
        if None in places or not texts:
            return None
        return Card.merged(Card.from_json(parse_manifest(*text).card) for text in texts)
    except (OSError, ValueError):  # including DataError; a missing description ends nothing
        return None


def _local_shards(spec: Any) -> list[str]:
    """Return the paths of local shards; none for others, or if they no longer exist."""
    from swinv2_train.data.remote import ShardCache
    from swinv2_train.data.remote_file import is_remote
    from swinv2_train.data.sources import expand

    listed = list(spec) if isinstance(spec, (list, tuple)) else [spec]
    if not all(isinstance(part, str) and part and not is_remote(part) for part in listed):
        return []
    try:
        found = expand(listed, ShardCache(Path("."), 0))  # local paths do not touch the cache
        return list(map(str, found))
    except (OSError, ValueError):  # including DataError
        return []


def role_in_training(data: Any, trained: Config | None) -> str:
    """Return the role that the data of an evaluation had in the training, in parentheses; empty if it had none."""
    here = {Path(place).resolve() for place in _local_shards(data)}
    for spec, role in ((trained.data.shards, "training"), (trained.data.eval_shards, "held-out")) if trained else ():
        if here & {Path(place).resolve() for place in _local_shards(spec)}:
            return f" ({role} {'videos' if trained.data.frames else 'images'} of the run)"
    return ""
