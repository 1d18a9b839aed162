from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path

import braceexpand
import pytest

from swinv2_train.data import sources
from swinv2_train.data.card import Card, Moments
from swinv2_train.data.errors import DataError
from swinv2_train.data.remote import ShardCache
from swinv2_train.data.sources import ListedShard, Manifest, expand, manifest_text, manifest_url, parse_manifest
from tests.data.samples import write_shards

MANIFEST = (
    '{{"format": 1, "card": {{}}, '
    '"shards": [{{"name": "{0}-000000.tar", "num_samples": 1, "bytes": 1, "fingerprint": ""}}]}}'
)


@pytest.fixture
def cache(tmp_path: Path) -> ShardCache:
    return ShardCache(tmp_path / "cache", 1 << 20, retries=0, backoff=0.0)


def test_every_way_to_name_shards(tmp_path: Path, cache: ShardCache, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = write_shards(tmp_path / "d", [1, 1, 1])
    monkeypatch.setenv("HOME", str(tmp_path))
    d = str(tmp_path / "d")
    for spec, expected in [
        (paths[1], paths[1:2]),
        (Path(paths[1]), paths[1:2]),
        (f"file://{paths[1]}", paths[1:2]),
        (d, paths),
        ("~/d", paths),
        (f"{d}/part-{{000000..000002}}.tar", paths),
        (f"{d}/part-{{000002,000000}}.tar", [paths[2], paths[0]]),
        (f"{d}/part-*.tar", paths),
        (f"{d}/part-00000[12].tar", paths[1:]),
        ([paths[2], f"{d}/part-{{000000..000001}}.tar"], [paths[2], *paths[:2]]),
        ("http://host/x-{00..01}.tar?key=1", ["http://host/x-00.tar?key=1", "http://host/x-01.tar?key=1"]),
    ]:
        assert expand(spec, cache) == expected


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("{tmp}/none.tar", "does not exist"),
        ("{tmp}/none-*.tar", "matches no shard"),
        ("{tmp}/d/part-{{000000..000003}}.tar", "part-000003.tar does not exist"),
        ("{tmp}/d/part-{{0.tar", "braces"),
        ("{tmp}/empty", "directory without shards"),
        ("", "no shards are given"),
        (None, "no shards are given"),
        ([], "names no shard"),
        ("nosuchscheme://x/y.tar/", "cannot be read"),
    ],
)
def test_what_is_not_there_is_named(tmp_path: Path, cache: ShardCache, spec: object, message: str) -> None:
    write_shards(tmp_path / "d", [1, 1, 1])
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=message):
        expand(spec.format(tmp=tmp_path) if isinstance(spec, str) else spec, cache)


def test_a_directory_with_two_splits_must_be_told_apart(tmp_path: Path, cache: ShardCache) -> None:
    for split in ("train", "eval"):
        write_shards(tmp_path / split, [1])
        os.replace(tmp_path / split / "part-000000.tar", tmp_path / f"{split}-000000.tar")
        (tmp_path / f"{split}.dataset.json").write_text(MANIFEST.format(split))
    with pytest.raises(DataError, match=r"the splits eval, train: name one, such as .*/eval-\*\.tar"):
        expand(str(tmp_path), cache)
    assert expand(f"{tmp_path}/train-*.tar", cache) == [f"{tmp_path}/train-000000.tar"]


def test_a_missing_shard_of_a_packed_directory_is_noticed(tmp_path: Path, cache: ShardCache) -> None:
    write_shards(tmp_path, [1])
    (tmp_path / "train.dataset.json").write_text(MANIFEST.format("train"))
    with pytest.raises(DataError, match=r"1 shards of train\.dataset\.json are missing, train-000000\.tar among them"):
        expand(str(tmp_path), cache)


def test_manifests_are_next_to_numbered_shards() -> None:
    assert manifest_url("/a/b/train-000017.tar") == "/a/b/train.dataset.json"
    assert manifest_url("http://h/p/my-set-01.tar?sig=x") == "http://h/p/my-set.dataset.json?sig=x"
    assert manifest_url("/a/photos.tar") is None


@pytest.mark.parametrize(
    ("spec", "count"),
    [
        ("x-{000000..99999999}.tar", "100,000,000"),
        ("x-{0..2000000..2}.tar", "1,000,001"),
        ("x-{-1000000..5}.tar", "1,000,006"),
        ("{a,b}-{1..1000}-{1..1000}.tar", "2,000,000"),
        ("x-{a,{1..2000000}}.tar", "2,000,001"),
        ("x-{{1..2000000}}.tar", "2,000,000"),
        ("x-{0..999999999999999999999}.tar", "1,000,000,000,000,000,000,000"),
    ],
)
def test_a_pattern_of_too_many_names_is_refused_before_it_is_expanded(
    cache: ShardCache, spec: str, count: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(braceexpand, "braceexpand", None)  # calling it would fail
    with pytest.raises(DataError, match=rf"expands to {count} shards, more than the limit of 1,000,000"):
        expand(spec, cache)


@pytest.mark.parametrize("spec", ["{a,b}" * 101, "{" * 5000 + "}" * 5000, "x-{0.." + "9" * 5000 + "}.tar", "{" * 50000])
def test_absurd_patterns_end_in_a_sentence(cache: ShardCache, spec: str) -> None:
    with pytest.raises(DataError) as caught:
        expand(spec, cache)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    "pattern",
    [
        "{1..3}",
        "{3..1}",
        "{a..e}",
        "{a,b,}",
        "{a,{1..4},{x,y}z}",
        "{01..10..3}{a,b}",
        r"\{1..3\}{2,3}",
        "{x}{1,2}",
        "{}{1,2}",
    ],
)
def test_names_are_counted_as_they_are_expanded(pattern: str) -> None:
    expanded = len(list(braceexpand.braceexpand(pattern)))
    counted = sources._names_in(pattern)
    assert counted == expanded or (".." in pattern and "a.." in pattern and counted == 52)


@pytest.mark.parametrize("text", ["", "[]", '{"format": 1}', '{"format": 99, "card": {}, "shards": []}'])
def test_a_damaged_manifest_is_named(text: str) -> None:
    with pytest.raises(DataError, match=r"m\.json (is damaged|was written by another version)"):
        parse_manifest(text, "m.json")


ENTRY = {"name": "train-000000.tar", "num_samples": 2, "bytes": 10240, "fingerprint": "f"}
CARD = Card(2, 30, 0, "train", channels=Counter({3: 2}), moments={3: Moments(2, [0.1] * 3, [0.2] * 3)}).to_json()


@pytest.mark.parametrize(
    "change",
    [
        {"num_samples": 10**9}, {"num_samples": -1}, {"num_samples": 1.5}, {"num_samples": "2"}, {"num_samples": None},
        {"num_samples": True}, {"num_samples": 10**400}, {"bytes": -1}, {"bytes": 10**30}, {"bytes": []},
    ],
)  # fmt: skip
def test_a_manifest_with_impossible_numbers_is_refused(change: dict[str, object]) -> None:
    for shard in (ENTRY, ENTRY | change):
        text = json.dumps({"format": 1, "card": CARD, "shards": [shard]})
        if shard is ENTRY:
            assert parse_manifest(text, "m.json").shards["train-000000.tar"].num_samples == 2
        else:
            with pytest.raises(DataError, match=r"m\.json is damaged"):
                parse_manifest(text, "m.json")


@pytest.mark.parametrize(
    "change",
    [
        {"num_samples": -1}, {"bytes": 1.5}, {"channels": {"x": 1}}, {"channels": {"3": -1}}, {"channels": []},
        {"classes": {"names": "abc", "counts": {}}}, {"classes": {"names": [1], "counts": {}}}, {"classes": 5},
        {"moments": {"3": {"images": 2, "means": [0.1], "squares": [0.2]}}}, {"moments": {"3": {"images": 2}}},
        {"moments": {"3": {"images": -2, "means": [0.1] * 3, "squares": [0.2] * 3}}},
        {"moments": {"3": {"images": 2, "means": [0.1] * 3, "squares": [float("nan")] * 3}}},
        {"moments": {"3": {"images": 2, "means": [10**400] * 3, "squares": [0.2] * 3}}},
        {"moments": {"9" * 5000: {"images": 2, "means": [], "squares": []}}}, {"split": 5},
    ],
)  # fmt: skip
def test_a_card_with_impossible_numbers_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(DataError, match=r"m\.json is damaged"):
        parse_manifest(json.dumps({"format": 1, "card": CARD | change, "shards": [ENTRY]}), "m.json")


def test_a_manifest_carries_a_hash_that_finds_every_change() -> None:
    manifest = Manifest(CARD, {"train-000000.tar": ListedShard(2, 10240, "f", "0" * 64)})
    text = manifest_text(manifest)
    assert parse_manifest(text, "m.json") == manifest
    with pytest.raises(DataError, match=r"m\.json was changed after it was written .* remove its entry sha256"):
        parse_manifest(text.replace("10240", "20480"), "m.json")
    with pytest.raises(DataError, match="was changed"):
        parse_manifest(text.replace("0.1", "0.3"), "m.json")


@pytest.mark.parametrize(
    "text", [b"[" * 100_000, b"\xff\xfe{}", b'{"format": 1, "card": {}, "shards": {"a": 1}}', b"\0" * 99]
)
def test_a_manifest_of_anything_is_refused(text: bytes) -> None:
    with pytest.raises(DataError, match=r"m\.json is damaged"):
        parse_manifest(text, "m.json")
