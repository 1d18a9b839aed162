"""Classes of a test set find those of a model: by a list, by name, by several labels per image."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from swinv2_train.data.errors import DataError
from swinv2_train.data.label_map import (
    check_same_classes,
    match_names,
    read_label_map,
    read_real_labels,
    real_labels_of,
)


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_a_map_is_a_class_of_the_model_per_line(tmp_path: Path) -> None:
    assert read_label_map(written(tmp_path / "map.txt", "359\n368\n\n7\n"), 21841) == [359, 368, 7]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("1\nn01440764\n", "line 2: 'n01440764' is not a class number"),
        ("1\n-1\n", "line 2: '-1' is not a class number"),
        ("3\n10\n", "line 2: class 10 of a model that has 0 to 9"),
        ("\n", "is empty"),
    ],
)
def test_a_wrong_map_is_one_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        read_label_map(written(tmp_path / "map.txt", text), 10)


def test_a_map_that_is_not_text_or_does_not_exist(tmp_path: Path) -> None:
    (tmp_path / "map.bin").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="is not a text file"):
        read_label_map(tmp_path / "map.bin", 10)
    with pytest.raises(DataError, match="cannot be read"):
        read_label_map(tmp_path / "nothing", 10)


def test_numbered_folders_are_matched_by_their_number() -> None:
    folders = sorted(map(str, range(12)))
    assert folders[:4] == ["0", "1", "10", "11"]
    assert match_names(folders, None, 12) == [0, 1, 10, 11, 2, 3, 4, 5, 6, 7, 8, 9]


def test_a_part_of_the_classes_is_matched_by_name() -> None:
    assert match_names(["elk", "cat"], ["cat", "dog", "elk"], 3) == [2, 0]
    assert match_names(["elk"], ["crane", "crane", "elk"], 3) == [2]
    with pytest.raises(DataError, match="several classes of the model are named 'crane'"):
        match_names(["elk", "crane"], ["crane", "crane", "elk"], 3)
    with pytest.raises(DataError, match="none of the model's names"):
        match_names(["9" * 5000], ["cat"], 1)


def test_numbers_are_the_classes_of_a_model_with_other_names() -> None:
    folders = sorted(map(str, range(12)))
    wnids = [f"n{number:08d}" for number in range(12)]
    assert match_names(folders, wnids, 12) == [0, 1, 10, 11, 2, 3, 4, 5, 6, 7, 8, 9]
    assert match_names(["7", "3"], wnids, 12) == [7, 3]
    assert match_names(folders, folders, 12) == list(range(12)), "names go before numbers"
    with pytest.raises(DataError, match="class '12' of the data is none of the model's names"):
        match_names(["12", "0"], [*wnids[:11], "0"], 12)
    with pytest.raises(DataError, match="class '0' of the data is none of the model's names"):
        match_names(["0", "2"], ["1", "2", "3"], 3)  # a model of numbered folders has no class for it
    with pytest.raises(DataError, match="two classes of the data are the same number"):
        match_names(["7", "07"], wnids, 12)


def test_names_that_do_not_match_are_named() -> None:
    with pytest.raises(DataError, match="class 'fox' of the data is none of the model's names"):
        match_names(["cat", "fox"], ["cat", "dog"], 2)
    with pytest.raises(
        DataError, match=r"class 'cat' of the data is not a number from 0 to 2 \(the model has no names"
    ):
        match_names(["cat"], None, 3)
    with pytest.raises(DataError, match="do not record class names"):
        match_names(None, ["cat"], 1)


def test_folders_sorted_as_text_are_refused_without_a_map() -> None:
    with pytest.raises(DataError, match="class 2 of the shards is the folder '10'"):
        check_same_classes(sorted(map(str, range(12))), None)
    with pytest.raises(DataError, match="class 1 is 'elk' in the shards and 'dog' in the model: use label_map=names"):
        check_same_classes(["cat", "elk"], ["cat", "dog", "elk"])
    with pytest.raises(DataError, match="'0' in the shards and 'n0' in the model: use label_map=names to match them"):
        check_same_classes(["0", "1"], ["n0", "n1"])
    with pytest.raises(DataError, match="and 'tench, Tinca tinca' in the model: use label_map=numbers if only"):
        check_same_classes(["n01440764"], ["tench, Tinca tinca"])


@pytest.mark.parametrize(
    ("data", "model"),
    [
        (None, ["cat"]),
        ([str(number) for number in range(10)], None),
        (["7", "3"], None),  # names that are not a numbering at all
        (["cat", "dog"], None),
        (["cat", "dog"], ["cat", "dog", "elk"]),
    ],
)
def test_classes_that_agree_or_cannot_tell_pass(data: list[str] | None, model: list[str] | None) -> None:
    check_same_classes(data, model)


def test_real_labels_go_by_the_number_in_the_file_name(tmp_path: Path) -> None:
    labels = read_real_labels(written(tmp_path / "real.json", json.dumps([[65, 795], [], [230]])))
    assert real_labels_of("val/n01751748/ILSVRC2012_val_00000001", labels) == [65, 795]
    assert real_labels_of("ILSVRC2012_val_00000002", labels) == []
    assert real_labels_of("ILSVRC2012_val_00000003_n02105855", labels) == [230]
    assert real_labels_of("ILSVRC2012_val_00000004", labels) is None


def test_real_labels_may_be_given_by_name(tmp_path: Path) -> None:
    labels = read_real_labels(written(tmp_path / "real.json", json.dumps({"img7": [1], "a/b": [2]})))
    assert [real_labels_of(key, labels) for key in ("some/img7", "a/b", "b")] == [[1], [2], None]


@pytest.mark.parametrize(
    ("text", "sentence"), [("[", "not JSON"), ("[1, 2]", "list of lists"), ("[]", "list of lists")]
)
def test_wrong_real_labels_are_one_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        read_real_labels(written(tmp_path / "real.json", text))
