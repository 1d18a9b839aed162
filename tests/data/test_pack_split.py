"""The held-out share: stratified, stable, copies together, and never an image on both sides."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from swinv2_train.data import pack as pack_module
from swinv2_train.data.errors import DataError
from swinv2_train.data.index import read_index, write_index
from swinv2_train.data.index_store import index_path
from swinv2_train.data.pack import PackRun, pack
from swinv2_train.data.pack_record import origins
from swinv2_train.data.pack_sources import open_source
from swinv2_train.data.pack_split import Division, SplitRule, divide
from swinv2_train.data.shards import ShardSet
from tests.data.packed import SMALL, open_set, tars
from tests.data.packed import folder as folder
from tests.data.samples import jpeg, write_tar


def fill(root: Path, counts: dict[str, int], start: int = 0) -> Path:
    """Classes of files with contents of their own; what they contain is not decoded here."""
    for name, count in counts.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        for number in range(start, start + count):
            (root / name / f"{number}.jpg").write_text(f"{name} {number}")
    return root


def split(root: Path, share: float, *, classes: bool = True, seed: int = 0, rule: int = 2) -> Division:
    source = open_source(str(root), classes=classes, seed=seed)
    return divide(source, SplitRule(share, seed, rule), lambda name, done, total: None)


def counts(division: Division) -> tuple[Counter[str], Counter[str]]:
    """Images per class on both sides."""
    sides = (division.train, division.held_out)
    return tuple(Counter(entry.key.split("/")[0] for entry in side) for side in sides)  # type: ignore[return-value]


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("share", [0.1, 0.2, 0.5, 0.9])
def test_every_class_gives_its_share_and_keeps_a_training_image(tmp_path: Path, share: float, seed: int) -> None:
    sizes = {f"c{count:02d}": count for count in (1, 2, 3, 4, 7, 10, 31)}
    train, held_out = counts(split(fill(tmp_path, sizes), share, seed=seed))
    for name, count in sizes.items():
        assert train[name] + held_out[name] == count
        assert train[name] >= 1
        wanted = min(share * count, count - 1)
        assert abs(held_out[name] - wanted) <= (0.5 if wanted >= 0.5 else 1)


def test_many_small_classes_hold_out_the_share_together(tmp_path: Path) -> None:
    _, held_out = counts(split(fill(tmp_path, {f"c{number}": 3 for number in range(60)}), 0.1))
    assert 10 <= held_out.total() <= 26  # 18 of 180
    assert max(held_out.values()) == 1


def test_adding_images_moves_no_more_than_the_edge_of_their_class(tmp_path: Path) -> None:
    fill(tmp_path, {"a": 40, "b": 40, "c": 5})
    before = {entry.key: False for entry in split(tmp_path, 0.2).train}
    before |= {entry.key: True for entry in split(tmp_path, 0.2).held_out}
    fill(tmp_path, {"a": 5}, start=100)
    fill(tmp_path, {"a new class": 8})
    after = split(tmp_path, 0.2)
    sides = {entry.key: False for entry in after.train} | {entry.key: True for entry in after.held_out}
    moved = [key for key, side in before.items() if sides[key] != side]
    assert len(moved) <= 5
    assert all(key.startswith("a/") for key in moved)


def test_without_classes_and_copies_the_rules_agree(tmp_path: Path) -> None:
    """So what earlier versions packed is continued as it is."""
    fill(tmp_path, {"a": 50, "b": 30})
    assert split(tmp_path, 0.3, classes=False) == split(tmp_path, 0.3, classes=False, rule=1)


@pytest.mark.parametrize("kind", ["folder", "classes", "list", "shards"])
def test_exact_copies_are_on_one_side(tmp_path: Path, kind: str) -> None:
    root = fill(tmp_path / "src", {"a": 30, "b": 10})
    large = b"x" * 20_000
    for number in range(12):  # pairs, one of them in the other class, and an image of the same size
        name = "a" if number < 6 else "b"
        (root / name / f"copy{number}.jpg").write_bytes(large[:-8] + b"%08d" % (number % 6))
        (root / name / f"same{number}.jpg").write_bytes(large[:9000] + b"%08d" % number + large[:10_992])
    source = root
    if kind == "list":
        source = tmp_path / "list.jsonl"
        rows = [{"path": str(path), "label": path.parent.name} for path in sorted(root.rglob("*.jpg"))]
        source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    if kind == "shards":
        members = []
        for path in sorted(root.rglob("*.jpg")):
            key = f"{path.parent.name}/{path.stem}"
            members += [(f"{key}.jpg", path.read_bytes()), (f"{key}.cls", b"%d" % (path.parent.name == "b"))]
        write_tar(tmp_path / "tars" / "x-0.tar", members[:50])
        write_tar(tmp_path / "tars" / "x-1.tar", members[50:])
        source = tmp_path / "tars"
    found = open_source(str(source), classes=kind == "classes", seed=0)
    division = divide(found, SplitRule(0.5, 0), lambda name, done, total: None)
    sides = [{entry.key.rpartition("/")[2] for entry in side} for side in (division.train, division.held_out)]
    assert len(division.train) + len(division.held_out) == 64
    for number in range(6):
        assert {f"copy{number}", f"copy{number + 6}"} <= sides[0] or {f"copy{number}", f"copy{number + 6}"} <= sides[1]
    assert {f"same{number}" for number in range(12)} & sides[0]
    assert {f"same{number}" for number in range(12)} & sides[1]
    assert "exact copies of other images, kept on one side: 6, such as " in division.notes[0]
    assert len(division.notes) == (1 if kind == "folder" else 2)
    assert kind == "folder" or "copies of 6 images have different labels" in division.notes[1]
    assert not division.leaked


def test_images_with_several_classes_leave_a_training_image_for_each(tmp_path: Path) -> None:
    root = fill(tmp_path / "src", {"a": 40})
    rows = [{"path": str(path), "labels": [n % 3, 10 + n % 20]} for n, path in enumerate(sorted(root.rglob("*.jpg")))]
    (tmp_path / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    division = split(tmp_path / "list.jsonl", 0.7, classes=False)
    trained = {label for entry in division.train for label in entry.label or ()}  # type: ignore[union-attr]
    assert trained == {0, 1, 2, *range(10, 30)}
    assert 10 < len(division.held_out) <= 30


def test_a_class_gets_a_training_image_and_the_cards_show_the_shares(folder: Path, tmp_path: Path) -> None:
    report = pack(str(folder), tmp_path / "out", SMALL, classes=True, eval_share=0.4)
    assert report.cards["train"].class_counts == {0: 9, 1: 5}
    assert report.cards["eval"].class_counts == {0: 6, 1: 3}
    assert report.complete


def as_earlier_version(out: Path) -> None:
    """Take from shards and manifests what an earlier version did not record."""
    for tar in out.glob("*.tar"):
        index = read_index(index_path(tar))
        assert index is not None
        del index.extra["pack"]["split"]
        write_index(index, index_path(tar))
    for path in out.glob("*.dataset.json"):
        content = json.loads(path.read_text())
        del content["pack"], content["sha256"]
        path.write_text(json.dumps(content))


def sides_of(out: Path) -> list[set[str]]:
    found = []
    for name in ("train", "eval"):
        shards = open_set(out, f"{name}-*.tar")
        found.append({shards.key(index) for index in range(shards.num_samples)})
    return found


@pytest.fixture
def earlier(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Shards of an earlier version, with a copy of an image on both sides."""
    keys = [entry.key for entry in split(folder, 0.3, rule=1).train], split(folder, 0.3, rule=1).held_out
    (folder / f"{keys[0][0]}.jpg").write_bytes((folder / f"{keys[1][0].key}.jpg").read_bytes())
    with monkeypatch.context() as patch:
        patch.setattr(pack_module, "SplitRule", lambda share, seed: SplitRule(share, seed, rule=1))
        pack(str(folder), tmp_path / "out", SMALL, classes=True, eval_share=0.3)
    as_earlier_version(tmp_path / "out")
    return tmp_path / "out"


def test_a_split_of_an_earlier_version_is_kept_and_its_copies_are_named(folder: Path, earlier: Path) -> None:
    before, sides = tars(earlier), sides_of(earlier)
    for _ in range(2):
        report = pack(str(folder), earlier, SMALL, classes=True, eval_share=0.3)
        assert report.num_reused == report.num_shards
        assert tars(earlier) == before
        assert "copies of 1 images are on both sides of the split" in report.notes[-1]
        assert not report.complete
    (folder / "cats" / "new.jpg").write_bytes(jpeg(99))
    pack(str(folder), earlier, SMALL, classes=True, eval_share=0.3)
    assert [side - {"cats/new"} for side in sides_of(earlier)] == sides
    report = pack(str(folder), earlier, SMALL, classes=True, eval_share=0.3, how=PackRun(overwrite=True))
    assert report.complete
    assert sides_of(earlier) != sides
    assert pack(str(folder), earlier, SMALL, classes=True, eval_share=0.3).num_reused == report.num_shards


@pytest.mark.parametrize("old", [True, False])
@pytest.mark.parametrize(("share", "seed"), [(0.6, 0), (0.3, 1), (0.0, 0)])
def test_another_split_of_packed_images_is_refused(
    folder: Path, tmp_path: Path, share: float, seed: int, old: bool
) -> None:
    out = tmp_path / "out"
    pack(str(folder), out, SMALL, eval_share=0.3)
    if old:
        as_earlier_version(out)
    before = tars(out)
    other = replace(SMALL, seed=seed)
    with pytest.raises(DataError, match=r"use the same again|use the same --eval-share"):
        pack(str(folder), out, other, eval_share=share)
    assert tars(out) == before
    if share:
        pack(str(folder), out, other, eval_share=share, how=PackRun(overwrite=True))
        assert not set.intersection(*sides_of(out))


def test_an_interrupted_change_of_the_split_leaves_no_image_on_both_sides(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    pack(str(folder), out, SMALL, eval_share=0.6)

    def interrupt(name: str, done: int, total: int) -> None:
        if name == "eval":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack(str(folder), out, SMALL, eval_share=0.2, how=PackRun(overwrite=True, progress=interrupt))
    trained = open_set(out, "train-*.tar")
    keys = {trained.key(index) for index in range(trained.num_samples)}
    for tar in out.glob("eval-*.tar"):
        assert not keys & set(ShardSet.open(str(tar), out / "cache")._files.index(0).keys)
    assert not (out / "eval.dataset.json").exists()
    pack(str(folder), out, SMALL, eval_share=0.2)
    assert not set.intersection(*sides_of(out))


def copied(out: Path, to: Path, *, index: bool, manifest: bool) -> Path:
    """A copy as `cp` makes it, with new times."""
    to.mkdir()
    for path in out.iterdir():
        kind = "index" if path.name.endswith(".index.jsonl") else path.name
        if (kind == "index" and index) or (kind.endswith(".json") and manifest) or kind.endswith(".tar"):
            shutil.copyfile(path, to / path.name)
            os.utime(to / path.name, ns=(5, 5))
    return to


@pytest.mark.parametrize("read", [False, True])
@pytest.mark.parametrize("index", [False, True])
@pytest.mark.parametrize("old", [False, True])
def test_copied_shards_are_still_the_packers(
    folder: Path, tmp_path: Path, index: bool, read: bool, old: bool, caplog: pytest.LogCaptureFixture
) -> None:
    pack(str(folder), tmp_path / "out", SMALL, eval_share=0.3)
    if old:
        as_earlier_version(tmp_path / "out")
    out = copied(tmp_path / "out", tmp_path / "copy", index=index, manifest=True)
    if read:  # a training run indexes the shards again
        for side in ("train", "eval"):
            shards = open_set(out, f"{side}-*.tar")
            assert [shards.read(i).data for i in range(shards.num_samples)]
    assert caplog.text == ""
    known = origins(out)
    assert sorted(tar.name for tar in known) == sorted(tars(out))
    root = str(folder.resolve())
    assert {origin.source for origin in known.values()} == {None if old and not index else root}
    before = tars(out)
    if old and not index:  # nothing tells their source
        with pytest.raises(DataError, match="a source that its manifest does not name: choose another directory, or"):
            pack(str(folder), out, SMALL, eval_share=0.3)
        pack(str(folder), out, SMALL, eval_share=0.3, how=PackRun(overwrite=True))
        assert tars(out) == before
        return
    with pytest.raises(DataError, match="whose images would also be in train"):
        pack(str(folder), out, SMALL)
    report = pack(str(folder), out, SMALL, eval_share=0.3)
    assert report.num_reused == (report.num_shards if index else 0)
    assert tars(out) == before
    times = {tar: tar.stat().st_mtime_ns for tar in out.glob("*.tar")}
    assert pack(str(folder), out, SMALL, eval_share=0.3).num_reused == report.num_shards
    assert {tar: tar.stat().st_mtime_ns for tar in out.glob("*.tar")} == times


def test_a_copy_that_was_changed_is_packed_again(folder: Path, tmp_path: Path) -> None:
    pack(str(folder), tmp_path / "out", SMALL)
    out = copied(tmp_path / "out", tmp_path / "copy", index=True, manifest=True)
    data = bytearray((out / "train-000001.tar").read_bytes())
    data[700] ^= 1
    (out / "train-000001.tar").write_bytes(data)
    assert pack(str(folder), out, SMALL).num_reused == 4
    assert tars(out) == tars(tmp_path / "out")


def test_shards_without_index_and_manifest_are_foreign(folder: Path, tmp_path: Path) -> None:
    pack(str(folder), tmp_path / "out", SMALL)
    out = copied(tmp_path / "out", tmp_path / "copy", index=False, manifest=False)
    with pytest.raises(DataError, match="was not written by swinv2-data pack"):
        pack(str(folder), out, SMALL)
