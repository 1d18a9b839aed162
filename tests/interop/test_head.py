"""Rows of a head go by the names of classes where both sides have them."""

from __future__ import annotations

import pytest
import torch

from swinv2_train.config.compose import compose
from swinv2_train.config.errors import ConfigError
from swinv2_train.config.model import ModelConfig
from swinv2_train.engine.fill_in import read_map
from swinv2_train.interop.head import rows_by_name
from swinv2_train.interop.source import WeightSource, open_source
from swinv2_train.interop.transfer import Transfer, plan_transfer
from swinv2_train.models import ImageClassifier
from tests.interop.made import CLASSES, SMALL, write_model


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> WeightSource:
    return open_source(write_model(tmp_path_factory.mktemp("weights") / "model.safetensors"))


def into(source: WeightSource, names: list[str] | None, count: int = 6, label_map: list[int] | None = None) -> Transfer:
    config = ModelConfig(**SMALL)
    with torch.device("meta"):
        model = ImageClassifier(config, count, (64, 64))
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    return plan_transfer(source, shapes, config, label_map, resolution=(64, 64), class_names=names)


def test_a_name_that_several_classes_have_gives_no_row() -> None:
    found = rows_by_name(["crane", "fox"], ["crane", "owl", "crane", "fox"])
    assert found is not None
    assert found.rows == [None, 3]


OTHERS = ["kind 5", "fox", "kind 0", "owl"]


@pytest.mark.parametrize(
    ("names", "rows"),
    [
        (CLASSES, list(range(6))),
        (CLASSES[::-1], [5, 4, 3, 2, 1, 0]),
        ([*CLASSES[1:], "zero"], [1, 2, 3, 4, 5, None]),
        (OTHERS, [5, None, 0, None]),
        (CLASSES[:2], [0, 1]),
        (["a", "b", "c", "d", "e", "f"], [None] * 6),
        (None, list(range(6))),
    ],
)
def test_every_row_is_that_of_the_same_name(
    source: WeightSource, names: list[str] | None, rows: list[int | None]
) -> None:
    transfer = into(source, names, len(rows))
    for key in ("head.weight", "head.bias"):
        there, here = source.tensor(key), transfer.tensor(key)
        assert here is not None
        for number, row in enumerate(rows):
            expected = torch.zeros_like(there[0]) if row is None else there[row]
            assert torch.equal(here[number], expected), (key, number)
        assert torch.equal(transfer.elements(key, 1, 3), here.flatten()[1:3])
    assert torch.equal(transfer.tensor("backbone.norm.weight"), source.tensor("norm.weight"))


def test_the_report_has_a_line_for_every_row(source: WeightSource) -> None:
    transfer = into(source, OTHERS, 4)
    table = transfer.table()
    for line in (
        "head row 0 (kind 5): row 5 of the source (kind 5)", "head row 1 (fox): new, zeros",
        "head row 2 (kind 0): row 0 of the source (kind 0)", "head row 3 (owl): new, zeros",
    ):  # fmt: skip
        assert line in table.splitlines()
    assert any("2 of 6 rows by class name; 2 new, zeros (fox, owl)" in line for line in transfer.lines())
    assert "head row" not in into(source, CLASSES).table()
    alien = into(source, list("abcdef"))
    assert {row.action for row in alien.rows if row.key.startswith("head")} == {"new"}
    assert any("none of the 6 classes has the name of one of the source's 6" in line for line in alien.lines())


@pytest.mark.parametrize(
    ("option", "names", "mapped"),
    [
        ("null", OTHERS, None),
        ("names", CLASSES[::-1], [5, 4, 3, 2, 1, 0]),
        ("names", ["kind 3", "kind 1"], [3, 1]),
        ("names", ["5", "0", "2"], [5, 0, 2]),
        ("names", OTHERS, "init.label_map=names: class 'fox' of the data is none of the model's names"),
        ("names", None, "init.label_map=names: the shards do not record class names"),
        ("numbers", list("abcdef"), [0, 1, 2, 3, 4, 5]),
        ("numbers", OTHERS, "init.label_map=numbers: uses class n for class n, but .* has 6 classes, and the run 4"),
    ],
)
def test_the_option_names_the_rule(
    source: WeightSource, option: str, names: list[str] | None, mapped: list[int] | str | None
) -> None:
    count = len(names or CLASSES)
    config = compose(["task=classification", f"task.num_classes={count}", "init_from=x", f"init.label_map={option}"])
    if isinstance(mapped, str):
        with pytest.raises(ConfigError, match=mapped) as caught:
            read_map(config, source, names)
        assert " label_map=" not in str(caught.value).replace("init.label_map=", ""), "advice names the key of a run"
        return
    assert read_map(config, source, names) == mapped
    if mapped is not None:
        head = into(source, names, count, mapped).tensor("head.weight")
        assert head is not None
        assert torch.equal(head, source.tensor("head.weight")[mapped])


def test_names_that_differ_in_case_or_spaces_match_if_nothing_else_does() -> None:
    found = rows_by_name(
        ["person", "traffic light", "cat", "Fox", "fox"], ["Traffic_Light", "Person", "fox", "FOX", "dog"]
    )
    assert found is not None
    assert found.rows == [1, 0, None, None, 2]  # FOX can be no other's, because the model has two such names


def test_sides_without_names_are_not_matched() -> None:
    assert rows_by_name(None, ["a"]) is None
    assert rows_by_name(["a"], None) is None
    assert rows_by_name(["a"], ["a"]) is None
