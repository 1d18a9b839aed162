"""Damage in the structure of a file is found; bytes after its end are not damage."""

from __future__ import annotations

import io
import random
import re

import pytest

from swinv2_train.data.errors import BrokenSample
from swinv2_train.data.video import probe
from swinv2_train.data.video_structure import cut_off, damage
from tests.data.filmed import film
from tests.data.videos import video

FRAGMENTS = video(40, muxer={"movflags": "frag_keyframe+empty_moov"})
FILES = {
    "mp4": film(40),
    "fast mp4": video(40, muxer={"movflags": "faststart"}),
    "fragments": FRAGMENTS,
    "mkv": film(40, "mkv", audio=0.5),
    "recorded mkv": video(40, "mkv", muxer={"live": "1"}),
    "webm": film(40, "webm"),
    "avi": film(40, "avi"),
}


def _reasons(data: bytes) -> tuple[str | None, str | None]:
    file = io.BytesIO(data)
    return cut_off(file, len(data)), damage(file, len(data))


@pytest.mark.parametrize("kind", FILES)
def test_bytes_after_the_end_of_a_file_are_not_damage(kind: str) -> None:
    assert _reasons(FILES[kind]) == (None, None)
    if kind != "recorded mkv":  # its end is not declared
        for tail in (b"TAG" + b"text of a tool " * 7, bytes(100), b"\0\0\0\x14free" + bytes(12)):
            assert _reasons(FILES[kind] + tail) == (None, None)
    assert probe(FILES[kind]).frames == 40


@pytest.mark.parametrize("kind", ["mkv", "recorded mkv", "webm"])
def test_each_header_of_a_block_is_checked(kind: str) -> None:
    """FFmpeg skips a block with another track, and everything up to the next cluster after another length."""
    data = FILES[kind]
    block = re.compile(rb"\xa3(?:[\x81-\xff]|[\x40-\x7f].)[\x81\x82]\0", re.DOTALL)
    place = block.search(data, data.index(b"\x1f\x43\xb6\x75")).start()  # in the first cluster
    width = 9 - data[place + 1].bit_length()
    for at, byte in ((place, 0x33), (place + width, data[place + width] ^ 0x15), (place + 1 + width, 0x95)):
        bad = data[:at] + bytes([byte]) + data[at + 1 :]
        cut, broken = _reasons(bad)
        assert cut is None
        assert broken is not None
        assert broken.startswith("it is damaged: its structure breaks at byte ")
        with pytest.raises(BrokenSample):
            probe(bad)


def test_lost_fragments_are_damage() -> None:
    """FFmpeg continues with the next fragment whose header is intact."""
    second = FRAGMENTS.index(b"moof", FRAGMENTS.index(b"moof") + 4)
    track = FRAGMENTS.index(b"tfhd", second) + 11
    for place, new in ((second - 4, bytes(12)), (second - 4, random.Random(3).randbytes(60)), (track, b"\x07")):
        bad = FRAGMENTS[:place] + new + FRAGMENTS[place + len(new) :]
        assert "its structure breaks at byte" in (_reasons(bad)[1] or "")
        with pytest.raises(BrokenSample):
            probe(bad)
    missing = FRAGMENTS[: second + 100] + FRAGMENTS[second + 200 :]
    assert any(_reasons(missing))
