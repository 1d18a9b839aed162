"""Small videos whose frame numbers can be read back from the pixels, in any container, size, and color format.

A frame is a grid of 4 x 4 cells. The corners are white, red, blue, and black (top left, top right, bottom left, bottom
right), which shows rotation, mirroring, and swapped channels. The other twelve cells are the bits of the number, white
or black. The grid covers the frame, so a resized, turned back, or encoded frame still shows its number.
"""

from __future__ import annotations

import io
import struct
import tempfile
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.stream import Disposition
from torch import Tensor

CODECS = {"mp4": "libx264", "mov": "libx264", "mkv": "libx264", "webm": "libvpx-vp9", "avi": "mpeg4"}
"""Codec of each container, unless another is chosen."""
MUXERS = {"mkv": "matroska", "m4v": "mp4"}
_CORNERS = {(0, 0): (255, 255, 255), (0, 3): (255, 0, 0), (3, 0): (0, 0, 255), (3, 3): (0, 0, 0)}
_BITS = [(row, column) for row in range(4) for column in range(4) if (row, column) not in _CORNERS]
MOST_FRAMES = 1 << len(_BITS)
_FAST = {
    "libx264": {"preset": "veryfast", "crf": "20"},
    "libx265": {"preset": "ultrafast", "x265-params": "log-level=none:pools=1:frame-threads=1"},
    "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8", "crf": "20", "b": "0"},
    "mpeg4": {"qscale": "3"},
}
"""Options that make small files quickly."""


def numbered(number: int, height: int = 48, width: int = 64) -> np.ndarray:
    """(H, W, 3) uint8: the frame with a number, from 0 to `MOST_FRAMES` - 1."""
    cells = np.zeros((4, 4, 3), np.uint8)
    for place, color in _CORNERS.items():
        cells[place] = color
    for bit, place in enumerate(_BITS):
        cells[place] = 255 * (number >> bit & 1)
    return cells[np.arange(height) * 4 // height][:, np.arange(width) * 4 // width]


def read_number(image: Tensor | np.ndarray) -> int:
    """Return the number that a frame shows.

    Args:
        image: (3, H, W) uint8, RGB, upright.

    Raises:
        AssertionError: if the frame is turned, mirrored, or has other colors.
    """
    pixels = np.asarray(image)
    _, height, width = pixels.shape
    cells = np.zeros((4, 4, 3))
    for row in range(4):
        for column in range(4):
            rows = slice((4 * row + 1) * height // 16, max((4 * row + 3) * height // 16, 1))
            columns = slice((4 * column + 1) * width // 16, max((4 * column + 3) * width // 16, 1))
            cells[row, column] = pixels[:, rows, columns].mean(axis=(1, 2))
    for place, color in _CORNERS.items():
        assert np.abs(cells[place] - color).max() < 100, f"corner {place} is {cells[place].round()}, not {color}"
    return sum(int(cells[place].mean() > 127) << bit for bit, place in enumerate(_BITS))


def read_numbers(clip: Tensor | np.ndarray) -> list[int]:
    """Return the number of each frame of a clip (3, N, H, W)."""
    return [read_number(clip[:, index]) for index in range(clip.shape[1])]


def video(
    frames: int | Iterable[int | np.ndarray] = 20,
    container: str = "mp4",
    *,
    pts: Sequence[int] | None = None,
    size: tuple[int, int] = (48, 64),
    rotation: int = 0,
    audio: float = 0,
    codec: str | None = None,
    **settings: Any,
) -> bytes:
    """Return the bytes of a video.

    Args:
        frames: number of frames, or the number that each frame shows, or its pixels (H, W, 3) uint8.
        container: extension of the file, such as mp4; the codec follows (`CODECS`), unless `codec` is set.
        pts: times of the frames, in units of 1 / `time_base`; None: constant rate.
        size: height and width of the stored frames, before the rotation.
        rotation: 90, 180 or 270: degrees by which a player must turn the frames clockwise. The frames are stored
            turned the other way, so that an upright frame shows its number.
        audio: seconds of silence.
        settings: rate (30), time_base (15360; in avi, which has no times, the rate), pix_fmt (yuv420p), gop (12),
            bframes (2; of codecs that have them), options (of the encoder, a dict), muxer (those of the container).
    """
    shown = [one if isinstance(one, np.ndarray) else _stored(one, size, rotation) for one in _listed(frames)]
    muxer = MUXERS.get(container, container)
    with tempfile.NamedTemporaryFile() as file:  # FFmpeg reads a file again to move its index to the front
        with av.open(file.name, "w", format=muxer, options=settings.get("muxer", {})) as output:
            _write(output, shown, codec or CODECS[container], pts, audio, settings)
        data = Path(file.name).read_bytes()
    return turned(data, rotation) if rotation else data


def sound_only(seconds: float = 0.5) -> bytes:
    """Return an mp4 file without video."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as output:
        _add_silence(output, output.add_stream("aac", rate=48000), seconds)
    return buffer.getvalue()


def muxed(
    packets: Sequence[bytes], codec: str, size: tuple[int, int], *, container: str = "mkv", pix_fmt: str | None = None
) -> bytes:
    """Return a video of 10 frames per second whose packets are image files, such as JPEGs with codec mjpeg."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=MUXERS.get(container, container)) as output:
        stream = output.add_stream(codec, rate=10)
        stream.height, stream.width = size
        stream.pix_fmt = pix_fmt or ("yuvj420p" if codec == "mjpeg" else "rgb24")
        for index, data in enumerate(packets):
            output.mux(_image_packet(data, stream, index))
    return buffer.getvalue()


def remuxed(videos: Sequence[bytes]) -> bytes:
    """Return a Matroska file with the packets of several videos of one codec, one after another."""
    buffer, offset = io.BytesIO(), 0
    with av.open(buffer, "w", format="matroska") as output:
        joined = None
        for data in videos:
            with av.open(io.BytesIO(data)) as source:
                stream, end = source.streams.video[0], offset
                joined = joined or output.add_stream_from_template(stream)
                for packet in source.demux(stream):
                    if packet.dts is not None:
                        packet.pts, packet.dts = packet.pts + offset, packet.dts + offset
                        end = max(end, packet.pts + packet.duration)
                        packet.stream = joined
                        output.mux(packet)
                offset = end
    return buffer.getvalue()


def streams(
    videos: Sequence[tuple[Sequence[int], tuple[int, int]]], container: str, *, default: int = 0, cover: bytes = b""
) -> bytes:
    """Return a file with several video streams.

    Args:
        videos: the numbers that the frames of each show, equally many, and their size.
        default: stream that players show.
        cover: PNG file that is attached as the first stream, with sound.
    """
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as output:
        picture = _cover_stream(output) if cover else None
        sound = output.add_stream("aac", rate=48000) if cover else None
        made = []
        for place, (_, size) in enumerate(videos):
            made.append(_stream(output, "libx264", size, {"time_base": 30}))
            made[-1].disposition = Disposition.default if place == default else Disposition(0)
        if picture is not None:
            output.mux(_image_packet(cover, picture, 0))
        for index in range(len(videos[0][0]) if videos else 0):
            for stream, (numbers, size) in zip(made, videos, strict=True):
                frame = av.VideoFrame.from_ndarray(numbered(numbers[index], *size), format="rgb24")
                frame = frame.reformat(format="yuv420p")
                frame.pts, frame.time_base = index, Fraction(1, 30)
                output.mux(stream.encode(frame))
        for stream in made:
            output.mux(stream.encode())
        if sound is not None:
            _add_silence(output, sound, 0.1)
    return buffer.getvalue()


def turned(data: bytes, rotation: int = 0, matrix: tuple[int, int, int, int] | None = None) -> bytes:
    """Return an mp4 file with another display matrix of its video track.

    Args:
        rotation: degrees clockwise.
        matrix: (a, b, c, d) of x' = a x + c y and y' = b x + d y, in its place.
    """
    quarter = {0: (1, 0), 90: (0, 1), 180: (-1, 0), 270: (0, -1)}[rotation]
    a, b, c, d = ((one << 16) for one in matrix or (*quarter, -quarter[1], quarter[0]))
    header = data.index(b"tkhd") + 4
    place = header + (52 if data[header] else 40)  # version 1 has longer times
    return data[:place] + struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30) + data[place + 36 :]


def _image_packet(data: bytes, stream: Any, index: int) -> av.Packet:
    packet = av.Packet(data)
    packet.stream, packet.time_base = stream, Fraction(1, 10)
    packet.pts = packet.dts = index
    packet.is_keyframe = True
    return packet


def _cover_stream(output: Any) -> Any:
    stream = output.add_stream("png", rate=1)
    stream.height, stream.width, stream.pix_fmt = 48, 64, "rgb24"
    stream.disposition = Disposition.attached_pic
    return stream


def _listed(frames: int | Iterable[int | np.ndarray]) -> list[int | np.ndarray]:
    return list(range(frames)) if isinstance(frames, int) else list(frames)


def _stored(number: int, size: tuple[int, int], rotation: int) -> np.ndarray:
    upright = numbered(number, *(size if rotation % 180 == 0 else size[::-1]))
    return np.ascontiguousarray(np.rot90(upright, rotation // 90))  # counterclockwise


def _stream(output: Any, codec: str, size: tuple[int, int], settings: dict[str, Any]) -> Any:
    rate = settings.get("rate", 30)
    stream = output.add_stream(codec, rate=rate)
    stream.height, stream.width = size
    stream.pix_fmt = settings.get("pix_fmt", "yuv420p")
    timed = output.format.name != "avi"
    stream.codec_context.time_base = Fraction(1, settings.get("time_base", 15360 if timed else rate))
    stream.codec_context.gop_size = settings.get("gop", 12)
    stream.codec_context.thread_count = 1
    options = _FAST.get(codec, {}) | settings.get("options", {})
    if codec in ("libx264", "libx265", "mpeg4", "mpeg2video"):
        options |= {"bf": str(settings.get("bframes", 2))}
    if codec == "libx264":
        options |= {"sc_threshold": "0"}  # keyframes only where `gop` says
    stream.options = options
    return stream


def _write(
    output: Any, shown: list[np.ndarray], codec: str, pts: Sequence[int] | None, audio: float, settings: dict[str, Any]
) -> None:
    stream = _stream(output, codec, shown[0].shape[:2], settings)
    sound = output.add_stream("libopus" if codec.startswith("libvpx") else "aac", rate=48000) if audio else None
    base = 1 / Fraction(stream.codec_context.time_base.denominator)
    step = round(1 / (base * settings.get("rate", 30)))
    for index, pixels in enumerate(shown):
        frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format=stream.pix_fmt)
        frame.pts, frame.time_base = (index * step if pts is None else pts[index]), base
        output.mux(stream.encode(frame))
    output.mux(stream.encode())
    if sound is not None:
        _add_silence(output, sound, audio)


def _add_silence(output: Any, stream: Any, seconds: float) -> None:
    step = 960
    for start in range(0, int(48000 * seconds), step):
        frame = av.AudioFrame.from_ndarray(np.zeros((2, step), np.float32), format="fltp", layout="stereo")
        frame.sample_rate, frame.pts, frame.time_base = 48000, start, Fraction(1, 48000)
        output.mux(stream.encode(frame))
    output.mux(stream.encode())
