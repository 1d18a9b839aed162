"""Structure of MP4 and Matroska files: damage for which FFmpeg shows fewer frames instead of an error.

FFmpeg reads a cut file up to where it ends, and skips a part whose structure is damaged, so the rest would pass as a
shorter video. Damage inside of the frames is left to their decoder.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

_HEADER = 4096
_BOXES = frozenset((
    b"ftyp", b"styp", b"moov", b"moof", b"mdat", b"mfra", b"sidx", b"ssix", b"free", b"skip", b"wide", b"uuid", b"meta",
    b"udta", b"pdin", b"pnot", b"prft", b"emsg", b"PICT",
))  # fmt: skip
"""Boxes at the top of an mp4 file. Others after the index and the frames are bytes that a program added."""
_FIRST_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")
_EBML, _SEGMENT, _CLUSTER, _TRACKS = 0x1A45DFA3, 0x18538067, 0x1F43B675, 0x1654AE6B
_IN_SEGMENT = frozenset((
    0x114D9B74, 0x1549A966, _TRACKS, _CLUSTER, 0x1C53BB6B, 0x1254C367, 0x1941A469, 0x1043A770, 0xEC, 0xBF,
))  # fmt: skip
_BLOCK_GROUP, _BLOCKS = 0xA0, (0xA1, 0xA3)
_IN_CLUSTER = frozenset((0xE7, 0x5854, 0xA7, 0xAB, _BLOCK_GROUP, 0xA3, 0xAF, 0xEC, 0xBF))
_TRACK, _TRACK_NUMBER = 0xAE, 0xD7
_Span = tuple[Any, int, int]
"""Kind of a box or element, and the places of its content's first byte and of the byte after it."""


class _DamagedError(Exception):
    """`args[0]` is the place of the damage."""


def cut_off(file: io.BufferedIOBase | io.BytesIO, size: int) -> str | None:
    """Return a reason if a file is shorter than its own headers declare; None otherwise. Reads a few headers.

    Args:
        file: an open file.
        size: its length in bytes.
    """
    file.seek(0)
    header = file.read(_HEADER)
    declared = None
    if header[4:8] in _FIRST_BOXES:
        declared = max((end for _, _, end in _boxes(file, 0, size)), default=size)
    elif header[:4] == b"RIFF":
        declared = 8 + int.from_bytes(header[4:8], "little")
    elif header[:4] == _EBML.to_bytes(4, "big"):
        declared = _segment_end(file, size)
    if declared is None or declared <= size:
        return None
    return f"it is cut off: it has {size:,} of {declared:,} bytes"


def damage(file: io.BufferedIOBase | io.BytesIO, size: int) -> str | None:
    """Return a reason if frames are lost because the structure of a file is damaged; None otherwise.

    Examined are the clusters and blocks of Matroska and WebM, and the fragments of MP4, of which each header is read.
    An mp4 file without fragments lists all of its frames, and other formats cannot be examined.
    """
    file.seek(0)
    header = file.read(8)
    try:
        if header[4:8] in _FIRST_BOXES:
            return _check_boxes(file, size)
        if header[:4] == _EBML.to_bytes(4, "big"):
            _check_segment(file, size)
    except _DamagedError as error:
        return f"it is damaged: its structure breaks at byte {error.args[0]:,} of {size:,}"
    return None


def _boxes(file: Any, place: int, end: int) -> Iterator[_Span]:
    """Yield the boxes at the top of an mp4 file; the last one may end after the file.

    Bytes that are not a known box end the file if its index and its frames came before.
    """
    found: set[bytes] = set()
    while place + 8 <= end:
        file.seek(place)
        head = file.read(16)
        length, kind, start = int.from_bytes(head[:4], "big"), head[4:8], place + 8
        if length == 1:
            length, start = int.from_bytes(head[8:16], "big"), place + 16
        known = kind in _BOXES
        if not known and ((b"moov" in found and b"mdat" in found) or not (kind.isalnum() or b" " in kind)):
            return
        if length == 0 and known:  # to the end of the file
            yield kind, start, end
            return
        if length < start - place:
            return
        yield kind, start, place + length
        found.add(kind)
        place += length


def _check_boxes(file: Any, size: int) -> str | None:
    tracks: set[bytes] = set()
    last, fragments, indexes = 0, 0, 0
    for kind, start, end in _boxes(file, 0, size):
        last = end
        if kind == b"moov":
            indexes += 1
            extended = [one for one in _inside(file, start, end) if one[0] == b"mvex"]
            defaults = (one for box in extended for one in _inside(file, box[1], box[2]) if one[0] == b"trex")
            tracks.update(_bytes(file, place + 4, 4) for _, place, _ in defaults)
        elif kind == b"moof":
            fragments += 1
            _check_fragment(file, start, end, tracks)
    if fragments and _find(file, b"moof", last) is not None:
        raise _DamagedError(last)
    return "it is several videos, one after another: FFmpeg shows the first one" if indexes > 1 else None


def _check_fragment(file: Any, start: int, end: int, tracks: set[bytes]) -> None:
    for kind, place, stop in _inside(file, start, end):
        for inner, content, _ in _inside(file, place, stop) if kind == b"traf" else ():
            if inner == b"tfhd" and _bytes(file, content + 4, 4) not in tracks:
                raise _DamagedError(content)


def _inside(file: Any, start: int, end: int) -> list[_Span]:
    """Return the boxes in a box. Raises _DamagedError if they do not fill it."""
    found = []
    while start < end:
        length, kind = int.from_bytes(_bytes(file, start, 4), "big"), _bytes(file, start + 4, 4)
        if not 8 <= length <= end - start:
            raise _DamagedError(start)
        found.append((kind, start + 8, start + length))
        start += length
    return found


def _bytes(file: Any, place: int, count: int) -> bytes:
    file.seek(place)
    return file.read(count)


def _find(file: Any, what: bytes, place: int) -> int | None:
    """Return the first place of some bytes at or after another place; None if they are not there."""
    before = b""
    file.seek(place)
    while part := file.read(1 << 20):
        found = (before + part).find(what)
        if found >= 0:
            return place - len(before) + found
        before, place = part[1 - len(what) :], place + len(part)
    return None


def _check_segment(file: Any, size: int) -> None:
    """Check that the elements of a Matroska file follow each other without gaps, down to its blocks."""
    segment = _segment(file, size)
    if segment is None:
        return
    place, end = segment
    end, tracks = size if end is None else min(end, size), set[int]()
    while place < end:
        kind, start, stop = _element(file, place)
        if kind not in _IN_SEGMENT or (stop is not None and stop > end):
            raise _DamagedError(place)
        if kind == _TRACKS and stop is not None:
            tracks |= set(_track_numbers(file, start, stop))
        place = _cluster_end(file, start, end if stop is None else stop, tracks, stop) if kind == _CLUSTER else stop
        if place is None:
            raise _DamagedError(start)


def _cluster_end(file: Any, place: int, end: int, tracks: set[int], declared: int | None) -> int:
    """Return the end of a cluster, after checking its blocks; it may not declare its length."""
    while place < end:
        kind, start, stop = _element(file, place)
        if declared is None and kind in _IN_SEGMENT and kind not in _IN_CLUSTER:
            return place
        if kind not in _IN_CLUSTER or stop is None or stop > end:
            raise _DamagedError(place)
        blocks = [(kind, start, stop)] if kind != _BLOCK_GROUP else _elements(file, start, stop)
        for inner, content, _ in blocks:
            if inner in _BLOCKS and _number(_bytes(file, content, 8))[1] not in tracks:
                raise _DamagedError(content)
        place = stop
    return place


def _track_numbers(file: Any, start: int, end: int) -> Iterator[int]:
    for kind, first, stop in _elements(file, start, end):
        for inner, content, last in _elements(file, first, stop) if kind == _TRACK else ():
            if inner == _TRACK_NUMBER:
                yield int.from_bytes(_bytes(file, content, last - content), "big")


def _elements(file: Any, place: int, end: int) -> list[_Span]:
    """Return the elements in an element. Raises _DamagedError if they do not fill it."""
    found = []
    while place < end:
        kind, start, stop = _element(file, place)
        if stop is None or stop > end:
            raise _DamagedError(place)
        found.append((kind, start, stop))
        place = stop
    return found


def _element(file: Any, place: int) -> tuple[int, int, int | None]:
    """Return the kind of an element of EBML, the place of its content, and its end; None if it declares none."""
    head = _bytes(file, place, 12)
    width = 9 - head[0].bit_length() if head and head[0] else 0
    length, value = _number(head[width:]) if 0 < width <= 4 else (0, 0)
    if not length:
        raise _DamagedError(place)
    start = place + width + length
    return int.from_bytes(head[:width], "big"), start, None if value == (1 << 7 * length) - 1 else start + value


def _number(data: bytes) -> tuple[int, int]:
    """Return (bytes, value) of an integer of EBML; (0, 0) for bytes that are none."""
    width = 9 - data[0].bit_length() if data and data[0] else 0
    if not width or width > len(data):
        return 0, 0
    return width, int.from_bytes(data[:width], "big") & ((1 << 7 * width) - 1)


def _segment(file: Any, size: int) -> tuple[int, int | None] | None:
    """Return the place of the first element in a Matroska file's segment, and the end; None if it has no segment."""
    try:
        _, _, end = _element(file, 0)
        if end is None or end > size:
            return None
        kind, start, stop = _element(file, end)
    except _DamagedError:
        return None
    return (start, stop) if kind == _SEGMENT else None


def _segment_end(file: Any, size: int) -> int | None:
    """Return the end of the segment of a Matroska file; None if it declares none, as in a recorded stream."""
    found = _segment(file, size)
    return None if found is None else found[1]
