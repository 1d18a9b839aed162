"""Copies that are not what was asked for: noticed, named, fetched again, and never kept."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from swinv2_train.data import remote
from swinv2_train.data.errors import DataError
from swinv2_train.data.index_store import index_path
from swinv2_train.data.pack import PackOptions, pack
from swinv2_train.data.shards import ShardSet
from tests.data.http_server import FlakyServer
from tests.data.samples import jpeg, write_folder, write_shards

NAMES = ["part-000000.tar", "part-000001.tar"]


@pytest.fixture
def served(tmp_path: Path) -> Path:
    write_shards(tmp_path / "served", [3, 2])
    return tmp_path / "served"


@pytest.fixture
def server(served: Path) -> Iterator[FlakyServer]:
    server = FlakyServer(served)
    yield server
    server.close()


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_CHUNK_BYTES", 3000)


def open_set(server: FlakyServer, tmp_path: Path, retries: int = 3) -> ShardSet:
    return ShardSet.open(server.url + "/part-{000000..000001}.tar", tmp_path / "cache", retries=retries, backoff=0.0)


def assert_all_read(shards: ShardSet) -> None:
    assert [shards.read(i).data for i in range(5)] == [jpeg(i) for i in range(5)]


def copies(shards: ShardSet) -> list[Path]:
    return [shards.cache.path(shard.file) for shard in shards.shards if shard.file]


@pytest.mark.parametrize("kind", ["page", "zeros", "other shard", "shifted by a block", "shifted by a byte"])
def test_a_copy_that_is_not_the_shard_is_fetched_again(
    server: FlakyServer, served: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    assert_all_read(open_set(server, tmp_path))
    shards = open_set(server, tmp_path)
    copy = copies(shards)[0]
    data = copy.read_bytes()
    copy.write_bytes(
        {
            "page": b"<html>log in</html>".ljust(len(data)),
            "zeros": bytes(len(data)),
            "other shard": (served / NAMES[1]).read_bytes().ljust(len(data), b"\0")[: len(data)],
            "shifted by a block": data[:2048] + data[1536:-512],
            "shifted by a byte": data[:3000] + data[2999:-1],
        }[kind]
    )
    assert_all_read(shards)
    assert f"{copy} is not a copy of {server.url}/{NAMES[0]}" in caplog.text
    assert copy.read_bytes() == data
    assert_all_read(open_set(server, tmp_path))


@pytest.mark.parametrize("fault", ["page", "moved", "unnamed", "zipped", "grown", "other tag", "login", "shifted"])
def test_an_answer_that_is_not_the_part_is_asked_for_again(server: FlakyServer, tmp_path: Path, fault: str) -> None:
    shards = open_set(server, tmp_path)
    for copy in copies(shards):
        copy.unlink()
    server.faults.extend(["ok", fault])
    assert_all_read(shards)


def test_nodes_of_a_cluster_may_give_a_file_different_tags(server: FlakyServer, tmp_path: Path) -> None:
    """If its date is the same: the tag of some servers contains the number of the inode."""
    server.always.update(dict.fromkeys(NAMES, "dated"))
    shards = open_set(server, tmp_path)
    for copy in copies(shards):
        copy.unlink()
    server.always.update(dict.fromkeys(NAMES, "dated other tag"))
    assert_all_read(shards)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("page", "could not be read after 2 tries .a web page came instead"),
        ("moved", "bytes 2488 to 5487 came instead of 3000 to 5999"),
        ("unnamed", "a part came that does not say which"),
        ("zipped", "the server sends it encoded .x-unknown"),
        ("grown", "was replaced since it was opened .it has 10752 bytes now, and 10240 before"),
        ("other tag", 'was replaced since it was opened .its version is "other" now'),
        ("login", "the server sends something else than the shard, also when asked again .*web page"),
        ("shifted", "the server sends something else than the shard, also when asked again"),
        ("403", r"may not be read \(HTTP 403 Forbidden\): the server wants a login"),
        ("404", "no longer exists"),
        ("503", "could not be read after 4 tries .HTTP 503 Service Unavailable"),
        ("429", "could not be read after 4 tries .HTTP 429 Too Many Requests"),
        ("416", "the server refuses the request .HTTP 416"),
    ],
)
def test_a_server_that_keeps_sending_something_else_is_named_and_nothing_is_kept(
    server: FlakyServer, tmp_path: Path, fault: str, message: str
) -> None:
    shards = open_set(server, tmp_path)
    copies(shards)[0].unlink()
    server.always[NAMES[0]] = fault
    with pytest.raises(DataError, match=rf"part-000000\.tar.*{message}") as caught:
        [shards.read(number) for number in range(3)]  # a sample before the first shifted byte is intact
    assert "\n" not in str(caught.value)
    assert [path.name for path in copies(shards) if path.exists()] == [copies(shards)[1].name]
    assert not list((tmp_path / "cache").glob("*.part"))
    server.always.clear()
    assert_all_read(shards)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("403", r"may not be read \(HTTP 403 Forbidden\)"),
        ("401", r"may not be read \(HTTP 401 Unauthorized\)"),
        ("404", "does not exist"),
        ("410", "does not exist"),
        ("503", r"could not be read after 4 tries \(HTTP 503"),
        ("500", r"could not be read after 4 tries \(HTTP 500"),
        ("429", r"could not be read after 4 tries \(HTTP 429"),
        ("drop", r"could not be read after 4 tries \(.*[Dd]isconnected"),
        ("login", "is not a tar file but a web page"),
        ("page", r"could not be read after 2 tries \(a web page came instead"),
    ],
)
def test_what_goes_wrong_at_opening_is_told_apart(
    server: FlakyServer, tmp_path: Path, fault: str, message: str
) -> None:
    server.always[NAMES[1]] = fault
    with pytest.raises(DataError, match=rf"part-000001\.tar.*{message}") as caught:
        open_set(server, tmp_path)
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "cache").glob(f"*{NAMES[1]}*"))


def test_a_server_that_is_busy_at_opening_is_asked_again(server: FlakyServer, tmp_path: Path) -> None:
    (tmp_path / "served" / "one.tar").write_bytes((tmp_path / "served" / NAMES[0]).read_bytes())
    server.faults.extend(["503", "429", "ok"])  # HEAD answers, so these are of the index and the shard
    shards = ShardSet.open(f"{server.url}/one.tar", tmp_path / "cache", retries=3, backoff=0.0)
    assert shards.num_samples == 3


def test_an_unreachable_server_is_not_an_absent_file(tmp_path: Path, served: Path) -> None:
    server = FlakyServer(served)
    server.close()
    with pytest.raises(DataError, match=r"one\.tar could not be read after 2 tries \(Client"):
        ShardSet.open(f"{server.url}/one.tar", tmp_path / "cache", retries=1, backoff=0.0)


def test_a_page_in_the_place_of_index_and_manifest_counts_as_absent(
    server: FlakyServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("part.dataset.json", f"{NAMES[0]}.index.jsonl"):
        (tmp_path / "served" / name).write_text("<!DOCTYPE html><html>not found</html>")
    assert_all_read(open_set(server, tmp_path))
    assert "part.dataset.json: a web page came instead of the file" in caplog.text


def test_an_uploaded_index_of_another_shard_is_rebuilt(
    server: FlakyServer, served: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Of the same size and number of samples, as re-packing leaves it."""
    write_shards(tmp_path / "old", [3, 2])
    shutil.copy(served / NAMES[0], tmp_path / "new.tar")
    other = tmp_path / "old" / NAMES[0]
    other.write_bytes((served / NAMES[0]).read_bytes().replace(b"img0000", b"pic0000"))
    data = bytearray(other.read_bytes())
    for start in (0, 1, 2):  # right checksums again
        place = data.index(b"pic0000%d" % start)
        header = data[place : place + 512]
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % sum(header)
        data[place : place + 512] = header
    other.write_bytes(data)
    ShardSet.open(str(other), tmp_path / "unused")
    shutil.copy(index_path(other), served)
    shards = open_set(server, tmp_path)
    assert_all_read(shards)
    assert shards.read(0).key == "img00000"
    assert "is of another shard: indexing it again" in caplog.text


@pytest.mark.parametrize("last", [False, True])
def test_packed_shards_are_compared_with_the_hash_in_their_manifest(tmp_path: Path, last: bool) -> None:
    """Also in the middle of an image, where no header shows it."""
    pack(str(write_folder(tmp_path / "src", 3)), tmp_path / "served", PackOptions())
    near = ShardSet.open(f"{tmp_path}/served/*.tar", tmp_path / "unused")
    server = FlakyServer(tmp_path / "served")
    far = ShardSet.open(f"{server.url}/train-000000.tar", tmp_path / "cache", retries=0, backoff=0.0)
    name = "train-000000.tar"
    if last:
        tar = tmp_path / "served" / name
        data = bytearray(tar.read_bytes())
        data[800] ^= 1
        tar.write_bytes(data)
        with pytest.raises(DataError, match=r"train-000000\.tar: its bytes are not those that were packed"):
            far.read(0)
    else:
        server.faults.extend(["ok", "shifted"])  # the index, then a part
        assert [far.read(i) for i in range(3)] == [near.read(i) for i in range(3)]
    server.close()
