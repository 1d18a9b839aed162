"""Classes get the same numbers from a folder, a list and a head, and finished shards keep theirs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from swinv2_train.data.class_names import read_class_names
from swinv2_train.data.class_order import in_order, is_text_order_of_numbers
from swinv2_train.data.errors import DataError
from swinv2_train.data.pack import PackRun, pack
from swinv2_train.data.shards import IMAGE_AND_TEXTS
from tests.data.packed import SMALL, open_set
from tests.data.samples import write_folder

NUMBERS = [str(number) for number in range(11)]


@pytest.mark.parametrize(
    ("names", "ordered"),
    [
        (NUMBERS, NUMBERS),
        (["10", "9", "007", "8"], ["007", "8", "9", "10"]),
        (["10", "9", "b"], ["10", "9", "b"]),
        (["1.0", "10", "9"], ["1.0", "10", "9"]),
        (["9" * 30, "1"], ["1", "9" * 30]),
        (["\u00b2", "10", "9"], ["10", "9", "\u00b2"]),
        ([], []),
    ],
)
def test_names_that_are_all_numbers_are_sorted_by_value(names: list[str], ordered: list[str]) -> None:
    assert in_order(reversed(names)) == ordered


def test_text_order_of_numbers() -> None:
    assert is_text_order_of_numbers(sorted(NUMBERS))
    assert not is_text_order_of_numbers(NUMBERS)
    assert not is_text_order_of_numbers(["1", "2", "10"])


def labels(out: Path) -> dict[str, int]:
    """The label of every sample by its key."""
    shards = open_set(out)
    read = (shards.read(index, IMAGE_AND_TEXTS) for index in range(shards.num_samples))
    return {raw.key: raw.label for raw in read}


@pytest.fixture
def numbered(tmp_path: Path) -> Path:
    """A folder with one image in each of the subfolders 0 to 10."""
    for name in NUMBERS:
        write_folder(tmp_path / "src" / name, 1)
    return tmp_path / "src"


def test_folders_and_a_list_of_the_same_numbers_agree(numbered: Path, tmp_path: Path) -> None:
    files = sorted(path for path in numbered.rglob("*") if path.is_file())
    rows = [f"{path.relative_to(numbered)},{path.relative_to(numbered).parts[0]}" for path in files]
    (numbered / "list.csv").write_text("path,label\n" + "\n".join(rows) + "\n")
    pack(str(numbered / "list.csv"), tmp_path / "listed", SMALL)
    (numbered / "list.csv").unlink()
    report = pack(str(numbered), tmp_path / "folders", SMALL, classes=True)
    assert report.cards["train"].class_names == NUMBERS
    assert labels(tmp_path / "folders") == labels(tmp_path / "listed")
    assert sorted(labels(tmp_path / "folders").values()) == list(range(11))


def test_shards_in_the_order_of_text_keep_it_or_are_numbered_again_on_request(numbered: Path, tmp_path: Path) -> None:
    out, names = tmp_path / "out", tmp_path / "names.txt"
    names.write_text("\n".join(sorted(NUMBERS)))
    pack(str(numbered), out, SMALL, classes=True, class_names=names)
    before = labels(out)
    assert before["2/dogs/img000"] == sorted(NUMBERS).index("2")
    manifest = out / "train.dataset.json"
    with pytest.raises(DataError, match=r"class 2 is '10' in .* and would be '2': --class-names .* --overwrite"):
        pack(str(numbered), out, SMALL, classes=True)
    assert labels(out) == before
    report = pack(str(numbered), out, SMALL, classes=True, class_names=manifest)
    assert (report.num_reused, labels(out)) == (report.num_shards, before)
    pack(str(numbered), out, SMALL, classes=True, how=PackRun(overwrite=True))
    assert labels(out)["2/dogs/img000"] == 2


def test_names_come_from_a_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps({"geometry": {"classes": ["b", "a"]}}))
    assert read_class_names(path) == ["b", "a"]
    for text in ("{}", "[1]", '{"geometry": {"classes": null}}', '{"geometry": {"classes": 3}}', "{"):
        path.write_text(text)
        with pytest.raises(DataError, match=r"manifest of a checkpoint|no names of classes"):
            read_class_names(path)
