"""A file of torch.save whose pickle claims what its data does not hold is refused, and nothing in it is ever run."""

from __future__ import annotations

import pickle
import random
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from swinv2_train.checkpoint.errors import CheckpointError
from swinv2_train.interop.storage import numel
from swinv2_train.interop.torch_check import check_file
from swinv2_train.interop.torch_file import TorchStorage

Members = dict[str, bytes]


@pytest.fixture(scope="module")
def members(tmp_path_factory: pytest.TempPathFactory) -> Members:
    path = tmp_path_factory.mktemp("torch") / "x.pth"
    tensors = {"a": torch.arange(16.0).view(4, 4), "b": torch.ones(8).half(), "c": torch.zeros(1).expand(3)}
    torch.save({"model": {**tensors, "a again": tensors["a"].t()}}, path)
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def put(path: Path, members: Members, kind: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", kind) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def edited(members: Members, old: bytes, new: bytes) -> Members:
    """With other bytes in the pickle."""
    assert old in members["x/data.pkl"]
    return {**members, "x/data.pkl": members["x/data.pkl"].replace(old, new)}


def opened(path: Path) -> tuple[TorchStorage | None, str]:
    """A file, or why it is refused."""
    try:
        return TorchStorage(path), ""
    except CheckpointError as error:
        return None, str(error)


def refusal(path: Path) -> str:
    storage, sentence = opened(path)
    assert storage is None
    assert "\n" not in sentence
    assert str(path) in sentence
    return sentence


def test_a_compressed_archive_gives_the_same_tensors(tmp_path: Path, members: Members) -> None:
    """Mapped into memory, its members would come out as noise."""
    for kind, mapped in ((zipfile.ZIP_STORED, True), (zipfile.ZIP_DEFLATED, False)):
        path = put(tmp_path / "x.pth", members, kind)
        assert check_file(path) is mapped
        storage = TorchStorage(path)
        assert torch.equal(storage.elements("a", 0, 16), torch.arange(16.0))
        assert torch.equal(storage.elements("a again", 0, 16), torch.arange(16.0).view(4, 4).t().reshape(-1))
        assert torch.equal(storage.elements("c", 0, 3), torch.zeros(3))


CLAIMS: dict[str, tuple[Callable[[Members], Members], str]] = {
    "more elements": (
        lambda m: edited(m, b"K\x10", b"K\x28"),
        "64 bytes, and its 40 elements of FloatStorage need 160",
    ),
    "fewer elements": (lambda m: edited(m, b"K\x10", b"K\x04"), "reaches element 15 of storage 0, which has 4"),
    "wider": (lambda m: edited(m, b"FloatStorage", b"LongStorage"), "elements of LongStorage need 128"),
    "larger tensor": (lambda m: edited(m, b"K\x04K\x04", b"K\x05K\x04"), "reaches element 19 of storage 0"),
    "longer stride": (lambda m: edited(m, b"K\x04K\x01", b"K\x0aK\x01"), "reaches element 33"),
    "negative": (lambda m: edited(m, b"QK\x00", b"QJ\xff\xff\xff\xff"), "broken"),
    "no data": (lambda m: {k: v for k, v in m.items() if k != "x/data/1"}, "lacks the data of storage 1"),
    "short data": (lambda m: {**m, "x/data/0": m["x/data/0"][:60]}, "storage 0 has 60 bytes"),
    "long data": (lambda m: {**m, "x/data/0": m["x/data/0"] + b"1234"}, "storage 0 has 68 bytes"),
    "two pickles": (lambda m: {**m, "y/data.pkl": m["x/data.pkl"]}, "holds data.pkl twice"),
    "memo": (lambda m: {**m, "x/data.pkl": b"\x80\x02}r\xff\xff\xff\x7f."}, "no named tensors"),
    "long string": (lambda m: {**m, "x/data.pkl": b"\x80\x04\x8e" + b"\xff" * 7 + b"\x00."}, "broken or not a file"),
    "nested": (lambda m: {**m, "x/data.pkl": b"\x80\x02" + b"(" * 9 + b"."}, "broken or not a file"),
}


@pytest.mark.parametrize("kind", CLAIMS)
def test_a_claim_that_the_data_does_not_fit_is_one_sentence(tmp_path: Path, members: Members, kind: str) -> None:
    change, sentence = CLAIMS[kind]
    assert sentence in refusal(put(tmp_path / "x.pth", change(members)))


def test_members_that_overlap_or_are_elsewhere_are_refused(tmp_path: Path, members: Members) -> None:
    path = put(tmp_path / "x.pth", members)
    whole = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        places = {member.filename: member.header_offset for member in archive.infolist()}

    def directory(name: str) -> int:
        """Where the entry of a member in the directory begins."""
        return whole.rindex(name.encode()) - 46

    def put_at(place: int, *values: int) -> None:
        path.write_bytes(whole[:place] + struct.pack(f"<{len(values)}I", *values) + whole[place + 4 * len(values) :])

    put_at(directory("x/data/0") + 20, 400, 400)  # both sizes
    assert "lies inside x/data/0" in refusal(path)
    put_at(directory("x/data/1") + 42, places["x/data/0"])
    assert refusal(path)
    put_at(directory("x/data/1") + 42, places["x/data/0"] + 4)
    assert "is not where the directory says" in refusal(path)
    put_at(directory("x/data/0") + 20, 48)
    assert "has two sizes" in refusal(path)


@pytest.mark.parametrize("zipped", [True, False])
def test_no_damage_ends_in_other_values_of_another_place(tmp_path: Path, zipped: bool) -> None:
    """Whatever is flipped or cut off outside of the data of the tensors: refused, or read as it was."""
    rng = random.Random(1)
    path = tmp_path / "x.pth"
    tensors = {f"t{n}": torch.arange(12.0 * n, 12 * n + 12) for n in range(3)}
    torch.save(tensors, path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    starts = [whole.index(tensor.numpy().tobytes()) for tensor in tensors.values()]
    data = {start + byte for start in starts for byte in range(48)}
    outside = sorted(set(range(len(whole))) - data)
    expected = {value for tensor in tensors.values() for value in tensor.tolist()}
    refused = 0
    for _ in range(150):
        damaged = bytearray(whole)
        if rng.random() < 0.2:
            del damaged[rng.randrange(len(damaged)) :]
        else:
            damaged[rng.choice(outside)] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        storage, sentence = opened(path)
        if storage is None:
            assert "\n" not in sentence
            refused += 1
            continue
        for key, shape in storage.shapes.items():
            assert set(storage.elements(key, 0, numel(shape)).tolist()) <= expected
    assert refused > 30


def test_objects_are_named_and_not_made(tmp_path: Path) -> None:
    class Planted:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (tmp_path / "planted",)  # type: ignore[return-value]

    with (tmp_path / "x.pth").open("wb") as file:
        for value in (0x1950A86A20F9469CFC6C, 1001, {}, {"a": Planted()}, []):
            pickle.dump(value, file, 2)
    assert "holds no named tensors" in refusal(tmp_path / "x.pth")
    assert not (tmp_path / "planted").exists()
