"""Shards whose classes are not those of the task are refused before anything is built."""

from __future__ import annotations

from pathlib import Path

import pytest

from swinv2_train.data.card import Card
from swinv2_train.data.errors import DataError
from swinv2_train.engine.build import check_classes
from swinv2_train.exit_codes import WRONG_USE
from tests.runs import make_labelled_data, run_here, tiny_classification

CATS = ["cat", "dog", "owl"]


@pytest.mark.parametrize(
    ("num_classes", "card", "held_out"),
    [
        (3, Card(class_names=CATS), Card(class_names=CATS)),
        (0, Card(class_names=CATS), None),
        (5, Card(class_names=CATS), Card()),
        (3, None, Card(class_names=CATS)),
        (3, Card(), None),
    ],
)
def test_classes_that_agree_are_let_through(num_classes: int, card: Card | None, held_out: Card | None) -> None:
    check_classes(num_classes, card, held_out)


def mixed() -> Card:
    return Card.merged([Card(class_names=CATS), Card(class_names=CATS[:2])])


@pytest.mark.parametrize(
    ("num_classes", "card", "held_out", "message"),
    [
        (3, Card(class_names=CATS), Card(class_names=["cat", "owl"]), r"class 1 is 'dog' and 'owl'.*--class-names"),
        (3, Card(class_names=CATS), Card(class_names=CATS[:2]), "one list is longer"),
        (3, mixed(), None, "the shards of data.shards number their classes differently"),
        (3, None, mixed(), "the shards of data.eval_shards number their classes differently"),
        (2, Card(class_names=CATS), None, "data.shards has 3 classes, and task.num_classes=2"),
    ],
)
def test_classes_that_contradict_are_one_sentence(
    num_classes: int, card: Card | None, held_out: Card | None, message: str
) -> None:
    with pytest.raises(DataError, match=message) as caught:
        check_classes(num_classes, card, held_out)
    assert "\n" not in str(caught.value)


def test_a_run_without_a_known_number_of_classes_says_what_to_give(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shards = make_labelled_data(tmp_path / "shards")
    assert run_here(tiny_classification(shards, tmp_path / "run", "task.num_classes=0")) == WRONG_USE
    assert "task.num_classes=0: " in capsys.readouterr().err
