from __future__ import annotations

import os
from pathlib import Path

import pytest

from swinv2_train.data.errors import DataError
from swinv2_train.data.remote import ShardCache
from swinv2_train.data.sources import expand, manifest_url, parse_manifest
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


def test_manifests_lie_beside_numbered_shards() -> None:
    assert manifest_url("/a/b/train-000017.tar") == "/a/b/train.dataset.json"
    assert manifest_url("http://h/p/my-set-01.tar?sig=x") == "http://h/p/my-set.dataset.json?sig=x"
    assert manifest_url("/a/photos.tar") is None


@pytest.mark.parametrize("text", ["", "[]", '{"format": 1}', '{"format": 99, "card": {}, "shards": []}'])
def test_a_damaged_manifest_is_named(text: str) -> None:
    with pytest.raises(DataError, match=r"m\.json (is damaged|was written by another version)"):
        parse_manifest(text, "m.json")
