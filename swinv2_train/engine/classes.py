"""Do the shards of a run number their classes alike, and does the head have as many? Torch-free, for dry runs."""

from __future__ import annotations

from swinv2_train.config.schema import Config
from swinv2_train.config.tasks import ClassificationConfig
from swinv2_train.data.card import Card
from swinv2_train.data.errors import DataError
from swinv2_train.data.shards import ShardSet


def check_held_out_classes(config: Config, card: Card | None) -> None:
    """Do `check_classes` for a classifier, with the held-out shards of the config; nothing for another task.

    Args:
        config: complete.
        card: of the training shards.

    Raises:
        DataError: if the held-out shards cannot be read, and as `check_classes`.
    """
    if not isinstance(config.task, ClassificationConfig):
        return
    data, held_out = config.data, None
    if data.eval_shards:
        held_out = ShardSet.open(data.eval_shards, data.cache_dir, data.cache_gib).card
    check_classes(config.task.num_classes, card, held_out)


def check_classes(num_classes: int, card: Card | None, held_out: Card | None) -> None:
    """Refuse shards that number their classes differently or have more of them than the head.

    Args:
        num_classes: of the head; 0: not known yet.

    Raises:
        DataError: naming the shards and what differs.
    """
    for key, one in (("data.shards", card), ("data.eval_shards", held_out)):
        if one is None:
            continue
        if one.class_lists_differ:
            raise DataError(
                f"the shards of {key} number their classes differently, because they were packed apart: pack them "
                "again with --class-names, or together"
            )
        if num_classes and (one.num_classes or 0) > num_classes:
            raise DataError(f"{key} has {one.num_classes} classes, and task.num_classes={num_classes}")
    names = [one.class_names for one in (card, held_out) if one is not None and one.class_names]
    if len(names) == 2 and names[0] != names[1]:
        pairs = enumerate(zip(*names, strict=False))
        first = next((f"class {k} is {a!r} and {b!r}" for k, (a, b) in pairs if a != b), "one list is longer")
        raise DataError(
            f"held-out shards number their classes differently from data.shards ({first}): pack them again with "
            "--class-names of the training shards (TRAIN.dataset.json)"
        )
