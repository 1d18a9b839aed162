"""Two splits of one data set: categories match by name, and tables that do not fit are refused wherever they meet."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from swinv2_train.checkpoint.identity import Identity
from swinv2_train.config.tasks import DetectionConfig
from swinv2_train.data.card import Card
from swinv2_train.data.card_objects import Category, ObjectFacts, repeated_id
from swinv2_train.data.category_table import category_table
from swinv2_train.data.errors import DataError
from swinv2_train.data.label_map import check_same_categories
from swinv2_train.data.pack_objects import READERS
from swinv2_train.tasks.classes import check_classes, check_one_numbering, other_ids
from tests.data.annotated import annotation, coco, write_coco

TRAINED = [Category(2, "dog"), Category(7, "cat"), Category(90, "kite")]
"""The table of the training shards, also that of the model."""


def card(table: list[Category]) -> Card:
    return Card(class_names=[one.name for one in table], objects=ObjectFacts(table))


OTHER = r"data.eval_shards: {}\): pack them again with --class-names of data.shards"
MODEL = r"the categories of the shards are not those of the model \({}\): pack the shards again with --class-names"
KNOWN = "x: the {} not among the 3 names of --class-names"
TABLES: dict[str, tuple[list[Category], str | None, str | None, list[int] | str]] = {
    "the same": (TRAINED, None, None, [0, 1, 2]),
    "another case": ([Category(2, "Dog"), Category(7, "CAT"), Category(90, "kite")], None, None, [0, 1, 2]),
    "other ids": ([Category(1, "dog"), Category(2, "cat"), Category(3, "kite")], None, None, [0, 1, 2]),
    "no ids": ([Category(None, "dog"), Category(None, "cat"), Category(None, "kite")], None, None, [0, 1, 2]),
    "another order": (
        [Category(2, "cat"), Category(7, "dog"), Category(90, "kite")],
        "class 0 is 'dog' and 'cat'", "class 0 is 'cat' and 'dog'", [1, 0, 2],
    ),
    "fewer": (TRAINED[:2], "'kite' only in data.shards", "'kite' only in the model", [0, 1]),
    "fewer in the middle": (
        [TRAINED[0], TRAINED[2]], "'cat' only in data.shards", "'cat' only in the model", [0, 2]
    ),
    "more": (
        [*TRAINED, Category(91, "owl")],
        "'owl' only in data.eval_shards",
        "'owl' only in the shards",
        "category 'owl' is",
    ),
    "two others": (
        [TRAINED[0], Category(7, "elk"), Category(90, "owl")],
        "'cat', 'kite' only in data.shards and 'elk', 'owl' only in data.eval_shards",
        "'elk', 'owl' only in the shards and 'cat', 'kite' only in the model",
        "categories 'elk', 'owl' are",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", TABLES)
def test_tables_of_a_second_split(tmp_path: Path, case: str) -> None:
    """In training, in an evaluation by a model of the first split, and when packed with its names."""
    table, in_training, in_evaluation, packed = TABLES[case]
    names, model = [one.name for one in table], [one.name for one in TRAINED]
    for found, reason, check in (
        (in_training, OTHER, lambda: check_classes(0, card(TRAINED), card(table))),
        (in_evaluation, MODEL, lambda: check_same_categories(names, model, 3, tmp_path)),
    ):
        if found is None:
            check()
            continue
        with pytest.raises(DataError, match=reason.format(found)) as error:
            check()
        assert "\n" not in str(error.value)
    if isinstance(packed, str):
        with pytest.raises(DataError, match=KNOWN.format(packed)):
            category_table(table, TRAINED, "x")
        return
    kept, numbers = category_table(table, TRAINED, "x")
    assert ([one.name for one in kept], numbers) == (model, packed)
    assert [kept[number].id for number in numbers] == [one.id for one in table]
    assert len({one.id for one in kept if one.id is not None}) == sum(one.id is not None for one in kept)


def test_other_ids_are_pointed_out_between_splits_and_refused_within_one() -> None:
    """Results have the ids of the split that is evaluated, so a split with two ids of a category has no results."""
    table, *_ = TABLES["other ids"]
    first, second = card(TRAINED), card(table)
    (line,) = other_ids({"data.shards": first, "data.eval_shards": second})
    assert line.startswith("the category 'dog' has the id 2 in data.shards and 1 in data.eval_shards: the results")
    for same in (TRAINED, TABLES["no ids"][0], TABLES["another case"][0]):
        assert other_ids({"data.shards": first, "data.eval_shards": card(same)}) == []
        check_one_numbering(Card.merged([first, card(same)]), "shards")
    assert other_ids({"data.shards": first, "data.eval_shards": None}) == []
    assert other_ids({"data.shards": first, "data.eval_shards": Card()}) == []
    with pytest.raises(DataError, match=r"the shards of data.shards give the category 'dog' the ids 2 and 1, of which"):
        check_classes(3, Card.merged([first, second]), None)


@pytest.mark.parametrize(("tables", "expected"), [
    ([[3, None, None], [None, 90, None], [3, 90, 5]], [3, 90, 5]),
    ([[None, None, None], [None, "k", None]], [None, "k", None]),
    ([[3, None, None], [None, 3, None]], "the categories 'dog' and 'cat' the same id 3: use"),
    ([[3, None, None], [None, 90, None], [4, 90, None]], "the category 'dog' the ids 3 and 4, of which"),
    ([[None, None, None], [None, 90, None], [None, 91, None]], "the category 'cat' the ids 90 and 91, of which"),
])  # fmt: skip
def test_parts_of_a_split_complete_their_ids(tables: list[list[Any]], expected: list[Any] | str) -> None:
    """Parts that were packed one after another list only the categories that they have, with ids."""
    parts = [
        card([replace(one, id=identifier) for one, identifier in zip(TRAINED, ids, strict=True)]) for ids in tables
    ]
    for order in (parts, parts[::-1]):
        merged = Card.merged(order)
        if isinstance(expected, str):
            with pytest.raises(DataError, match="give the categor"):
                check_one_numbering(merged, "shards")
            continue
        check_one_numbering(merged, "shards")
        assert merged.objects is not None
        assert [one.id for one in merged.objects.categories] == expected
        assert repeated_id(merged.objects.categories) is None
    if isinstance(expected, str):
        with pytest.raises(DataError, match=expected):
            check_one_numbering(Card.merged(parts), "shards")
    assert [one.id for one in parts[0].objects.categories] == tables[0], "unchanged"


def test_a_model_without_names_needs_as_many_categories(tmp_path: Path) -> None:
    check_same_categories(["dog", "cat"], None, 2, tmp_path)
    check_same_categories(None, ["dog", "cat"], 2, tmp_path)
    with pytest.raises(DataError, match=r"the shards have 2, and the model 3\): .*--class-names FILE, a name per line"):
        check_same_categories(["dog", "cat"], None, 3, tmp_path)
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(DataError, match=rf"--class-names {tmp_path}/manifest.json$"):
        check_same_categories(["cat", "dog"], ["dog", "cat"], 2, tmp_path)


@pytest.mark.parametrize(("now", "what"), [
    (["Dog", "CAT", "kite"], None),
    (["cat", "dog", "kite"], "class 0 was 'dog' and is 'cat' in the data"),
    (["dog", "elk", "kite"], "class 1 was 'cat' and is 'elk' in the data"),
])  # fmt: skip
def test_data_that_was_packed_again_is_compared_on_resume(now: list[str], what: str | None) -> None:
    found = Identity({}, now).differences({"classes": [one.name for one in TRAINED]})
    assert [one.what for one in found] == ([] if what is None else [what])


def test_ids_that_this_split_does_not_list_are_unknown(tmp_path: Path) -> None:
    """The id of a category that only the first split has is not one of this split."""
    content = coco() | {"categories": [{"id": 7, "name": "Cat"}]}
    content["annotations"] = [annotation(1, 100, 7), annotation(2, 100, 2)]
    read = READERS["coco"](write_coco(tmp_path, content), TRAINED)
    assert read.categories == [TRAINED[0], TRAINED[1], TRAINED[2]]
    assert [one["category"] for one in read.store.of_image(0)] == [1]
    assert read.cleaning.counts["unknown category"][0] == 1


@pytest.mark.parametrize("kind", ["boxes", "voc"])
def test_names_without_ids_match_apart_from_case(tmp_path: Path, kind: str) -> None:
    place = tmp_path / "boxes.csv"
    place.write_text("image,x,y,w,h,label\na.jpg,1,2,5,5,KITE\na.jpg,1,2,5,5,Dog\n")
    if kind == "voc":
        place = tmp_path / "voc"
        place.mkdir()
        one = (
            "<object><name>{}</name><bndbox><xmin>2</xmin><ymin>3</ymin><xmax>6</xmax><ymax>7</ymax></bndbox></object>"
        )
        (place / "a.xml").write_text(f"<annotation>{one.format('KITE')}{one.format('Dog')}</annotation>")
    read = READERS[kind](place, TRAINED)
    assert [one["category"] for one in read.store.of_image(0)] == [2, 0]
    assert [one.name for one in read.categories] == ["dog", "cat", "kite"]


def test_ids_of_a_config_are_those_of_results_without_a_card() -> None:
    from swinv2_train.config.compose import compose
    from swinv2_train.tasks.detection.task import Detection

    def ids(*overrides: Any) -> list[tuple[int | str | None, str]]:
        config = compose(["task=detection", "task.num_classes=2", "task.masks=false", "data.resolution=64", *overrides])
        assert isinstance(config.task, DetectionConfig)
        return [(one.id, one.name) for one in Detection(config, [0.5] * 3, [0.2] * 3).categories]

    assert ids() == [(1, "class 0"), (2, "class 1")]
    assert ids("task.category_ids=[7,3]") == [(7, "class 0"), (3, "class 1")]
