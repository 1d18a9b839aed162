"""Check that the shards of a run number their classes identically and that the head has as many. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping

from swinv2_train.class_lists import difference
from swinv2_train.config.schema import Config
from swinv2_train.data.card import Card
from swinv2_train.data.card_objects import differing_id, repeated_id
from swinv2_train.data.class_order import is_text_order_of_numbers
from swinv2_train.data.configured import open_held_out, open_probe_sets
from swinv2_train.data.errors import DataError


def names_of_classes(config: Config, card: Card | None) -> list[str] | None:
    """Return a name for every class of a task, from the card of its training shards; None without names.

    Args:
        config: complete.
    """
    names = card.class_names if card else None
    return names if names and len(names) == config.task.classes else None


def check_held_out_classes(config: Config, card: Card | None) -> None:
    """Check the classes of all labeled shards of a config: `check_classes` if the task has any, and of the probes.

    Args:
        config: complete.
        card: of the training shards.

    Raises:
        DataError: if the held-out shards cannot be read, or as for `check_classes`.
    """
    data, probe = config.data, config.probe

    if config.task.classes is not None:
        held_out = open_held_out(data, task=config.task)
        check_classes(config.task.classes, card, held_out.card if held_out else None)
    sets = open_probe_sets(data, probe)
    check_same_numbers({key: shards.card if shards else None for key, shards in sets.items()})


def check_classes(num_classes: int, card: Card | None, held_out: Card | None) -> None:
    """Reject shards that number their classes differently or have more of them than the head.

    Args:
        num_classes: that of the head; 0: not known yet.

    Raises:
        DataError: naming the shards and the difference.
    """
    for key, one in (("data.shards", card), ("data.eval_shards", held_out)):
        if one is not None and num_classes and (one.num_classes or 0) > num_classes:
            own = (card.num_classes or 0) if card is not None else 0
            fix = f"set task.num_classes={one.num_classes}"
            if one is held_out and own == num_classes:  # the number is that of the training data
                fix = f"pack them again with --class-names of {key}, or {fix}"
                raise DataError(f"{key} has {one.num_classes} classes, and data.shards has {own}: {fix}")
            if one is card:
                fix = "write task.num_classes=0, with which a new run takes the number from the data"
            raise DataError(f"{key} has {one.num_classes} classes, but task.num_classes={num_classes}: {fix}")
    check_same_numbers({"data.shards": card, "data.eval_shards": held_out})


def check_same_numbers(cards: Mapping[str, Card | None]) -> None:
    """Reject two sets of shards that number their classes differently.

    Args:
        cards: of training and held-out shards, by their keys.

    Raises:
        DataError: naming the shards and the first class that differs.
    """
    for key, one in cards.items():
        check_one_numbering(one, f"the shards of {key}")
    (train, first), (held_out, second) = cards.items()
    names = [one.class_names if one else None for one in (first, second)]
    again = f"pack them again with --class-names of {train} (TRAIN.dataset.json)"
    shown = difference(names[0] or [], names[1] or [], places=(train, held_out)) if all(names) else None
    if shown is not None:
        raise DataError(f"held-out shards number their classes differently from {train} ({held_out}: {shown}): {again}")
    for key, here, there in ((train, names[0], second), (held_out, names[1], first)):
        plain = there is not None and there.class_counts and not there.class_names
        if plain and here and is_text_order_of_numbers(here):
            wrong = next(number for number, name in enumerate(here) if name != str(number))
            raise DataError(
                f"class {wrong} of {key} is the folder {here[wrong]!r}, because its names were sorted as text, and the "
                f"classes of {held_out if key == train else train} are plain numbers: pack {key} again"
            )


def check_one_numbering(card: Card | None, what: str) -> None:
    """Reject a set of shards whose parts number their classes, or identify their categories, differently.

    Args:
        what: the shards, in the message.

    Raises:
        DataError: if they do.
    """
    if card is not None and card.class_lists_differ:
        raise DataError(
            f"{what} number their classes differently, because they were packed separately: pack them again with "
            "--class-names, or together"
        )
    facts = card.objects if card is not None else None
    if facts is not None and facts.other_id is not None:
        name, first, second = facts.other_id
        raise DataError(
            f"{what} give the category {name!r} the ids {first!r} and {second!r}, of which results can have only one: "
            "use the same ids in the annotations of all of them"
        )
    if facts is not None and (repeated := repeated_id(facts.categories)) is not None:
        one, other, identifier = repeated
        raise DataError(
            f"{what} give the categories {one!r} and {other!r} the same id {identifier!r}: use the same ids in the "
            "annotations of all of them"
        )


def other_ids(cards: Mapping[str, Card | None]) -> list[str]:
    """Return a warning if two sets of shards have the same categories with other ids, of which each set keeps its own.

    Args:
        cards: as for `check_same_numbers`.
    """
    tables = [one.objects.categories if one is not None and one.objects is not None else [] for one in cards.values()]
    if not all(tables):
        return []
    (train, held_out), other = cards, differing_id(*tables)
    if other is None:
        return []
    name, first, second = other
    return [
        f"the category {name!r} has the id {first!r} in {train} and {second!r} in {held_out}: the results of an "
        "evaluation have the ids of the shards that are evaluated, and predictions for images those of the training"
    ]


def unused_classes(num_classes: int, card: Card | None) -> list[str]:
    """Return a warning if the head has more classes than the training shards name, so that their names are not used.

    Args:
        num_classes: that of the head.
        card: of the training shards.
    """
    names = card.class_names if card else None
    if not names or len(names) >= num_classes:
        return []
    return [
        f"task.num_classes={num_classes}: data.shards has only {len(names)} classes, whose names are therefore not "
        "used; task.num_classes=0 takes their number"
    ]


def unnamed_classes(cards: Mapping[str, Card | None]) -> list[str]:
    """Return a warning if one of two sets of labeled shards names its classes and the other does not.

    Args:
        cards: as for `check_same_numbers`; without a second set there is nothing to compare.
    """
    names = {key: card.class_names if card else None for key, card in cards.items()}
    named = [key for key, found in names.items() if found]
    if len(named) != 1 or names[named[0]] == list(map(str, range(len(names[named[0]] or ())))):
        return []
    (other,) = names.keys() - set(named)
    return [f"{named[0]} names its classes and {other} does not: their numbering cannot be compared"]
