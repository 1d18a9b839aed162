"""Remarks of decoders about images that they decode nevertheless are counted, and named once."""

from __future__ import annotations

import io
import logging
import os
import struct
import warnings
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

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


def test_every_source_is_counted_and_named_once(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(3):
        read_pixels(odd_png())
        read_pixels(odd_jpeg())
        with decoding("x"):
            logging.getLogger("tifffile").warning("tag %d is unknown", os.getpid())
            with warnings.catch_warnings():
                warnings.simplefilter("always")
                warnings.warn_explicit("odd palette", UserWarning, "/site-packages/PIL/Image.py", 1)
    kinds = dict(remarks._counts)
    assert set(kinds.values()) == {3}
    assert {"PNG warning: tEXt: too short", "tag N is unknown", "odd palette"} < set(kinds)
    assert any(
        "extraneous bytes before marker Nd9" in kind or "extraneous bytes before marker N" in kind for kind in kinds
    )
    assert [record.getMessage().split(": ", 1)[1].split(";")[0] for record in caplog.records] == list(kinds)
    assert len(remarks.lines()) == 4
    assert remarks.lines()[0].startswith("image decoders reported 3 times: ")
    assert capfd.readouterr().err == ""


def test_other_lines_on_stderr_get_there(capfd: pytest.CaptureFixture[str]) -> None:
    def one(number: int) -> None:
        with decoding("jpeg"):
            os.write(2, f"line {number}\nCorrupt JPEG data: {number} bytes\n".encode())

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(one, range(8)))
    assert sorted(capfd.readouterr().err.splitlines()) == [f"line {number}" for number in range(8)]
    assert remarks.taken() == {"Corrupt JPEG data: N bytes": 8}
    os.write(2, b"after\n")
    assert capfd.readouterr().err == "after\n"


def test_the_error_of_a_broken_image_is_enough(capfd: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        os.write(2, b"Corrupt JPEG data: premature end of data segment\n")
        raise RuntimeError("it is cut off")

    with pytest.raises(BrokenSample, match="jpeg: it is cut off"), decoding("jpeg"):
        fail()
    assert remarks.taken() == {}
    assert capfd.readouterr().err == ""


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
