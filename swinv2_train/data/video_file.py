"""An open video file: its format, its stream of frames, and the reasons for which it cannot be read.

PyAV (`av`) contains FFmpeg and is imported only when a video is opened. FFmpeg also opens playlists and scripts, which
name other files and servers; the formats that are allowed here contain all their data.
"""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from swinv2_train.data.errors import BrokenSample
from swinv2_train.data.image_header import sniff
from swinv2_train.data.pixels import check_size

Source = bytes | Path
"""Bytes of a video file, or its path: a long video is then read as it is decoded."""
_FORMATS = {
    "mov,mp4,m4a,3gp,3g2,mj2": "mp4",
    "matroska,webm": "matroska",
    "avi": "avi",
    "mpegts": "mpegts",
    "mpeg": "mpeg",
    "flv": "flv",
    "asf": "asf",
    "ogg": "ogg",
    "ivf": "ivf",
    "mxf": "mxf",
    "nut": "nut",
}
"""FFmpeg's names of the formats that are read -> short names."""
_HEADER = 4096
_LONGEST = 200
_MICROSECONDS = 1_000_000


@contextlib.contextmanager
def opened(source: Source, max_pixels: int) -> Iterator[tuple[Any, Any]]:
    """Open a video and set its decoder up: one thread, because loaders decode in several processes.

    Args:
        max_pixels: largest frame that is decoded.

    Yields:
        (container, video stream) of PyAV.

    Raises:
        BrokenSample: if it is not a video that can be decoded.
    """
    import av

    with contextlib.ExitStack() as stack:
        file = stack.enter_context(source.open("rb") if isinstance(source, Path) else io.BytesIO(source))
        size = file.seek(0, io.SEEK_END)
        file.seek(0)
        header = file.read(_HEADER)
        _check_kind(header)
        cut = cut_off(file, size)
        if cut:
            raise BrokenSample(cut)
        file.seek(0)
        allowed = {"format_whitelist": ",".join(_FORMATS), "protocol_whitelist": "file"}
        try:
            container = stack.enter_context(av.open(file, options=allowed))
        except (av.error.FFmpegError, ValueError, OSError):
            raise BrokenSample(_unopened(header)) from None
        stream = _video_stream(container)
        context = stream.codec_context
        if context is None:
            raise BrokenSample("its codec is unknown to FFmpeg")
        check_size(context.height, context.width, max_pixels=max_pixels)
        context.thread_type, context.thread_count = "NONE", 1
        context.options = {"max_pixels": str(max_pixels)}
        yield container, stream


def format_name(container: Any) -> str:
    """Return the short name of a container's format."""
    return _FORMATS.get(container.format.name, container.format.name)


def declared_seconds(container: Any, stream: Any) -> float | None:
    """Return the end of a stream as a Matroska file declares it; None for others, which list all their packets.

    FFmpeg skips damaged parts of such a file, so fewer frames are the only sign of them.
    """
    if format_name(container) != "matroska":
        return None
    found = re.fullmatch(r"(\d+):(\d\d):(\d\d(?:[.]\d+)?)", stream.metadata.get("DURATION", ""))
    if found is not None:
        return int(found[1]) * 3600 + int(found[2]) * 60 + float(found[3])
    alone = len(container.streams) == 1 and container.duration is not None
    return container.duration / _MICROSECONDS if alone else None


@contextlib.contextmanager
def reading() -> Iterator[None]:
    """Turn the errors of FFmpeg inside this block into a BrokenSample."""
    import av

    try:
        yield
    except MemoryError:
        raise BrokenSample("not enough memory to decode it") from None
    except (av.error.FFmpegError, ValueError, OSError) as error:
        raise BrokenSample(f"it is damaged or of a kind that FFmpeg cannot decode ({ffmpeg_reason(error)})") from None


def ffmpeg_reason(error: Exception) -> str:
    """Return what FFmpeg says, in a few words."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return f"FFmpeg: {text:.{_LONGEST}}"


def cut_off(file: io.BufferedIOBase | io.BytesIO, size: int) -> str | None:
    """Return a reason if a file is shorter than its own headers declare; None otherwise.

    FFmpeg reads such a file up to where it ends, so a cut video would pass as a shorter one.

    Args:
        file: an open file.
        size: its length in bytes.
    """
    file.seek(0)
    header = file.read(_HEADER)
    declared = None
    if header[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"):
        declared = _last_box_end(file, size)
    elif header[:4] == b"RIFF":
        declared = 8 + int.from_bytes(header[4:8], "little")
    elif header[:4] == b"\x1a\x45\xdf\xa3":
        declared = _segment_end(header)
    if declared is None or declared <= size:
        return None
    return f"it is cut off: it has {size:,} of {declared:,} bytes"


def _last_box_end(file: Any, size: int) -> int:
    """Return the end of the last box of an mp4 file, as its header declares it."""
    place = 0
    while place + 8 <= size:
        file.seek(place)
        head = file.read(16)
        length, kind = int.from_bytes(head[:4], "big"), head[4:8]
        if length == 1:
            length = int.from_bytes(head[8:16], "big")
        if length == 0 or not (kind.isalnum() or b" " in kind):  # to the end of the file, or not a box
            return size
        if length < 8:
            return size
        place += length
    return place


def _segment_end(header: bytes) -> int | None:
    """Return the end of the segment of a Matroska file; None if it declares none, as in a recorded stream."""
    width, start = _variable_integer(header, 4)
    segment = 4 + width + start
    if header[segment : segment + 4] != b"\x18\x53\x80\x67":
        return None
    width, length = _variable_integer(header, segment + 4)
    unknown = length == (1 << 7 * width) - 1
    return None if unknown or not width else segment + 4 + width + length


def _variable_integer(data: bytes, place: int) -> tuple[int, int]:
    """Return (bytes, value) of an integer of EBML; (0, 0) for bytes that are none."""
    first = data[place] if place < len(data) else 0
    width = 9 - first.bit_length() if first else 0
    if not width or place + width > len(data):
        return 0, 0
    return width, int.from_bytes(data[place : place + width], "big") & ((1 << 7 * width) - 1)


def _unopened(header: bytes) -> str:
    """Return why FFmpeg does not open a file, whose own message is the same for most reasons."""
    if header[4:8] == b"ftyp":
        return "its index (moov) is missing or damaged"
    if all(byte in b"\t\n\r" or 32 <= byte < 127 for byte in header):
        return "it is text, not a video"
    return "it is not a video of a known format, or its beginning is missing or damaged"


def _check_kind(header: bytes) -> None:
    """Raise BrokenSample for bytes that are surely not a video."""
    if not header:
        raise BrokenSample("it is empty")
    kind = sniff(header)
    if kind is not None:
        raise BrokenSample(f"it is an image ({kind}), not a video")
    if not any(header):
        raise BrokenSample("it begins with zeros, not with the header of a video")


def _video_stream(container: Any) -> Any:
    """Return the video stream that players show: the default one of several, and never cover art."""
    from av.stream import Disposition

    found = [each for each in container.streams.video if not each.disposition & Disposition.attached_pic]
    if found:
        return next((each for each in found if each.disposition & Disposition.default), found[0])
    if container.streams.video:
        raise BrokenSample("it has no video stream, only a cover picture")
    kinds = sorted({each.type for each in container.streams})
    raise BrokenSample(f"it has no video stream{', only ' + ' and '.join(kinds) if kinds else ''}")
