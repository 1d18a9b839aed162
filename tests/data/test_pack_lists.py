"""Lists in the forms that spreadsheets and scripts write, and a refusal of all others that names line and column."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from swinv2_train.data.errors import DataError
from swinv2_train.data.pack_lists import class_labels, located, read_list
from swinv2_train.data.pack_sources import Source, open_source

NAMES = ("a.jpg", "b.jpg", "sub/c.jpg", "d, e.jpg", "sub/f g.png")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for name in NAMES:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"not looked at")
    return tmp_path


def read(folder: Path, text: str | bytes, name: str = "list.csv") -> Source:
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return open_source(str(folder / name), classes=False, seed=0)


def labels(source: Source) -> dict[str, object]:
    """The label of each file: names of classes if they have names."""
    names = source.class_names

    def named(label: object) -> object:
        if isinstance(label, tuple):
            return [names[number] if names else number for number in label]
        return names[label] if names and isinstance(label, int) else label

    return {os.path.basename(entry.path): named(entry.label) for entry in source.entries}


TWO = {"a.jpg": "owl", "b.jpg": "seal"}


@pytest.mark.parametrize(
    "text",
    [
        "path,label\na.jpg,owl\nb.jpg,seal\n",
        "a.jpg,owl\nb.jpg,seal\n",
        "a.jpg;owl\nb.jpg;seal\n",
        "a.jpg\towl\nb.jpg\tseal\n",
        "a.jpg|owl\nb.jpg|seal",
        "filename;label\r\na.jpg;owl\r\nb.jpg;seal\r\n",
        "Image,Class\na.jpg,owl\nb.jpg,seal\n",
        "label,file\nowl,a.jpg\nseal,b.jpg\n",
        "width,label,file_name,height\n3,owl,a.jpg,4\n3,seal,b.jpg,4\n",
        ",path,label\n0,a.jpg,owl\n1,b.jpg,seal\n",
        '"path","label"\n"a.jpg","owl"\n"b.jpg","seal"\n',
        "path, label\n a.jpg , owl\nb.jpg,  seal \n",
        "\n\npath,label\n\na.jpg,owl\n,,\nb.jpg,seal,,\n\n",
        "path,label\ra.jpg,owl\rb.jpg,seal\r",
        "sep=;\npath;label\na.jpg;owl\nb.jpg;seal\n",
        "path\tlabel\na.jpg\towl\nb.jpg\tseal\n",
        "path,label\n./a.jpg,owl\n.\\b.jpg,seal\n",
        b"\xef\xbb\xbfpath,label\r\na.jpg,owl\r\nb.jpg,seal\r\n",
        "path\tlabel\r\na.jpg\towl\r\nb.jpg\tseal\r\n".encode("utf-16"),
        "path,label\na.jpg,owl\nb.jpg,seal\n".encode("utf-32"),
    ],
    ids=range(20),
)
def test_a_table_is_read_however_it_is_written(images: Path, text: str | bytes) -> None:
    assert labels(read(images, text)) == TWO


def test_paths_with_separators_spaces_and_backslashes(images: Path) -> None:
    source = read(images, 'path,label\n"d, e.jpg",owl\nsub\\f g.png,seal\n')
    assert labels(source) == {"d, e.jpg": "owl", "f g.png": "seal"}
    assert sorted(entry.key for entry in source.entries) == ["d, e", "sub/f g"]
    assert labels(read(images, "d, e.jpg\nsub/c.jpg\n")) == {"d, e.jpg": None, "c.jpg": None}
    assert labels(read(images, f"path\n{images}/a.jpg\nb.jpg\n")) == {"a.jpg": None, "b.jpg": None}
    (images / "b\\c.jpg").write_bytes(b"")  # a backslash may be part of a name here
    assert located(images, "b\\c.jpg") == f"{images}/b\\c.jpg"


@pytest.mark.parametrize(
    ("cells", "numbers"),
    [
        (("1.0", "10"), (1, 10)),
        (("01", "1"), (1, 1)),
        (("2,", "3"), (2, 3)),
        (("10", "9"), (10, 9)),
    ],
)
def test_integers_are_class_numbers_however_they_are_written(
    images: Path, cells: tuple[str, str], numbers: tuple[int, int]
) -> None:
    source = read(images, f"path;label\na.jpg;{cells[0]}\nb.jpg;{cells[1]}\n")
    assert source.class_names is None
    assert labels(source) == {"a.jpg": numbers[0], "b.jpg": numbers[1]}
    text = "".join(
        json.dumps({"image": f, "class": n}) + "\n" for f, n in zip(("a.jpg", "b.jpg"), numbers, strict=True)
    )
    assert labels(read(images, text.replace("10}", "10.0}"), "list.jsonl")) == labels(source)


def test_only_rows_whose_file_exists_decide_the_classes(images: Path) -> None:
    source = read(images, "path,label\na.jpg,3\nb.jpg,7\ngone.jpg,aardvark\nsub,4\n")
    assert source.class_names is None
    assert labels(source) == {"a.jpg": 3, "b.jpg": 7}
    assert source.refused == (
        (f"{images}/gone.jpg", "the file does not exist (line 4 of list.csv)"),
        (f"{images}/sub", "it is a folder (line 5 of list.csv)"),
    )


def test_several_labels(images: Path) -> None:
    text = 'path;labels\na.jpg;"owl; seal;owl"\nb.jpg;seal\nsub/c.jpg;\n'
    assert labels(read(images, text)) == {"a.jpg": ["owl", "seal"], "b.jpg": ["seal"], "c.jpg": []}
    assert labels(read(images, "path,tags\na.jpg,1.0;2\nb.jpg,2\n")) == {"a.jpg": [1, 2], "b.jpg": [2]}


def test_a_repeated_row_is_skipped_and_named(images: Path) -> None:
    source = read(images, f"path,label\na.jpg,owl\nb.jpg,seal\n{images}/sub/../a.jpg,owl\n")
    assert labels(source) == TWO
    assert [reason for _, reason in source.refused] == ["line 4 of list.csv repeats line 2"]


def test_columns_that_are_not_read_are_named(images: Path) -> None:
    assert read(images, "path,label,w,h\na.jpg,owl,3,4\n").notes == (
        f"{images}/list.csv: columns that are not read: w, h",
    )
    text = '{"path": "a.jpg", "label": "owl", "w": 3}\n'
    assert read(images, text, "list.jsonl").notes == (f"{images}/list.jsonl: keys that are not read: w",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("foo,bar\na.jpg,owl\n", r"line 1: expected path or path,label, or a header .*, found 'foo,bar'"),
        ("id,label\na,owl\n", "line 1: expected path or path,label.* rename the column of the files to path"),
        ("path,width\na.jpg,3\n", "line 1: the column 'width' is not known; name the column of the classes label"),
        ("path,label,class\na.jpg,owl,x\n", "line 1: the columns 'label' and 'class' may both be the label; keep one"),
        ("path,file,label\na.jpg,a.jpg,x\n", "line 1: the columns 'path' and 'file' may both be the path"),
        ("a.jpg,owl,3\n", "line 1: expected path or path,label, found 'a.jpg,owl,3'"),
        ("path,label\na.jpg,owl,x\n", "line 2: 3 columns where the header has 2"),
        ("path,label\n,owl\n", "line 2, column path: it is empty"),
        ('path,label\na.jpg,"owl\nb.jpg,seal\n', r"line 2: .* \(quotes that do not match"),
        ('"path,label\na.jpg,owl\n', r"line 1: .* \(quotes that do not match"),
        ('path,label\na.jpg,"ow"l\n', r"line 2: .* \(quotes that do not match"),
        ("path,label\na.jpg,owl\nb.jpg,\n", "1 of 2 lines have no label, line 3 for one"),
        ("path,label\na.jpg,1\nb.jpg,nan\n", "line 3, column label: 'nan' is a missing value"),
        ("path,label\na.jpg,1\nb.jpg,None\n", "line 3, column label: 'None' is a missing value"),
        ("path,label\na.jpg,owl\nb.jpg,NaN\n", "line 3, column label: 'NaN' is a missing value"),
        ("path,label\na.jpg,1\nb.jpg,-1\n", "line 3, column label: '-1' is not a class number"),
        ("path,class\na.jpg,1.5\nb.jpg,1\n", "line 2, column class: '1.5' is not a class number"),
        ("path,label\na.jpg,inf\nb.jpg,1\n", "line 2, column label: 'inf' is not a class number"),
        ("path,label\na.jpg,owl\na.jpg,seal\n", "line 3, column label: a.jpg is 'seal' here and 'owl' in line 2"),
        ("path,labels\na.jpg,\"['owl']\"\n", "line 2, column labels: .* is not a list of classes; write a;b"),
        ('path,labels\na.jpg,"owl,seal"\n', "line 2, column labels: separate the classes 'owl,seal' with semicolons"),
        ("path,tags\na.jpg,owl seal\nb.jpg,owl\n", "line 2, column tags: separate the classes 'owl seal' with"),
        ('path,label\na.jpg,"1,000"\nb.jpg,2\n', "line 2, column label: '1,000' is not a class number"),
        ("path;label\na.jpg;1.000\nb.jpg;2\n", "line 2, column label: '1.000' is not a class number"),
        ("gone.jpg,owl\n", "none of its 1 files can be packed .* paths are taken relative to "),
        (b"path,label\na.jpg,\xe4\n", r"byte 17 \(line 2\) is not UTF-8: save it as UTF-8"),
        ("path,label\na.jpg,owl\n".encode("utf-16-le"), "zero bytes, as UTF-16 without a byte-order mark"),
        ("", "holds no images"),
        ("path,label\n", "holds no images"),
    ],
)
def test_what_is_not_understood_is_refused_with_line_and_column(images: Path, text: str | bytes, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        read(images, text)
    assert str(images) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "expected"),
        ("[]", "expected .*found"),
        ('{"label": 1}', "one path is needed, found label"),
        ('{"path": "a.jpg", "file": "b.jpg"}', "one path is needed, found path, file"),
        ('{"path": 3}', "path is 3"),
        ('{"path": ""}', "path is ''"),
        ('{"path": "a.jpg", "label": true}', "label has True, which is neither a name nor a number"),
        ('{"path": "a.jpg", "label": {"x": 1}}', "label has {'x': 1}"),
        ('{"path": "a.jpg", "label": [1]}', r"label has \[1\]"),
        ('{"path": "a.jpg", "label": NaN}', "NaN is a missing value"),
        ('{"path": "a.jpg", "label": ""}', "label has ''"),
        ('{"path": "a.jpg", "labels": [1, null]}', "labels has None"),
        ('{"path": "a.jpg", "label": 1, "class": 2}', "one label is needed, found label, class"),
        ('{"path": "a.jpg", "path": "b.jpg"}', "a key is given twice"),
        ("[" * 100_000, "expected"),
    ],
)
def test_json_lines_of_wrong_types_are_refused(images: Path, line: str, message: str) -> None:
    with pytest.raises(DataError, match=f"list.jsonl, line 3: expected .*{message}|line 3: {message}"):
        read(images, f'\ufeff{{"path": "a.jpg"}}\n\n{line}\n', "list.jsonl")


def test_a_line_of_json_may_hold_any_character(images: Path) -> None:
    source = read(images, '{"file_name": "a.jpg", "label": "owl\u2028 or\\n not"}\r\n', "list.jsonl")
    assert source.class_names == ["owl\u2028 or\n not"]


def test_numbers_among_names_are_names(images: Path) -> None:
    found = read_list(Path(read(images, "path,label\na.jpg,0\nb.jpg,x\n").root))
    assert class_labels(found, found.rows) == ["0", "x"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("list.txt", "name it .csv or .tsv"),
        ("list.json", "write one object per line"),
        ("list.XLSX", "save it as CSV UTF-8"),
        ("a.jpg", "it is an image; name its folder"),
    ],
)
def test_files_that_are_not_lists_say_what_to_do(images: Path, name: str, message: str) -> None:
    with pytest.raises(DataError, match=f"is not a list that can be read: {message}"):
        read(images, "path\na.jpg\n", name)
