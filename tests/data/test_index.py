from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import webdataset

from swinv2_train.data.errors import DataError
from swinv2_train.data.index import ShardIndex, build_index, misplaced, read_header, read_index, write_index
from swinv2_train.data.samples import Scope
from tests.data.samples import jpeg, write_tar

LONG = "a" * 90 + "/" + "b" * 120


def index_of(path: Path) -> ShardIndex:
    fd = os.open(path, os.O_RDONLY)
    try:
        return build_index(str(path), fd)
    finally:
        os.close(fd)


def member_bytes(path: Path, index: ShardIndex, sample: int) -> dict[str, bytes]:
    data = path.read_bytes()
    return {name: data[offset : offset + size] for name, (offset, size) in index.members(sample).items()}


@pytest.mark.parametrize("tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_lie_where_tarfile_finds_them(tmp_path: Path, tar_format: int) -> None:
    names = ["one.jpg", "one.cls", "deep/er/two.v2.png", "three.JPEG", "x" * 80 + "/" + "y" * 90 + ".jpg"]
    if tar_format != tarfile.USTAR_FORMAT:
        names += [f"{LONG}.jpg", f"{LONG}.json", "grün/ß.webp"]
    path = write_tar(tmp_path / "s.tar", [(name, name.encode() * 7) for name in names], format=tar_format)
    index = index_of(path)
    found = {}
    for sample, key in enumerate(index.keys):
        for extension, data in member_bytes(path, index, sample).items():
            found[f"{key}.{extension}"] = data
    assert found == {name.replace("JPEG", "jpeg"): name.encode() * 7 for name in names}
    assert index.truncated is None


def test_pax_headers_may_override_sizes_and_carry_other_records(tmp_path: Path) -> None:
    path = tmp_path / "s.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT, pax_headers={"comment": "global"}) as tar:
        info = tarfile.TarInfo("a.jpg")
        info.size, info.mtime, info.pax_headers = 3, 1.5, {"SCHILY.xattr.user.note": "x=y\n"}
        tar.addfile(info, io.BytesIO(b"abc"))
    index = index_of(path)
    assert index.keys == ["a"]
    assert member_bytes(path, index, 0) == {"jpg": b"abc"}


def test_samples_are_those_of_webdataset(tmp_path: Path) -> None:
    path = tmp_path / "s.tar"
    with webdataset.TarWriter(str(path)) as writer:
        for n in range(5):
            writer.write({"__key__": f"dir/sample{n}", "jpg": jpeg(n), "cls": n, "json": {"n": n}})
    index = index_of(path)
    theirs = list(webdataset.WebDataset(str(path), shardshuffle=False))
    assert index.keys == [sample["__key__"] for sample in theirs]
    for sample, their in enumerate(theirs):
        assert member_bytes(path, index, sample) == {name: their[name] for name in ("jpg", "cls", "json")}


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (pytest.fail, ("a pickle was loaded",))


def test_pickles_are_not_even_indexed(tmp_path: Path) -> None:
    bomb = pickle.dumps(Bomb())
    members = [("a.jpg", jpeg(0))] + [(f"a.{name}", bomb) for name in ("pyd", "pickle", "pkl", "pt", "pth", "npy")]
    index = index_of(write_tar(tmp_path / "s.tar", members))
    assert index.extensions == ["jpg"]


def test_members_that_are_not_samples_are_skipped(tmp_path: Path) -> None:
    path = tmp_path / "s.tar"
    with tarfile.open(path, "w") as tar:
        for name, kind in (
            ("folder.jpg", tarfile.DIRTYPE),
            ("link.jpg", tarfile.SYMTYPE),
            ("hard.jpg", tarfile.LNKTYPE),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "good.jpg"
            tar.addfile(info)
        for name in ("._good.jpg", "good.jpg", "README", "text.txt", "only.cls"):
            info = tarfile.TarInfo(name)
            info.size = 3
            tar.addfile(info, io.BytesIO(b"abc"))
    assert index_of(path).keys == ["good"]


def test_of_several_images_the_plain_one_is_the_sample() -> None:
    assert Scope().main_extension(("seg.png", "jpg", "cls")) == "jpg"
    assert Scope().main_extension(("depth.png", "cls")) == "depth.png"
    assert Scope().main_extension(("cls", "json")) is None


@pytest.mark.parametrize("cut", ["inside the data", "inside a header", "before the end mark"])
def test_a_cut_off_tar_gives_its_complete_samples(tmp_path: Path, cut: str) -> None:
    path = write_tar(tmp_path / "s.tar", [(f"{n}.{e}", bytes(700)) for n in range(3) for e in ("cls", "jpg")])
    with tarfile.open(path) as tar:
        last = tar.getmembers()[-1]
    size = {
        "inside the data": last.offset_data + 100,
        "inside a header": last.offset + 100,
        "before the end mark": last.offset_data + 1024,
    }[cut]
    os.truncate(path, size)
    index = index_of(path)
    assert index.keys == (["0", "1", "2"] if cut == "before the end mark" else ["0", "1"])
    assert index.truncated


def test_a_damaged_header_ends_the_shard_there(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "s.tar", [(f"{n}.jpg", bytes(100)) for n in range(4)])
    data = bytearray(path.read_bytes())
    data[2 * 1024 + 5] ^= 0xFF
    path.write_bytes(data)
    index = index_of(path)
    assert index.keys == ["0", "1"]
    assert "damaged" in (index.truncated or "")


def test_other_files_than_tars_of_images_are_named(tmp_path: Path) -> None:
    cases = {
        "holds no sample with an image": write_tar(tmp_path / "text.tar", [("a.txt", b"x")]),
        r"is compressed \(gzip\): unpack it": tmp_path / "zipped.tar",
        "is not a tar file": tmp_path / "random.tar",
        "only 3 bytes": tmp_path / "tiny.tar",
    }
    (tmp_path / "zipped.tar").write_bytes(gzip.compress(bytes(range(256)) * 99))
    (tmp_path / "random.tar").write_bytes(bytes(range(256)) * 99)
    (tmp_path / "tiny.tar").write_bytes(b"abc")
    for message, path in cases.items():
        with pytest.raises(DataError, match=message) as caught:
            index_of(path)
        assert str(path) in str(caught.value)


def test_an_index_file_gives_back_the_same_index(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "s.tar", [("a.jpg", b"1"), ("a.cls", b"2"), ("ü\udcff/b.png", b"345")])
    index = index_of(path)
    index.extra = {"card": {"n": 1}}
    write_index(index, tmp_path / "s.index")
    again = read_index(tmp_path / "s.index")
    assert again is not None
    assert again.header() == index.header() == read_header(tmp_path / "s.index")
    assert again.keys == index.keys
    assert [again.members(i) for i in range(2)] == [index.members(i) for i in range(2)]


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-40],
        lambda data: b"{}",
        lambda data: b"",
        lambda data: b"[1]\n[2]",
        lambda data: b"[" * 100_000,
        lambda data: bytes(reversed(data)),
        lambda data: b"\xff\xfe" + data,
        lambda data: data.replace(b'"num_samples": 2', b'"num_samples": 3'),
        lambda data: data.replace(b'"n": 1', b'"n": 2'),
        lambda data: data.replace(b'"a"', b'"c"'),
        lambda data: data.replace(b"512", b"1024"),
    ],
)
def test_a_damaged_index_file_is_not_used(
    tmp_path: Path, damage: Callable[[bytes], bytes], caplog: pytest.LogCaptureFixture
) -> None:
    index = index_of(write_tar(tmp_path / "s.tar", [("a.jpg", b"1"), ("b.jpg", b"2")]))
    index.extra = {"card": {"n": 1}}
    write_index(index, tmp_path / "s.index")
    data = (tmp_path / "s.index").read_bytes()
    assert damage(data) != data
    (tmp_path / "s.index").write_bytes(damage(data))
    assert read_index(tmp_path / "s.index") is None
    assert f"ignoring the index {tmp_path / 's.index'} (" in caplog.text


HEADER = {"format": 1, "tar_size": 10240, "tar_mtime_ns": -5, "num_samples": 2, "truncated": None, "extra": {}}
COLUMNS = {"keys": ["a", "b"], "extensions": ["cls", "jpg"], "offsets": [[-1, 512], [1536, 2560]]}
COLUMNS["sizes"] = [[0, 1], [9, 7680]]
IMPOSSIBLE = {
    "header": [
        {"tar_size": -1}, {"tar_size": 1e9}, {"tar_size": "9"}, {"tar_size": 10**30}, {"num_samples": 0},
        {"num_samples": True}, {"num_samples": 21}, {"num_samples": None}, {"extra": None}, {"extra": {"pack": 1}},
        {"truncated": 5}, {"tar_mtime_ns": None}, {"num_samples": 1},
    ],
    "columns": [
        {"keys": ["a"]}, {"keys": [1, 2]}, {"keys": None}, {"extensions": ["jpg", "jpg"]},
        {"extensions": ["cls", "txt"]},
        {"offsets": [[-1, 512], [1536, 10752]]}, {"offsets": [[-1, 512], [1536, -512]]},
        {"offsets": [[-1, 512], [1536, 2561]]}, {"offsets": [[-1, 512], [1536, 2560.5]]},
        {"offsets": [[-1, 512], [1536, 10**30]]}, {"offsets": [[-1, 512], [1536, True]]},
        {"offsets": [[-1, 512], [1536]]}, {"offsets": [[-1, 512], [1536, -1]]}, {"offsets": 3},
        {"sizes": [[0, 1], [9, 7681]]}, {"sizes": [[0, 1], [9, -1]]}, {"sizes": [[0, 1], [9, 2**63 - 1]]},
        {"sizes": [[0, 1]]},
    ],
}  # fmt: skip


def written(path: Path, header: dict[str, object], columns: dict[str, object]) -> Path:
    """As earlier versions wrote it: without hashes, so that only the numbers themselves can show damage."""
    path.write_text(f"{json.dumps(HEADER | header)}\n{json.dumps(COLUMNS | columns)}\n")
    return path


def test_an_index_of_an_earlier_version_is_read_and_its_impossible_numbers_are_not(tmp_path: Path) -> None:
    index = read_index(written(tmp_path / "s.index", {}, {}))
    assert index is not None
    assert not index.proven
    assert index.members(1) == {"cls": (512, 1), "jpg": (2560, 7680)}
    for change in IMPOSSIBLE["header"]:
        assert read_index(written(tmp_path / "s.index", change, {})) is None, change
    for change in IMPOSSIBLE["columns"]:
        assert read_index(written(tmp_path / "s.index", {}, change)) is None, change


def test_headers_that_are_not_where_the_index_says_are_found(tmp_path: Path) -> None:
    names = ["a.jpg", "a.cls", "B.JPG", "x" * 99 + ".png", "ü.webp", "p" * 90 + "/" + "q" * 60 + ".jpg"]
    for tar_format in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        path = write_tar(tmp_path / "s.tar", [(name, name.encode()) for name in names], format=tar_format)
        index = index_of(path)
        with path.open("r+b") as file:
            assert misplaced(index, file.fileno()) is None
            index.keys[0] = "c"
            assert "is of 'a.cls', not of c.cls" in str(misplaced(index, file.fileno()))
            index.keys[0] = "a"
            index.sizes[index.extensions.index("jpg"), 0] += 1
            assert "a.jpg has another size" in str(misplaced(index, file.fileno()))
            index.sizes[index.extensions.index("jpg"), 0] -= 1
            end = int((index.offsets + index.sizes).max())
            for place in (end, -(-end // 512) * 512 + 5):
                file.seek(place)
                file.write(b"x")
                file.flush()
                assert f"other data behind byte {end}" in str(misplaced(index, file.fileno()))
                file.seek(place)
                file.write(b"\0")
                file.flush()
            assert misplaced(index, file.fileno()) is None
            file.truncate(3000)
            assert "there is no header of" in str(misplaced(index, file.fileno()))
