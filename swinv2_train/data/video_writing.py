"""Video files that the packer makes: encoded again at a smaller size, or frames of a folder joined without encoding.

Their bytes depend only on the input and the version of FFmpeg: one thread encodes, without the instructions for which
x264 reads uninitialized memory.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from swinv2_train.data.decode import read_pixels
from swinv2_train.data.errors import BrokenSample
from swinv2_train.data.image_header import header_size, orientation, sniff
from swinv2_train.data.pixels import check_size
from swinv2_train.data.pyav import load_av
from swinv2_train.data.video import MAX_PIXELS, iterate_frames
from swinv2_train.data.video_facts import VideoFacts
from swinv2_train.data.video_file import Source, reading
from swinv2_train.data.video_files import frames_of

REPEATABLE = "asm=SSE2" if platform.machine().lower() in ("x86_64", "amd64") else "asm=0"
"""Setting of x264 (`x264-params`) with which the same frames give the same bytes, those of its C code (0).

Its code for AVX and AVX2 decides by uninitialized memory (seen with x264 165), so the bytes would vary from run to run.
With SSE2, encoding 320 pixels takes 1.1 times the CPU time, with the C code 4.6 times.
"""
_ENCODER = {"preset": "medium", "crf": "20", "x264-params": REPEATABLE}
"""Nearly transparent at the sizes that clips are trained at."""
_BT601, _LIMITED = 6, 1
"""Color matrix (SMPTE 170M) and range of the encoded frames, by FFmpeg's numbers."""
_CODECS = {"jpeg": ("mjpeg", "yuvj420p"), "png": ("png", "rgb24")}
"""Codec of the frames of a folder, by the format of their bytes, and a pixel format that its stream accepts."""
_FINEST = 100_000
"""Highest denominator of the time base of frames of a folder."""


def encode(
    source: Source,
    facts: VideoFacts,
    target: Path,
    *,
    short_side: int,
    keyframes: int,
    max_pixels: int = MAX_PIXELS,
) -> None:
    """Encode a video as H.264 in MP4: upright, with the times of its frames from 0, without sound, its index first.

    Args:
        facts: as `probe` returns them for this source.
        target: the new file.
        short_side: shorter side in pixels, an even number; smaller videos keep their size, rounded down to even sides.
        keyframes: most frames from one keyframe to the next.

    Raises:
        BrokenSample: if a frame cannot be decoded.
    """
    av = load_av()

    times, base = _times(facts)
    height, width = _encoded_size(facts, short_side)
    with _output(target, "mp4", {"movflags": "+faststart"}) as output:
        stream = output.add_stream("libx264", rate=_rate(facts))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.options = _ENCODER
        context = stream.codec_context
        context.thread_count, context.gop_size, context.time_base = 1, keyframes, base
        context.colorspace, context.color_range = _BT601, _LIMITED
        for number, image in iterate_frames(source, facts, range(facts.frames), max_pixels):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image.movedim(0, 2).numpy()), format="rgb24")
            frame = frame.reformat(
                width,
                height,
                "yuv420p",
                dst_colorspace="ITU601",
                interpolation="BICUBIC",
                dst_color_range="MPEG",
            )
            frame.pts, frame.time_base = int(times[number]), base
            output.mux(stream.encode(frame))
        for packet in stream.encode():
            if packet.pts == times[-1]:
                packet.duration = max(1, round(facts.last_seconds / base))  # else the mean, also for a variable rate
            output.mux(packet)


def _times(facts: VideoFacts) -> tuple[np.ndarray, Fraction]:
    """Return the times of the frames from 0, and their unit; at a constant rate if two frames have the same time."""
    times = facts.pts.numbers - facts.pts.numbers[0]
    if len(times) > 1 and np.diff(times).min() <= 0:
        return np.arange(facts.frames), 1 / _rate(facts)
    return times, facts.time_base


def _rate(facts: VideoFacts) -> Fraction:
    """Return the mean number of frames per second, within what containers can state."""
    rate = Fraction(facts.fps or 25.0).limit_denominator(1001)
    return min(max(rate, Fraction(1, 1001)), Fraction(1000))


def _encoded_size(facts: VideoFacts, short_side: int) -> tuple[int, int]:
    """Return the height and width of the encoded frames, which are even because two pixels share their color."""
    scale = min(1.0, short_side / min(facts.size))
    height, width = (max(2, 2 * int(side * scale / 2 + 1e-6)) for side in facts.size)
    return height, width


def join_frames(folder: Path, target: Path, fps: float, max_pixels: int = MAX_PIXELS) -> None:
    """Write the frames of a folder, JPEGs or PNGs, into one video file (QuickTime) without encoding them again.

    Args:
        fps: frames per second.
        target: the new file.

    Raises:
        BrokenSample: if a frame is not of the format and size of the first one, or is turned by its EXIF tag.
        OSError: if a file cannot be read.
    """
    av = load_av()

    paths = frames_of(folder)
    rate = Fraction(fps).limit_denominator(_FINEST)
    kind, size = first = _kind_and_size(paths[0], paths[0].read_bytes(), max_pixels)
    codec, pixel_format = _CODECS[kind]
    with _output(target, "mov", {}) as output:
        stream = output.add_stream(codec, rate=rate)
        stream.height, stream.width, stream.pix_fmt = *size, pixel_format
        for number, path in enumerate(paths):
            data = path.read_bytes()
            found = _kind_and_size(path, data, max_pixels) if number else first
            if found != first:
                both = f"{paths[0].name} is {_shown(*first)}, {path.name} is {_shown(*found)}"
                raise BrokenSample(f"its frames differ in format or size: {both}")
            packet = av.Packet(data)
            packet.stream, packet.time_base = stream, 1 / rate
            packet.pts = packet.dts = number
            packet.duration, packet.is_keyframe = 1, True
            output.mux(packet)


def _kind_and_size(path: Path, data: bytes, max_pixels: int) -> tuple[str, tuple[int, int]]:
    """Decode a frame, and return its format, height, and width. Raises BrokenSample if it cannot be one."""
    kind = sniff(data)
    if kind not in _CODECS:
        shown = "not an image" if kind is None else kind
        raise BrokenSample(f"its frame {path.name} is {shown}, and frames are packed if they are JPEG or PNG")
    size = header_size(data, kind)
    if size is None:
        raise BrokenSample(f"its frame {path.name} is damaged: its header has no size")
    check_size(*size, max_pixels=max_pixels)
    if orientation(data, kind) != 1:
        raise BrokenSample(f"its frame {path.name} is turned by its EXIF tag: save the frames upright")
    try:
        read_pixels(data, max_pixels)  # FFmpeg shows the rest of a frame that is cut off as gray
    except BrokenSample as error:
        raise BrokenSample(f"its frame {path.name}: {error.reason}") from None
    return kind, size


def _shown(kind: str, size: tuple[int, int]) -> str:
    return f"{kind}, {size[1]} x {size[0]}"


@contextmanager
def _output(target: Path, kind: str, options: dict[str, str]) -> Iterator[Any]:
    """Open a new video file; what FFmpeg does inside this block raises BrokenSample."""
    av = load_av()

    place = f"file:{target.resolve()}"  # a colon in a plain path would name a protocol
    with reading(), av.open(place, "w", format=kind, options={"fflags": "+bitexact", **options}) as output:
        yield output
