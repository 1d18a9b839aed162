"""Members of intact archives against Python's tarfile; damaged headers may not change samples silently."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from swinv2_train.data.errors import DataError
from swinv2_train.data.tar import BLOCK, DamagedError, members
from tests.data.samples import write_tar

LONG = "d" * 90 + "/" + "e" * 120 + ".jpg"
NAMES = ["a.jpg", "a.cls", "BZ/b.png", "p" * 90 + "/" + "q" * 60 + ".jpg", "z.jpg"]
UNICODE = [LONG, "grün/ß.webp", "x" * 99 + ".jpg", "y" * 300 + ".png"]


def ours(path: Path) -> list[tuple[str, int, int]]:
    """(name, offset, size) of the regular members up to any damage."""
    fd = os.open(path, os.O_RDONLY)
    found = []
    try:
        for member in members(fd, path.name):
            if member.regular:
                found.append((member.name, member.offset, member.size))
    except DamagedError:
        found.append(("damaged", 0, 0))
    finally:
        os.close(fd)
    return found


def theirs(path: Path) -> list[tuple[str, int, int]]:
    with tarfile.open(path, "r:") as tar:
        return [(info.name, info.offset_data, info.size) for info in tar if info.isreg()]


def write_all_kinds(path: Path, tar_format: int) -> Path:
    """Files, links, a folder and a device, with every long form that the format has."""
    names = NAMES if tar_format == tarfile.USTAR_FORMAT else NAMES + UNICODE
    headers = {"comment": "global"} if tar_format == tarfile.PAX_FORMAT else None
    with tarfile.open(path, "w", format=tar_format, pax_headers=headers) as tar:
        for number, name in enumerate(names):
            info = tarfile.TarInfo(name)
            info.size, info.mtime = 300 * number, 1.5 if headers else 1
            if headers and number == 2:
                info.pax_headers = {"SCHILY.xattr.user.note": "x=y\n1 2=", "size": "600", "comment": "ü"}
            if tar_format == tarfile.GNU_FORMAT and number == 3:
                info.uid = 2**40  # base 256
            tar.addfile(info, io.BytesIO(bytes([number]) * info.size))
            for kind in (tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, b"V"):
                other = tarfile.TarInfo(f"other{number}-{kind.decode()}.jpg")
                other.type, other.linkname = kind, names[0] if number else "l" * 150
                if tar_format == tarfile.USTAR_FORMAT:
                    other.linkname = other.linkname[:99]
                tar.addfile(other)
    return path


@pytest.mark.parametrize("tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_of_an_intact_archive_are_those_of_tarfile(tmp_path: Path, tar_format: int) -> None:
    path = write_all_kinds(tmp_path / "s.tar", tar_format)
    assert ours(path) == theirs(path)
    assert len(ours(path)) >= len(NAMES)


@pytest.mark.parametrize("option", ["v7", "ustar", "oldgnu", "gnu", "pax"])
def test_members_of_a_gnu_archive_are_those_of_tarfile(tmp_path: Path, option: str) -> None:
    if shutil.which("tar") is None:
        pytest.skip("there is no tar command")
    names = (
        NAMES[:3] + ([] if option == "v7" else NAMES[3:4]) + (UNICODE[:2] if option in ("gnu", "oldgnu", "pax") else [])
    )
    for number, name in enumerate(names):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(bytes([number]) * 700 * number)
    (tmp_path / "in" / "link.jpg").symlink_to("a.jpg")
    path = tmp_path / "s.tar"
    subprocess.run(["tar", f"--format={option}", "-cf", path, "-C", tmp_path / "in", "."], check=True)
    assert ours(path) == theirs(path)
    assert len(ours(path)) == len(names)


def test_a_member_of_many_gigabytes_is_found(tmp_path: Path) -> None:
    path = tmp_path / "s.tar"
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        info = tarfile.TarInfo("a.jpg")
        info.size = 9 << 30  # above what eleven octal digits hold
        start = info.tobuf(tarfile.GNU_FORMAT)
        second = tarfile.TarInfo("b.jpg").tobuf(tarfile.GNU_FORMAT)
        tar.addfile(tarfile.TarInfo("unused.jpg"))
    with path.open("wb") as file:
        file.write(start)
        file.seek(9 << 30, os.SEEK_CUR)
        file.write(second + bytes(1024))
    assert ours(path) == [("a.jpg", 512, 9 << 30), ("b.jpg", 1024 + (9 << 30), 0)]


def with_checksum(header: bytearray) -> None:
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)


def resized(field: bytes) -> Callable[[bytearray], None]:
    """Give the second member another size field, under a right checksum."""

    def damage(data: bytearray) -> None:
        header = data[2 * BLOCK : 3 * BLOCK]
        header[124:136] = field.ljust(12, b"\0")
        with_checksum(header)
        data[2 * BLOCK : 3 * BLOCK] = header

    return damage


SIZES = {
    "negative octal": b"-0000001000",
    "negative base 256": b"\xff" * 12,
    "unknown base": b"\xc0" + b"\0" * 11,
    "huge base 256": b"\x80" + b"\xff" * 11,
    "underscores": b"0000001_000",
    "prefix": b"0o000000144",
    "not a number": b"abcdefghijk",
}


@pytest.mark.parametrize("field", SIZES.values(), ids=SIZES)
def test_a_size_that_cannot_be_ends_the_archive(tmp_path: Path, field: bytes) -> None:
    path = write_tar(tmp_path / "s.tar", [(f"{n}.jpg", bytes([n]) * 100) for n in range(4)])
    data = bytearray(path.read_bytes())
    resized(field)(data)
    path.write_bytes(data)
    assert [name for name, _, _ in ours(path)][:1] == ["0.jpg"]
    assert ours(path)[-1][0] == "damaged"


RECORDS = {
    "no length": b"00 path=a.jpg\n",
    "length of zero": b"0 path=a.jpg\n",
    "too short": b"9 path=a.jpg\n",
    "too long": b"99 path=a.jpg\n",
    "huge": b"999999999 path=a.jpg\n",
    "many digits": b"9" * 5000 + b" path=a.jpg\n",
    "negative": b"-14 path=a.jpg\n",
    "no value": b"8 path\n\n",
    "no newline": b"14 path=a.jpgx",
    "zero in a path": b"15 path=a.j\0pg\n",
    "negative size": b"11 size=-5\n",
    "size of many digits": b"38 size=" + b"9" * 29 + b"\n",
    "size is text": b"12 size=ten\n",
}


@pytest.mark.parametrize("record", RECORDS.values(), ids=RECORDS)
def test_a_damaged_pax_header_ends_the_archive(tmp_path: Path, record: bytes) -> None:
    path = tmp_path / "s.tar"
    header = tarfile.TarInfo("././@PaxHeader")
    header.type, header.size = tarfile.XHDTYPE, len(record)
    first, second = tarfile.TarInfo("first.jpg").tobuf(), tarfile.TarInfo("second.jpg").tobuf()
    padding = bytes(-len(record) % BLOCK)
    path.write_bytes(first + header.tobuf() + record + padding + second + bytes(2 * BLOCK))
    assert ours(path) == [("first.jpg", BLOCK, 0), ("damaged", 0, 0)]


def test_headers_of_impossible_length_or_without_a_member_end_the_archive(tmp_path: Path) -> None:
    first = tarfile.TarInfo("first.jpg").tobuf()
    for kind in (b"x", b"g", b"L", b"K"):
        for size in (1 << 21, 1 << 40, 600):
            header = tarfile.TarInfo("././@PaxHeader")
            header.type, header.size = kind, size
            path = tmp_path / "s.tar"
            path.write_bytes(first + header.tobuf(tarfile.GNU_FORMAT) + bytes(BLOCK))
            assert ours(path) == [("first.jpg", BLOCK, 0), ("damaged", 0, 0)]
    header = tarfile.TarInfo("././@LongLink")
    header.type, header.size = b"L", 5
    path.write_bytes(first + header.tobuf() + b"a.jpg".ljust(BLOCK, b"\0") + bytes(2 * BLOCK))
    assert ours(path) == [("first.jpg", BLOCK, 0), ("damaged", 0, 0)]


def test_a_header_of_zeros_and_an_archive_behind_another_are_reported(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "s.tar", [(f"{n}.jpg", bytes([n + 1]) * 100) for n in range(4)])
    intact = path.read_bytes()
    path.write_bytes(intact[: 2 * BLOCK] + bytes(BLOCK) + intact[3 * BLOCK :])
    assert [name for name, _, _ in ours(path)] == ["0.jpg", "damaged"]
    path.write_bytes(intact + intact)
    assert [name for name, _, _ in ours(path)] == ["0.jpg", "1.jpg", "2.jpg", "3.jpg", "damaged"]
    path.write_bytes(intact)
    os.truncate(path, 100 << 20)  # what a download leaves that reserves its room
    assert ours(path)[-1][0] == "damaged"


def test_every_flipped_bit_of_a_header_is_noticed(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "s.tar", [(f"{n}.jpg", bytes([n + 1]) * 100) for n in range(2)])
    intact = path.read_bytes()
    allowed = [("0.jpg", 512, 100), ("damaged", 0, 0)], theirs_of(intact)
    for bit in range(8 * BLOCK):
        data = bytearray(intact)
        data[2 * BLOCK + bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        assert ours(path) in allowed


def theirs_of(data: bytes) -> list[tuple[str, int, int]]:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return [(info.name, info.offset_data, info.size) for info in tar if info.isreg()]


def test_what_is_not_a_tar_is_named(tmp_path: Path) -> None:
    cases = {
        b"<!DOCTYPE html><html>log in</html>": "not a tar file but a web page",
        b"version https://git-lfs.github.com/spec/v1\n": "not a tar file but a Git LFS pointer",
        b"PK\x03\x04" + bytes(600): r"is compressed \(zip\)",
        b"\x28\xb5\x2f\xfd" + bytes(600): r"is compressed \(zstd\)",
        b"abc": "not a tar file: it has only 3 bytes",
    }
    for data, message in cases.items():
        path = tmp_path / "s.tar"
        path.write_bytes(data)
        with pytest.raises(DataError, match=message):
            ours(path)
