"""The same shards in a pipeline of webdataset: local, by pattern, in a list, and remote through the cache."""

from __future__ import annotations

from pathlib import Path

import pytest
import webdataset

from swinv2_train.data.errors import DataError
from swinv2_train.data.pack import PackOptions, pack
from swinv2_train.data.pipelines import open_webdataset
from swinv2_train.data.shards import ShardSet
from tests.data.http_server import FlakyServer
from tests.data.samples import jpeg, write_folder, write_shards


def keys(dataset: webdataset.WebDataset) -> list[str]:
    return [sample["__key__"] for sample in dataset]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_shards(tmp_path / "d", [2, 1, 3])
    return tmp_path / "d"


def test_every_way_of_naming_shards_gives_their_samples_in_order(folder: Path, tmp_path: Path) -> None:
    expected = [f"img{number:05d}" for number in range(6)]
    listed = [str(folder / "part-000000.tar"), f"{folder}/part-{{000001..000002}}.tar"]
    for spec in (str(folder), folder / "part-*.tar", f"{folder}/part-{{000000..000002}}.tar", listed):
        dataset = open_webdataset(spec)
        assert isinstance(dataset, webdataset.WebDataset)
        assert keys(dataset) == expected
        assert keys(dataset) == expected, "once more"
    assert [sample["jpg"] for sample in open_webdataset(folder)] == [jpeg(number) for number in range(6)]
    shards = ShardSet.open(str(folder), tmp_path / "cache")
    assert [shards.key(number) for number in range(6)] == expected


def test_its_own_methods_and_options_work(folder: Path) -> None:
    dataset = open_webdataset(folder, shardshuffle=3, seed=1).decode("pil").to_tuple("jpg", "__key__")
    images = {key: image for image, key in dataset}
    assert len(images) == 6
    assert images["img00003"].size == (32, 24)
    halves = [open_webdataset(folder, nodesplitter=lambda urls, half=half: list(urls)[half::2]) for half in (0, 1)]
    assert [keys(half) for half in halves] == [[f"img{n:05d}" for n in (0, 1, 3, 4, 5)], ["img00002"]]


def test_paths_are_taken_as_they_are(tmp_path: Path) -> None:
    (path,) = write_shards(tmp_path / "a#b?c", [2])
    assert keys(open_webdataset(path)) == ["img00000", "img00001"]


def test_packed_shards_on_a_server_are_read_through_the_cache(tmp_path: Path) -> None:
    pack(str(write_folder(tmp_path / "src", 5)), tmp_path / "served", PackOptions(max_count=2))
    server = FlakyServer(tmp_path / "served")
    try:
        names = sorted(path.name for path in (tmp_path / "served").glob("*.tar"))
        dataset = open_webdataset([f"{server.url}/{name}" for name in names], tmp_path / "cache")
        local = keys(open_webdataset(tmp_path / "served"))
        server.faults.append("login")  # a page of the right length; the hash in the manifest shows it
        assert keys(dataset) == keys(dataset) == local
        assert {server.gets(name) for name in names} <= {1, 2}
        assert sorted(path.name.partition("-")[2] for path in (tmp_path / "cache").glob("*.tar")) == names
    finally:
        server.close()


def test_what_cannot_be_opened_ends_in_an_error_or_is_left_to_the_handler(folder: Path) -> None:
    with pytest.raises(DataError, match="nowhere does not exist"):
        open_webdataset("/nowhere")
    paths = sorted(folder.glob("*.tar"))
    skipping, ending, failing = (
        open_webdataset(paths, handler=handler) if handler else open_webdataset(paths)
        for handler in (webdataset.ignore_and_continue, webdataset.ignore_and_stop, None)
    )
    paths[1].unlink()
    assert len(keys(skipping)) == 5
    assert len(keys(ending)) == 2
    with pytest.raises(FileNotFoundError):
        keys(failing)
