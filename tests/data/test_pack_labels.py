"""Labels that are packed with the images: from lists, from folders, one or several, by name or by number."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from swinv2_train.data.class_names import read_class_names
from swinv2_train.data.errors import DataError
from swinv2_train.data.labels import read_labels
from swinv2_train.data.pack import pack
from swinv2_train.data.shards import IMAGE_AND_TEXTS
from tests.data.packed import SMALL, open_set
from tests.data.packed import folder as folder
from tests.data.samples import jpeg


@pytest.mark.parametrize("kind", ["csv with header", "csv without", "jsonl"])
def test_lists_with_labels(folder: Path, tmp_path: Path, kind: str) -> None:
    rows = [(f"cats/img{n:03d}.jpg", "seal" if n % 2 else "owl") for n in (1, 2, 4, 5)] + [("gone.jpg", "owl")]
    path = folder / ("list.jsonl" if kind == "jsonl" else "list.csv")
    with path.open("w", newline="") as file:
        if kind == "jsonl":
            file.writelines(json.dumps({"path": name, "label": label}) + "\n" for name, label in rows)
        else:
            csv.writer(file).writerows(([("path", "label")] if kind == "csv with header" else []) + rows)
    report = pack(str(path), tmp_path / "out", SMALL)
    assert [(Path(line["path"]).name, line["reason"]) for line in report.broken] == [
        ("gone.jpg", f"the file does not exist (line {6 if kind == 'csv with header' else 5} of {path.name})")
    ]
    shards = open_set(tmp_path / "out")
    labels = {sample.key: sample.label for sample in (shards.read(i, IMAGE_AND_TEXTS) for i in range(4))}
    assert labels == {"cats/img001": 1, "cats/img002": 0, "cats/img004": 0, "cats/img005": 1}
    assert shards.card is not None
    assert shards.card.class_names == ["owl", "seal"]


def test_lists_with_numbers_keep_them_and_may_have_no_labels(folder: Path, tmp_path: Path) -> None:
    (folder / "numbers.csv").write_text("cats/img001.jpg,7\ncats/img002.jpg,3\n")
    pack(str(folder / "numbers.csv"), tmp_path / "numbers", SMALL)
    shards = open_set(tmp_path / "numbers")
    assert {s.key: s.label for s in (shards.read(i, IMAGE_AND_TEXTS) for i in range(2))} == {
        "cats/img001": 7,
        "cats/img002": 3,
    }
    (folder / "plain.csv").write_text("cats/img001.jpg\ncats/img002.jpg\n")
    pack(str(folder / "plain.csv"), tmp_path / "plain", SMALL)
    assert open_set(tmp_path / "plain").read(0, IMAGE_AND_TEXTS).label is None


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_lists_with_several_labels_per_image(folder: Path, tmp_path: Path, kind: str) -> None:
    rows = [("cats/img001.jpg", ["owl", "seal"]), ("cats/img002.jpg", ["seal"]), ("cats/img004.jpg", [])]
    path = folder / f"many.{kind}"
    if kind == "csv":
        path.write_text("path,labels\n\n" + "".join(f"{name},{'; '.join(labels)}\n" for name, labels in rows))
    else:
        path.write_text("".join(json.dumps({"path": name, "labels": labels}) + "\n" for name, labels in rows))
    report = pack(str(path), tmp_path / "out", SMALL)
    shards = open_set(tmp_path / "out")
    samples = {sample.key: sample for sample in (shards.read(i, IMAGE_AND_TEXTS) for i in range(3))}
    found = {key: read_labels(sample) for key, sample in samples.items()}
    assert found == {"cats/img001": (0, 1), "cats/img002": (1,), "cats/img004": ()}
    assert samples["cats/img001"].metadata == {"labels": [0, 1]}
    assert report.cards["train"].class_counts == {0: 1, 1: 2}
    assert report.cards["train"].class_names == ["owl", "seal"]
    again = pack(str(tmp_path / "out"), tmp_path / "again", SMALL)
    assert again.cards["train"].class_counts == {0: 1, 1: 2}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.jsonl", '{"path": "a.jpg", "labels": 3}', "line 1: expected"),
        ("a.jsonl", '{"path": "a.jpg", "labels": [1], "label": 2}', "line 1: expected"),
        (
            "a.jsonl",
            '{"path": "a.jpg", "labels": [1]}\n{"path": "b.jpg", "label": 1}',
            "1 of 2 lines have no list of labels",
        ),
        ("a.jsonl", '{"path": "a.jpg", "label": 1}\n{"path": "b.jpg"}', "1 of 2 lines have no label"),
    ],
)
def test_lists_that_mix_kinds_of_labels_are_refused(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        pack(str(tmp_path / name), tmp_path / "out", SMALL)


def test_class_names_of_another_split_number_the_classes(folder: Path, tmp_path: Path) -> None:
    """A held-out folder that lacks a class, and one whose folders are numbers."""
    pack(str(folder), tmp_path / "out", SMALL, classes=True)
    few = tmp_path / "few" / "dogs"
    few.mkdir(parents=True)
    (few / "x.jpg").write_bytes(jpeg(1))
    report = pack(
        str(few.parent), tmp_path / "out", SMALL, split="val", classes=True,
        class_names=tmp_path / "out" / "train.dataset.json",
    )  # fmt: skip
    assert report.cards["val"].class_names == ["cats", "dogs"]
    assert report.cards["val"].class_counts == {1: 1}
    for number in ("0", "10", "2"):
        (tmp_path / "numbers" / number).mkdir(parents=True)
        (tmp_path / "numbers" / number / "x.jpg").write_bytes(jpeg(1))
    names = tmp_path / "names.txt"
    names.write_text("\n".join(str(number) for number in range(11)) + "\n")
    report = pack(str(tmp_path / "numbers"), tmp_path / "v2", SMALL, classes=True, class_names=names)
    assert report.cards["train"].class_counts == {0: 1, 2: 1, 10: 1}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_class_names_may_come_from_a_spreadsheet(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "names.txt").write_bytes("cats\r\ndögs\r\n\r\n".encode(encoding))
    assert read_class_names(tmp_path / "names.txt") == ["cats", "dögs"]


def test_class_names_that_do_not_fit_are_one_sentence(folder: Path, tmp_path: Path) -> None:
    def refused(text: str, message: str, name: str = "names.txt", source: Path = folder, classes: bool = True) -> None:
        (tmp_path / name).write_text(text)
        with pytest.raises(DataError, match=message):
            pack(str(source), tmp_path / "out", SMALL, classes=classes, class_names=tmp_path / name)

    refused("cats\n", "the class 'dogs' is not one of the names in --class-names .1 name")
    refused("cats\ndogs\ncats\n", "line 3: 'cats' is in line 1, too: every class needs its own name")
    refused("cats\n\n \ndogs\n", "names.txt, line 2: the line is blank, and the lines number the classes: write a name")
    refused("\n", "are empty: write a name per line")
    refused("{", "is damaged", "train.dataset.json")
    refused("cats\ndogs\n", "--class-names numbers the classes of a list, or of a folder with --classes", classes=False)
    with pytest.raises(DataError, match=r"none.txt cannot be read \(No such file or directory\): check the path"):
        pack(str(folder), tmp_path / "out", SMALL, classes=True, class_names=tmp_path / "none.txt")
    (tmp_path / "blank_end.txt").write_text("cats\ndogs\n\n\n")
    assert read_class_names(tmp_path / "blank_end.txt") == ["cats", "dogs"]
