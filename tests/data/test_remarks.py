"""Remarks of decoders about images that they decode nevertheless are counted, and named once."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import struct
import sys
import tempfile
import warnings
import zlib
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

from swinv2_train.data import remarks
from swinv2_train.data.decode import decoding, read_pixels
from swinv2_train.data.errors import BrokenSample
from swinv2_train.data.loader import Workers
from swinv2_train.data.parallel import ParallelMap
from swinv2_train.data.workers import WorkerPool
from tests.data.samples import jpeg


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    remarks.taken()
    yield
    remarks.taken()


def odd_png() -> bytes:
    """A PNG with an empty text chunk, about which libpng warns."""
    stream = io.BytesIO()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(stream, "PNG")
    data = stream.getvalue()
    return data[:33] + struct.pack(">I", 0) + b"tEXt" + struct.pack(">I", zlib.crc32(b"tEXt")) + data[33:]


def odd_jpeg() -> bytes:
    """A JPEG with four bytes before its end that belong to nothing, about which libjpeg prints a line."""
    data = jpeg(0)
    return data[:-2] + bytes(4) + data[-2:]


def test_warnings_and_logs_are_counted_and_stderr_is_left_alone(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(3):
        read_pixels(odd_png())
        with decoding("x"):
            logging.getLogger("tifffile").warning("tag %d is unknown", os.getpid())
            with warnings.catch_warnings():
                warnings.simplefilter("always")
                warnings.warn_explicit("odd palette", UserWarning, "/site-packages/PIL/Image.py", 1)
    kinds = dict(remarks._counts)
    assert kinds == dict.fromkeys(["PNG warning: tEXt: too short", "tag N is unknown", "odd palette"], 3)
    named = [record.getMessage() for record in caplog.records if record.name == remarks.__name__]
    assert [text.split(": ", 1)[1].split(";")[0] for text in named] == list(kinds)
    assert len(remarks.lines()) == 3
    assert remarks.lines()[0].startswith("image decoders reported 3 times: ")
    assert capfd.readouterr().err == ""
    before = os.fstat(2)
    with decoding("jpeg"):
        assert os.path.samestat(os.fstat(2), before)  # so a child that starts now has the right one too
        os.write(2, b"Corrupt JPEG data: 4 bytes\n")
        assert capfd.readouterr().err == "Corrupt JPEG data: 4 bytes\n"
    read_pixels(odd_jpeg())
    assert "extraneous bytes before marker 0xd9" in capfd.readouterr().err
    assert dict(remarks._counts) == kinds


OF_DECODERS = [
    "Corrupt JPEG data: 12 extraneous bytes before marker 0xd9",
    "Premature end of JPEG file",
    "Warning: unknown JFIF revision number 7.01",
    "Unknown Adobe color transform code 5",
    "libpng warning: iCCP: known incorrect sRGB profile",
    "TIFFReadDirectory: Warning, Unknown field with tag 33723 (0x83bb) encountered.",
    "LZWDecode: Not enough data at scanline 0 (short 17 bytes).",
]
OF_OTHERS = [
    "Warning: the disk is nearly full",
    "Invalid argument",
    "TIFF files are slow",
    "ZIP is not supported",
    "libfoo: cannot open shared object file",
    "Inconsistent state",
]


def decode_apart(kind: str) -> list[str]:
    """Decode in a process that does nothing else; return the lines that get to its stderr."""
    with tempfile.TemporaryFile() as file:
        kept = os.dup(2)
        os.dup2(file.fileno(), 2)
        assert sys.stderr.fileno() != 2  # what Python prints does not depend on the redirection
        try:
            with contextlib.suppress(BrokenSample), decoding("jpeg"):
                os.write(2, "".join(f"{line}\n" for line in OF_DECODERS + OF_OTHERS).encode())
                if kind == "broken":
                    raise RuntimeError("it is cut off")
            if kind == "jpeg":
                read_pixels(odd_jpeg())
        finally:
            os.dup2(kept, 2)
            os.close(kept)
        file.seek(0)
        return file.read().decode().splitlines()


@pytest.mark.slow
def test_lines_from_c_are_counted_where_only_images_are_decoded() -> None:
    mapped = ParallelMap(decode_apart, 1)
    try:
        for kind, times in (("jpeg", 1), ("broken", 0)):
            assert list(mapped([kind])) == [OF_OTHERS], kind
            found = remarks.taken()
            assert sum(found.values()) == times * (len(OF_DECODERS) + 1), found
            assert ("Corrupt JPEG data: N extraneous bytes before marker N" in found) == bool(times)
    finally:
        mapped.close()


@pytest.mark.parametrize(("line", "counted"), [(line, line in OF_DECODERS) for line in OF_DECODERS + OF_OTHERS])
def test_only_whole_lines_of_decoders_are_known(line: str, counted: bool) -> None:
    assert bool(remarks._OF_DECODERS.match(f"{line}\n".encode())) == counted


def test_the_error_of_a_broken_image_names_its_format() -> None:
    with pytest.raises(BrokenSample, match="jpeg: it is cut off"), decoding("jpeg"):
        raise RuntimeError("it is cut off")
    assert remarks.taken() == {}


def read_odd(_: int) -> int:
    return read_pixels(odd_png()).image.shape[0]


class OddImages:
    """A data set whose every image gets a remark."""

    def __getitems__(self, indices: list[int]) -> dict[str, list[int]]:
        return {"channels": [read_odd(index) for index in indices]}


@pytest.mark.slow
def test_processes_pass_their_counts_on(caplog: pytest.LogCaptureFixture) -> None:
    mapped = ParallelMap(read_odd, 1)
    try:
        assert list(mapped(range(5))) == [3] * 5
    finally:
        mapped.close()
    pool = WorkerPool(OddImages(), [[0, 1], [2]], Workers(1))  # type: ignore[arg-type]
    try:
        assert list(pool) == [{"channels": [3, 3]}, {"channels": [3]}]
    finally:
        pool.close()
    assert remarks.lines() == ["image decoders reported 8 times: PNG warning: tEXt: too short"]
    assert len(caplog.records) == 1
