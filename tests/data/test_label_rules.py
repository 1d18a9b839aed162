"""Values of label maps become class numbers by explicit rules, and everything else is refused in one sentence."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from swinv2_train.data.errors import BrokenSample, DataError
from swinv2_train.data.label_rules import LabelRules, read_rules

MAP = np.array([[0, 1, 2], [2, 2, 255]], np.uint8)
COLORS = np.array([[[0, 0, 0], [128, 64, 128], [128, 64, 128]]], np.uint8)
TWO = ("sea", "land")
TABLE = "r,g,b,class\n0,0,0,ignore\n128,64,128,road\n70,70,70,house\n"


def table(tmp_path: Path, text: str, names: tuple[str, ...] | None = None, ignore: int | None = None) -> LabelRules:
    path = tmp_path / "table.csv"
    path.write_text(text)
    return read_rules(names, path, ignore, zero_is_ignore=False)


def test_values_become_class_numbers(tmp_path: Path) -> None:
    three = ("sea", "land", "town")
    assert LabelRules(three, 255).packed(MAP).tolist() == MAP.tolist()
    numbered = LabelRules(("sea", "land"), 255, zero_is_ignore=True)
    assert numbered.packed(MAP).tolist() == [[255, 0, 1], [1, 1, 255]]
    many = LabelRules(tuple(f"c{number}" for number in range(300)), 7000)
    wide = many.packed(np.array([[299, 0, 7000]], np.uint16))
    assert (wide.dtype, wide.tolist()) == (np.uint16, [[299, 0, 65535]])
    assert LabelRules(tuple(map(str, range(255))), None).packed_ignore == 255
    assert LabelRules(tuple(map(str, range(256))), None).packed_ignore == 65535
    values = table(tmp_path, "value;class\n0;sea\n255;land\n7;Ignore\n")
    assert values.names == TWO
    assert values.packed(np.array([[0, 255, 7]], np.uint16)).tolist() == [[0, 1, 255]]
    named = table(tmp_path, "Value,Name\n2,1\n0,sea\n1,sea\n", TWO, ignore=255)
    assert named.packed(MAP).tolist() == [[0, 0, 1], [1, 1, 255]]
    colors = table(tmp_path, TABLE)
    assert (colors.colors, colors.names) == (True, ("road", "house"))
    assert colors.packed(COLORS).tolist() == [[255, 0, 0]]


SMOOTH = np.arange(200, dtype=np.uint8)[None]
WRONG = {
    "value": (
        LabelRules(TWO, 255),
        MAP,
        r"value 2 \(3 pixels\) not among the classes 0 to 1; if 0 means no class",
    ),
    "no ignored value": (
        LabelRules(("a", "b", "c")),
        MAP,
        r"value 255 \(1 pixel\) not .* have no class, add --ignore",
    ),
    "binary": (LabelRules(TWO), MAP[1:, 2:], "if 255 is the second class, map it with --colors table.csv"),
    "several": (
        LabelRules(("a",), 255),
        np.array([[1, 5, 6, 7, 5]], np.uint8),
        r"values 5 \(2 pixels\), 1 \(1 pixel\), 6 .*, and 1 more not .* check that --classes-file has all names$",
    ),
    "smoothed": (LabelRules(TWO), SMOOTH, "it has 198 values that are not classes .* as after smoothing or lossy"),
    "from one": (
        LabelRules(TWO, None, zero_is_ignore=True),
        np.array([[3]], np.uint8),
        "1 to 2: check that",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_values_that_are_not_classes_are_named_with_their_pixels(case: str) -> None:
    rules, stored, message = WRONG[case]
    with pytest.raises(BrokenSample, match=message):
        rules.packed(stored)


def test_colors_that_are_not_in_the_table_are_named(tmp_path: Path) -> None:
    rules = table(tmp_path, TABLE)
    with pytest.raises(BrokenSample, match=r"color \(1, 2, 3\) \(1 pixel\) not among the 3 colors in the table"):
        rules.packed(np.array([[[1, 2, 3], [0, 0, 0]]], np.uint8))
    smooth = np.arange(120, dtype=np.uint8).reshape(1, 40, 3)
    with pytest.raises(BrokenSample, match="it has 40 colors that are not classes"):
        rules.packed(smooth)


@pytest.mark.parametrize(
    ("text", "names", "message"),
    [
        ("", None, "line 1: expected a header r,g,b,class or value,class, found ''"),
        ("r,g,class\n0,0,a\n", None, "expected a header"),
        ("r,g,b,value,class\n0,0,0,1,a\n", None, "expected a header"),
        ("r,g,b,class\n0,0,300,a\n", None, "line 2, column b: '300' is not an integer from 0 to 255"),
        ("value,class\n-1,a\n", None, "line 2, column value: '-1' is not an integer from 0 to 65535"),
        ("r,g,b,class\n0,0,0,a\n0,0,0,b\n", None, "line 3: 0,0,0 is in line 2, too: remove one of the two lines"),
        ("r,g,b,class\n0,0,0\n", None, "line 2: 3 columns where the header has 4"),
        ("r,g,b,class\n0,0,0,\n", None, "line 2: the class is empty; write ignore"),
        ("r,g,b,class\n0,0,0,ignore\n", None, "has no class: write a row for each color"),
        ("r,g,b,class\n0,0,0,0\n", None, "class 0 has no name; add --classes-file FILE"),
        ("r,g,b,class\n0,0,0,lake\n", TWO, "the class 'lake' is not one of the names in --classes-file (2 names)"),
        ("r,g,b,class\n0,0,0,2\n", TWO, "the class '2' is not one of"),
    ],
)
def test_tables_that_are_not_understood_are_refused(
    tmp_path: Path, text: str, names: tuple[str, ...] | None, message: str
) -> None:
    with pytest.raises(DataError, match=re.escape(message) if "(" in message else message):
        table(tmp_path, text, names)


def test_rules_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"--ignore 0 is class 'sea' as well: omit --ignore, or .* --zero-is-ignore"):
        LabelRules(TWO, 0)
    with pytest.raises(DataError, match="--ignore 2 is class 'land' as well"):
        LabelRules(TWO, 2, zero_is_ignore=True)
    with pytest.raises(DataError, match="label maps can have 1 to 65,535 classes, not 0"):
        LabelRules(())
    with pytest.raises(DataError, match="--labels needs the names of the classes: add --classes-file FILE"):
        read_rules(None, None, 255, zero_is_ignore=False)
    with pytest.raises(DataError, match="--ignore 255 is for maps of values: give the color"):
        table(tmp_path, TABLE, ignore=255)
    with pytest.raises(DataError, match="--ignore 1 is class 'a' as well"):
        table(tmp_path, "value,class\n1,a\n", ignore=1)
    with pytest.raises(DataError, match="--zero-is-ignore numbers values, and --colors gives them classes"):
        read_rules(None, tmp_path / "table.csv", None, zero_is_ignore=True)
    with pytest.raises(DataError, match=r"the table .*none.csv cannot be read"):
        read_rules(TWO, tmp_path / "none.csv", None, zero_is_ignore=False)
