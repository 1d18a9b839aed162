"""An open video file: its format, its stream of frames, and the reasons for which it cannot be read.

FFmpeg also opens playlists and scripts, which name other files and servers; the formats that are allowed here contain
all their data.
"""

from __future__ import annotations

import codecs
import contextlib
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from swinv2_train.data.errors import BrokenSample
from swinv2_train.data.image_header import sniff
from swinv2_train.data.pixels import check_size
from swinv2_train.data.pyav import load_av
from swinv2_train.data.video_structure import cut_off, damage

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
    av = load_av()

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


def check_structure(source: Source) -> None:
    """Raise BrokenSample if frames are lost because the structure of a file is damaged, see `damage`."""
    with source.open("rb") if isinstance(source, Path) else io.BytesIO(source) as file:
        size = file.seek(0, io.SEEK_END)
        reason = damage(file, size)
    if reason:
        raise BrokenSample(reason)


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
    av = load_av()

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


def _unopened(header: bytes) -> str:
    """Return why FFmpeg does not open a file, whose own message is the same for most reasons."""
    if header[4:8] == b"ftyp":
        return "its index (moov) is missing or damaged"
    if _is_text(header):
        return "it is text, not a video"
    return "it is not a video of a known format, or its beginning is missing or damaged"


def _is_text(header: bytes) -> bool:
    """Return whether bytes are the beginning of a text in UTF-8."""
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(header)  # a letter may be cut
    except UnicodeDecodeError:
        return False
    return all(one in "\t\n\r\ufeff" or one.isprintable() for one in text)


def _check_kind(header: bytes) -> None:
    """Raise BrokenSample for bytes that are surely not a video."""
    if not header:
        raise BrokenSample("it is empty")
    kind = sniff(header)
    if kind == "npz":
        raise BrokenSample("it is a zip archive, not a video")
    if kind is not None:
        raise BrokenSample(f"it is an image ({kind}), not a video")
    if not any(header):
        raise BrokenSample("it begins with zeros, not with the header of a video")


def _video_stream(container: Any) -> Any:
    """Return the video stream that players show: the default one of several, and never cover art."""
    kinds = load_av().stream.Disposition
    found = [each for each in container.streams.video if not each.disposition & kinds.attached_pic]
    if found:
        return next((each for each in found if each.disposition & kinds.default), found[0])
    if container.streams.video:
        raise BrokenSample("it has no video stream, only a cover picture")
    others = sorted({each.type for each in container.streams})
    raise BrokenSample(f"it has no video stream{', only ' + ' and '.join(others) if others else ''}")
