"""Shards whose classes are not those of the task are refused, also where nothing is built yet."""

from __future__ import annotations

from pathlib import Path

import pytest

from swinv2_train.config.compose import compose
from swinv2_train.data.card import Card
from swinv2_train.data.errors import DataError
from swinv2_train.data.pack import PackOptions, pack
from swinv2_train.tasks.classes import check_classes, check_held_out_classes, unused_classes
from tests.runs import make_images

CATS = ["cat", "dog", "owl"]


@pytest.mark.parametrize(
    ("num_classes", "card", "held_out"),
    [
        (3, Card(class_names=CATS), Card(class_names=CATS)),
        (3, Card(class_names=CATS), Card(class_names=["Cat", "DOG", "owl"])),
        (0, Card(class_names=CATS), None),
        (5, Card(class_names=CATS), Card()),
        (3, None, Card(class_names=CATS)),
        (3, Card(), None),
    ],
)
def test_classes_that_agree_are_let_through(num_classes: int, card: Card | None, held_out: Card | None) -> None:
    check_classes(num_classes, card, held_out)


@pytest.mark.parametrize(
    ("num_classes", "card", "warnings"),
    [
        (3, Card(class_names=CATS), []),
        (10, None, []),
        (10, Card(), []),
        (10, Card(class_counts={0: 1, 1: 2}), []),
        (10, Card(class_names=CATS), ["task.num_classes=10: data.shards has only 3 classes, whose names are therefore "
                                      "not used; task.num_classes=0 takes their number"]),
    ],
)  # fmt: skip
def test_more_classes_than_the_shards_have_are_pointed_out(
    num_classes: int, card: Card | None, warnings: list[str]
) -> None:
    assert unused_classes(num_classes, card) == warnings


def mixed() -> Card:
    return Card.merged([Card(class_names=CATS), Card(class_names=CATS[:2])])


@pytest.mark.parametrize(
    ("num_classes", "card", "held_out", "message"),
    [
        (3, Card(class_names=CATS), Card(class_names=["cat", "owl"]), r"'dog' only in data.shards.*--class-names"),
        (3, Card(class_names=CATS), Card(class_names=CATS[:2]), "'owl' only in data.shards"),
        (3, Card(class_names=CATS), Card(class_names=["cat", "owl", "dog"]), "class 1 is 'dog' and 'owl'"),
        (3, mixed(), None, "the shards of data.shards number their classes differently"),
        (3, None, mixed(), "the shards of data.eval_shards number their classes differently"),
        (
            2,
            Card(class_names=CATS),
            None,
            "data.shards has 3 classes, but task.num_classes=2: write task.num_classes=0",
        ),
        (
            2,
            Card(class_names=CATS[:2]),
            Card(class_names=CATS),
            "data.eval_shards has 3 classes, and data.shards has 2",
        ),
        (
            4,
            None,
            Card(class_names=[*CATS, "a", "b"]),
            "data.eval_shards has 5 classes, but .*: set task.num_classes=5",
        ),
    ],
)
def test_classes_that_contradict_are_one_sentence(
    num_classes: int, card: Card | None, held_out: Card | None, message: str
) -> None:
    with pytest.raises(DataError, match=message) as caught:
        check_classes(num_classes, card, held_out)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_held_out_shards_are_opened_and_compared(tmp_path: Path) -> None:
    for name in ("cat", "owl"):
        make_images(tmp_path / "images" / name, 2, 0)
    pack(str(tmp_path / "images"), tmp_path / "shards", PackOptions(), split="eval", classes=True)
    overrides = [f"data.eval_shards={tmp_path}/shards/eval-*.tar", "data.resolution=64"]
    config = compose(["task=classification", "task.num_classes=2", *overrides])
    check_held_out_classes(config, Card(class_names=["cat", "owl"]))
    with pytest.raises(DataError, match="held-out shards number their classes differently"):
        check_held_out_classes(config, Card(class_names=["cat", "dog"]))
    check_held_out_classes(compose(overrides), Card(class_names=["cat", "dog"]))  # SimMIM has no classes
