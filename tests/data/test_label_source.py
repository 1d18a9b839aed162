"""Labels in other members than cls, and classes that are counted from the shards."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from swinv2_train.config.schema import DataConfig, ProbeConfig
from swinv2_train.data.card import Card
from swinv2_train.data.configured import open_held_out, open_probe_sets, open_set, open_shards, open_training
from swinv2_train.data.errors import BrokenSample, DataError
from swinv2_train.data.label_counts import with_classes
from swinv2_train.data.label_source import LabelSource
from swinv2_train.data.raw_sample import RawSample
from swinv2_train.data.shards import ShardSet
from tests.data.samples import jpeg, write_tar


def sample(**members: object) -> RawSample:
    encoded = {name: text if isinstance(text, bytes) else json.dumps(text).encode() for name, text in members.items()}
    return RawSample("key", "jpg", {name.replace("_", "."): data for name, data in encoded.items()})


@pytest.mark.parametrize(
    ("spec", "members", "names", "labels"),
    [
        ("cls", {"cls": b" 3\n"}, None, (3,)),
        ("cls", {"cls": b"3,1"}, None, (3, 1)),
        ("cls", {"cls": b"dog"}, ["cat", "dog"], (1,)),
        ("label.cls", {"label_cls": b"2", "cls": b"9"}, None, (2,)),
        ("txt", {"txt": b"a, b"}, ["a, b"], (0,)),
        ("species", {"json": {"species": "dog"}}, ["cat", "dog"], (1,)),
        ("json:species", {"json": {"species": ["dog", "cat"]}}, ["cat", "dog"], (1, 0)),
        ("meta.species", {"json": {"meta": {"species": 4.0}}}, None, (4,)),
        ("meta.species", {"json": {"meta.species": "7"}}, None, (7,)),
        ("info.json:id", {"info_json": {"id": 0}}, None, (0,)),
        ("tags", {"json": {"tags": []}}, ["a"], ()),
    ],
)
def test_labels_are_read_from_where_the_setting_says(
    spec: str, members: dict[str, Any], names: list[str] | None, labels: tuple[int, ...]
) -> None:
    source = LabelSource.of(spec, names)
    raw = sample(**members)
    assert source.read(raw) == labels
    assert all(name in raw.members for name in source.members)


@pytest.mark.parametrize(
    ("spec", "members", "reason"),
    [
        ("label.cls", {"cls": b"1"}, r"it has no label \(no member label\.cls\)"),
        ("species", {"json": {"other": 1}}, r"it has no label \(no species in its member json\)"),
        ("species", {"json": {"species": None}}, "it has no label"),
        ("species", {"json": [1]}, "it has no label"),
        ("species", {"json": b"{"}, "its member json is not JSON"),
        ("species", {"json": {"species": True}}, "True .species. is neither a number nor a name"),
        ("species", {"json": {"species": 1.5}}, "is neither a number nor a name"),
        ("species", {"json": {"species": "x" * 500}}, "is neither a number nor a name"),
        ("species", {"json": {"species": "cow"}}, r"'cow' \(species\) is not one of the 2 classes of the data"),
        ("species", {"json": {"species": -1}}, "its label -1 is negative"),
        ("species", {"json": {"species": 10**9}}, "the highest class number"),
    ],
)
def test_other_labels_break_the_sample(spec: str, members: dict[str, Any], reason: str) -> None:
    with pytest.raises(BrokenSample, match=reason):
        LabelSource.of(spec, ["cat", "dog"]).read(sample(**members))


def counted(shards: ShardSet | None) -> Card:
    assert shards is not None
    assert shards.card is not None
    return shards.card


def write_set(path: Path, labels: list[Any], key: str = "species") -> str:
    members = []
    for number, label in enumerate(labels):
        members.append((f"{number:03d}.jpg", jpeg(number)))
        if label is not None:
            members.append((f"{number:03d}.json", json.dumps({key: label}).encode()))
    return str(write_tar(path, members))


def test_classes_are_counted_in_one_pass_and_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shards = [
        write_set(tmp_path / "a-0.tar", ["dog", "cat", "dog", None, -1]),
        write_set(tmp_path / "a-1.tar", ["cow", "dog"]),
    ]
    data = DataConfig(shards=shards, label="species", cache_dir=str(tmp_path / "cache"))
    mixed = write_set(tmp_path / "b-0.tar", ["dog", 3])
    with pytest.raises(DataError, match=r"data\.label=species has numbers \(3\) and names \('dog'\): use one of both"):
        open_set(data, mixed)
    for attempt in range(2):
        card = counted(open_training(data))
        assert card.class_names == ["cat", "cow", "dog"]
        assert (card.class_counts, card.num_classes) == ({0: 1, 1: 1, 2: 3}, 3)
        assert "2 of 7 samples have no label that can be used (first: a-0.tar/003: it has no label" in caplog.text
        kept = sorted(tmp_path.glob("a-*.labels-*.json"))
        assert len(kept) == 2
        if not attempt:  # kept: the second opening reads these files alone
            content = json.loads(kept[0].read_text())
            assert content["counts"]["names"] == {"dog": 2, "cat": 1}
            before = [path.stat().st_mtime_ns for path in kept]
    assert [path.stat().st_mtime_ns for path in kept] == before
    write_set(tmp_path / "a-1.tar", ["cow", "cow"])  # another tar of the same name
    assert counted(open_training(data)).class_counts == {0: 1, 1: 2, 2: 2}
    kept[0].write_text(kept[0].read_text().replace('"cat": 1', '"cat": 9'))
    assert counted(open_training(data)).class_counts == {0: 1, 1: 2, 2: 2}
    assert "ignoring" in caplog.text


def test_held_out_classes_have_the_numbers_of_the_training_classes(tmp_path: Path) -> None:
    train = write_set(tmp_path / "t.tar", ["a", "b", "c"])
    held_out = write_set(tmp_path / "e.tar", ["c", "b"])
    data = DataConfig(shards=train, eval_shards=held_out, label="species", cache_dir=str(tmp_path / "cache"))
    card = counted(open_held_out(data))
    assert (card.class_names, card.class_counts) == (["a", "b", "c"], {1: 1, 2: 1})
    sets = open_probe_sets(data, ProbeConfig(shards=train, eval_shards=held_out))
    assert [counted(shards).class_names for shards in sets.values()] == [["a", "b", "c"]] * 2
    data.eval_shards = write_set(tmp_path / "u.tar", ["c", "z"])
    with pytest.raises(DataError, match=r"^data\.eval_shards=.*: the class 'z' is not among the 3 classes"):
        open_held_out(data)


def test_training_shards_are_opened_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    train = write_set(tmp_path / "t.tar", ["a", "b", None, "a"])
    held_out = write_set(tmp_path / "e.tar", ["b"])
    with tarfile.open(train) as tar:
        cut = tar.getmember("003.jpg").offset_data + 10
    (tmp_path / "t.tar").write_bytes((tmp_path / "t.tar").read_bytes()[:cut])
    data = DataConfig(shards=train, eval_shards=held_out, label="species", cache_dir=str(tmp_path / "cache"))
    lines = ("1 of 3 samples have no label that can be used", "t.tar is cut off")
    for opened, times in ((open_shards, 1), (open_held_out, 0)):
        caplog.clear()
        opened(data)
        assert [caplog.text.count(line) for line in lines] == [times] * 2


def test_numbers_keep_the_names_of_packed_classes(tmp_path: Path) -> None:
    for label, names in ((1, ["cat", "dog"]), (2, None)):
        shards = ShardSet.open(write_set(tmp_path / f"{label}.tar", [0, label]))
        shards.card = Card(num_samples=2, class_names=["cat", "dog"])
        card = counted(with_classes(shards, "species"))
        assert (card.class_names, card.class_counts) == (names, {0: 1, label: 1})


def test_numbers_keep_their_value_and_a_label_that_no_sample_has_is_refused(tmp_path: Path) -> None:
    tar = write_set(tmp_path / "n.tar", [4, "2", 4.0, [2, 0]])
    data = DataConfig(shards=tar, label="species", cache_dir=str(tmp_path / "cache"))
    card = counted(open_training(data))
    assert (card.class_names, card.class_counts, card.num_classes) == (None, {4: 2, 2: 2, 0: 1}, 5)
    remedy = "; set data.label to where it is, or data.label=null for the members cls and json$"
    with pytest.raises(DataError, match=rf"label=genus: no sample has this .*first: n\.tar/000: .*no genus.*{remedy}"):
        open_training(DataConfig(shards=tar, label="genus", cache_dir=str(tmp_path / "cache")))
