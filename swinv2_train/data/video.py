"""Frame-exact decoding of videos: any frames by their numbers, from the keyframe before them.

A frame's number is its place in the order in which frames are shown. `probe` lists the presentation times of all frames
without decoding them, so numbers are exact for variable frame rates, offsets, and files without an index.

FFmpeg's swscale converts frames to RGB of 8 bits, by the color matrix and range that the file declares; without them,
by BT.601 and the limited range, as the command ffmpeg does. Interlaced frames keep both of their fields, transparent
ones are put on white, and frames that differ in size from the first one are scaled to its size.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from swinv2_train.data.background import WHITE, flatten
from swinv2_train.data.errors import BrokenSample
from swinv2_train.data.integer_runs import IntegerRuns
from swinv2_train.data.pixels import check_size, upright
from swinv2_train.data.pyav import load_av
from swinv2_train.data.video_facts import VideoFacts
from swinv2_train.data.video_file import Source, check_structure, declared_seconds, format_name, opened, reading

MAX_PIXELS = 200_000_000
Change = Callable[[Tensor], Tensor]
_REORDERED = 32
"""Frames by which presentation order and file order can differ; no codec keeps more than 16 frames back."""
_UNTIMED_FORMATS = ("avi",)
"""Formats that store the order of decoding alone, so times of reordered frames are guesses."""
_VP8_SHOWN = 0x10  # a flag in the first byte of a packet; other frames only serve as references
_PREDICTED = (2, 3)  # av.video.frame.PictureType: P, B
_LEAST_PART = 0.5  # more than that, because other programs cut videos without correcting the duration
_UNKNOWN_RATE = 25
_ORIENTATIONS = {
    (1, 0, 0, 1): 1,
    (-1, 0, 0, 1): 2,
    (-1, 0, 0, -1): 3,
    (1, 0, 0, -1): 4,
    (0, 1, 1, 0): 5,
    (0, 1, -1, 0): 6,
    (0, -1, -1, 0): 7,
    (0, -1, 1, 0): 8,
}
"""Display matrix (a, b, c, d) of x' = a x + c y and y' = b x + d y -> EXIF orientation."""


@dataclass(frozen=True)
class Video:
    """A video whose frames are decoded by their numbers."""

    source: Source
    facts: VideoFacts
    max_pixels: int = MAX_PIXELS
    """Largest frame that is decoded."""

    @classmethod
    def of(cls, source: Source, max_pixels: int = MAX_PIXELS) -> Video:
        """Return a video with its facts from `probe`. Raises BrokenSample, also if the file cannot be read."""
        try:
            return cls(source, probe(source, max_pixels), max_pixels)
        except OSError as error:
            raise BrokenSample(f"it cannot be read ({error.strerror})") from error

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the upright frame."""
        return self.facts.size

    def frames(self, numbers: Sequence[int], change: Change | None = None) -> Tensor:
        """Return (3, N, H, W) uint8, see `read_frames`."""
        return read_frames(self.source, self.facts, numbers, self.max_pixels, change)

    def each(self, numbers: Iterable[int]) -> Iterator[tuple[int, Tensor]]:
        """Yield (number, (3, H, W) uint8), see `iterate_frames`."""
        return iterate_frames(self.source, self.facts, numbers, self.max_pixels)


def probe(source: Source, max_pixels: int = MAX_PIXELS) -> VideoFacts:
    """Return the facts of a video, from reading its packets; only the first frame is decoded.

    A file without usable times, such as H.264 with reordered frames in AVI, is decoded entirely, and its frames are
    counted.

    Raises:
        BrokenSample: if it is not a video, has no frames, or its first frame cannot be decoded.
    """
    with opened(source, max_pixels) as (container, stream), reading():
        packets, first = _Packets(stream.codec_context.codec.canonical_name), None  # av1, whatever decodes it
        for packet in container.demux(stream):
            packets.add(packet)
            if packet.has_sidedata("encryption_info"):
                raise BrokenSample("it is encrypted")
            first = first or next(iter(packet.decode()), None)
        if first is None:
            raise BrokenSample("none of its frames can be decoded" if packets.times else "it has no frames")
        check_size(first.height, first.width, max_pixels=max_pixels)
        container_name, base = format_name(container), stream.time_base
        rates = [rate for rate in (stream.average_rate, stream.guessed_rate, stream.base_rate) if rate]
        guessed = container_name in _UNTIMED_FORMATS and stream.codec_context.has_b_frames and packets.ascending
        declared = declared_seconds(container, stream)
    check_structure(source)
    packets.check_end(base, declared)
    steps = [1 / (rate * base) for rate in rates]
    counted = guessed or not packets.usable(first.pts)
    if counted:
        pts, keyframes = _counted(source, packets, steps, base, max_pixels), [0]
    else:
        times, keyframes = packets.from_time(first.pts)
        pts = IntegerRuns.of(times, steps)
    orientation = _orientation(first)
    height, width = (first.width, first.height) if orientation >= 5 else (first.height, first.width)
    return VideoFacts(
        pts=pts,
        keyframes=IntegerRuns.of(keyframes),
        time_base=base,
        width=width,
        height=height,
        seconds=_seconds(pts.numbers, base, packets.last_duration),
        codec=packets.codec,
        container=container_name,
        orientation=orientation,
        counted=counted,
    )


def read_frames(
    source: Source,
    facts: VideoFacts,
    numbers: Sequence[int],
    max_pixels: int = MAX_PIXELS,
    change: Change | None = None,
) -> Tensor:
    """Return frames by their numbers, in this order; a number may occur several times.

    Args:
        facts: as `probe` returns them for this source.
        max_pixels: largest frame that is decoded.
        change: applied to each frame (3, H, W) when it is decoded, such as a crop and resize: the clip is then never
            in memory at its full size. All results must have the same shape and type.

    Returns:
        (3, N, H, W) uint8: RGB, upright; with `change`, its results along axis 1.

    Raises:
        BrokenSample: if a frame cannot be decoded.
        IndexError: if the video does not have such a frame.
    """
    places: dict[int, list[int]] = {}
    for place, number in enumerate(numbers):
        places.setdefault(number, []).append(place)
    clip = torch.empty(0)
    for number, image in iterate_frames(source, facts, sorted(places), max_pixels):
        one = image if change is None else change(image)
        if not clip.numel():
            clip = one.new_empty((one.shape[0], len(numbers), *one.shape[1:]))
        clip[:, places[number]] = one[:, None]
    return clip


def iterate_frames(
    source: Source, facts: VideoFacts, numbers: Iterable[int], max_pixels: int = MAX_PIXELS
) -> Iterator[tuple[int, Tensor]]:
    """Yield frames one by one, in the memory of one frame.

    Args:
        numbers: ascending, each once.

    Yields:
        (number, (3, H, W) uint8: RGB, upright).

    Raises:
        BrokenSample: if a frame cannot be decoded.
        IndexError: if the video does not have such a frame.
    """
    with _Frames(source, facts, max_pixels) as frames:
        for number in numbers:
            if not 0 <= number < facts.frames:
                raise IndexError(f"frame {number} of a video with {facts.frames} frames")
            yield number, frames.image(frames.find(number))


def check_frames(source: Source, facts: VideoFacts, max_pixels: int = MAX_PIXELS) -> None:
    """Decode an entire video, without converting it to RGB. Raises BrokenSample if a frame cannot be decoded."""
    with _Frames(source, facts, max_pixels) as frames:
        for number in range(facts.frames):
            frames.find(number)


class _Packets:
    """Times of a stream's packets, one for each frame that is shown, in the order of the file."""

    def __init__(self, codec: str) -> None:
        self.codec = codec
        self.times: list[int | None] = []
        self.keys: list[int | None] = []
        self.last_duration = 0
        """Duration of the frame that is shown last, in units of the time base; 0 if the file does not declare it."""
        self._last: int | None = None

    def add(self, packet: Any) -> None:
        # Discarded packets are outside of the part that an edit list selects: they are decoded and not shown.
        if not packet.size or packet.is_discard or (self.codec == "vp8" and not memoryview(packet)[0] & _VP8_SHOWN):
            return
        self.times.append(packet.pts)
        if packet.is_keyframe:
            self.keys.append(packet.pts)
        if packet.pts is not None and (self._last is None or packet.pts >= self._last):
            self._last, self.last_duration = packet.pts, packet.duration or 0

    def check_end(self, base: Fraction, declared: float | None) -> None:
        """Raise BrokenSample if less than half of the seconds that the file declares are there."""
        end = float((self._last or 0) * base)
        if declared is not None and end + float(self.last_duration * base) < _LEAST_PART * declared:
            raise BrokenSample(f"it is damaged: it declares {declared:.1f} s, but ends after {end:.1f} s")

    @property
    def ascending(self) -> bool:
        """True if every packet has a time, and they are in order."""
        return None not in self.times and self.times == sorted(self.times)

    def usable(self, start: int | None) -> bool:
        """Return whether the frames are shown in the order of their times, of which `start` is the first frame's.

        Times that begin again, as in joined recordings, are not usable.
        """
        if None in self.times or start not in self.times or any(a >= b for a, b in pairwise(self.keys)):
            return False
        ranks = np.argsort(np.argsort(self.times, kind="stable"), kind="stable")
        return bool((np.abs(ranks - np.arange(len(ranks))) <= _REORDERED).all())

    def from_time(self, start: int) -> tuple[np.ndarray, list[int]]:
        """Return the times of the frames and the numbers of keyframes.

        Args:
            start: time of the first frame that can be decoded; those before refer to frames that the file lacks.
        """
        times = np.sort(np.asarray([time for time in self.times if time >= start], np.int64))
        frames = Counter(times.tolist())
        # Of several frames with one time, as of high rates in Matroska, the keyframe's number is unknown.
        keys = np.searchsorted(times, [time for time in self.keys if frames[time] == 1])
        return times, sorted({0, *keys.tolist()})


def _counted(source: Source, packets: _Packets, steps: list[Fraction], base: Fraction, max_pixels: int) -> IntegerRuns:
    """Return the times of frames that are counted; without those of packets, at a constant rate."""
    with opened(source, max_pixels) as (container, stream), reading():
        count = sum(1 for _ in container.decode(stream))
    if packets.ascending and len(packets.times) == count:
        return IntegerRuns.of(packets.times, steps)
    step = steps[0] if steps else 1 / (_UNKNOWN_RATE * base)
    return IntegerRuns(((count, 0, step.numerator, step.denominator),))


def _seconds(times: np.ndarray, base: Fraction, last_duration: int) -> float:
    span = int(times[-1] - times[0])
    last = last_duration or (span / (len(times) - 1) if len(times) > 1 else 0)
    return round(float((span + last) * base), 6)


def _orientation(frame: Any) -> int:
    """Return the EXIF orientation of a frame; turns by other angles are rounded to quarters."""
    found = frame.side_data.get("DISPLAYMATRIX")
    if found is None:
        return 1
    a, b, _, c, d, *_ = struct.unpack("=9i", bytes(found))
    largest = max(map(abs, (a, b, c, d))) or 1
    return _ORIENTATIONS.get(tuple(round(value / largest) for value in (a, b, c, d)), 1)


class _Frames:
    """Decoder of one video that finds frames by ascending numbers."""

    def __init__(self, source: Source, facts: VideoFacts, max_pixels: int) -> None:
        self._source, self._facts, self._max_pixels = source, facts, max_pixels
        self._times = None if facts.counted else facts.pts.numbers
        self._stack = ExitStack()
        self._container: Any = None
        self._stream: Any = None
        self._decoded: Iterator[tuple[int, Any]] | None = None
        self._last = -1
        """Number of the last frame that was decoded."""
        self._skips = self._times is not None and facts.codec == "h264"  # only for H.264, FFmpeg's flag is exact
        self._wanted = 0
        """Time of the frame that is searched for."""

    def __enter__(self) -> _Frames:
        self._convert = load_av().video.reformatter.VideoReformatter().reformat  # keeps its tables from frame to frame
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def find(self, number: int) -> Any:
        """Decode up to a frame and return it.

        Raises:
            BrokenSample: if it cannot be decoded.
        """
        key = self._facts.keyframe(number)
        self._wanted = 0 if self._times is None else int(self._times[number])
        with reading():
            if self._decoded is not None and key <= self._last + 1 <= number:
                found = self._until(number)
                if found is not None:
                    return found
            for start in sorted({key, self._facts.keyframe(max(key - 1, 0)), 0}, reverse=True):
                self._decoded = self._numbered(start)
                found = self._until(number)
                if found is not None:
                    return found
        raise BrokenSample(f"frame {number} of {self._facts.frames} is missing or damaged")

    def image(self, frame: Any) -> Tensor:
        """Return (3, H, W) uint8: RGB, upright."""
        check_size(frame.height, frame.width, max_pixels=self._max_pixels)
        height, width = self._facts.size if self._facts.orientation < 5 else self._facts.size[::-1]
        alpha = any(component.is_alpha for component in frame.format.components)
        with reading():
            converted = self._convert(frame, width, height, "rgba" if alpha else "rgb24", threads=1)
            image = torch.from_numpy(converted.to_ndarray()).movedim(2, 0)
        return upright(flatten(image, WHITE) if alpha else image, self._facts.orientation)

    def _until(self, number: int) -> Any | None:
        """Decode up to a frame; None if it does not come, or depends on damaged ones."""
        for last, frame in self._decoded or ():
            self._last = last
            if frame.is_corrupt or last > number:
                break
            if last == number:
                return frame
        self._decoded = None
        return None

    def _numbered(self, key: int) -> Iterator[tuple[int, Any]]:
        """Decode from a keyframe on, and yield the frames with their numbers.

        Yields nothing if the file only calls it a keyframe: streams of gradual refreshes have none, but points from
        which a picture is complete after a while.
        """
        before = -1
        for packet in self._packets(key):
            if self._skips and packet.pts is not None:
                # Frames that no other one refers to are only decoded if they are wanted, and perhaps later.
                self._stream.codec_context.skip_frame = "NONREF" if packet.pts < self._wanted else "DEFAULT"
            for frame in packet.decode():
                number = before + 1 if self._times is None else self._number(frame.pts, before)
                if number is None or number < key:
                    continue
                if before < 0 < key and (number > key or frame.pict_type in _PREDICTED):
                    return
                before = number
                yield number, frame

    def _number(self, time: int | None, before: int) -> int | None:
        """Return the number of the frame with a time; of several, the first after another one. None: not a frame."""
        times = self._times
        if time is None or times is None:
            return None
        number = max(int(np.searchsorted(times, time)), before + 1 if times[before] == time else 0)
        return number if number < len(times) and times[number] == time else None

    def _packets(self, key: int) -> Iterator[Any]:
        """Yield the packets of the file from a keyframe on; from 0, all of them."""
        if key == 0 or self._times is None:
            self._open()
            yield from self._container.demux(self._stream)
            return
        for search in (self._seek, self._open):  # an index can be missing or wrong: then all packets are read
            if not search(key):
                continue
            reached = False
            for packet in self._container.demux(self._stream):
                reached = reached or (packet.is_keyframe and packet.pts == self._times[key])
                if reached:
                    yield packet
                elif packet.is_keyframe and packet.pts is not None and packet.pts > self._times[key]:
                    break
            if reached:
                return

    def _seek(self, key: int) -> bool:
        """Move to a keyframe or somewhere before it; return False if FFmpeg cannot."""
        av = load_av()

        if self._container is None:
            self._open()
        try:
            self._container.seek(int(self._times[key]), stream=self._stream)
        except av.error.FFmpegError:
            return False
        return True

    def _open(self, _key: int = 0) -> bool:
        """Open the file, again if it is open, at its start."""
        self._stack.close()
        self._container, self._stream = self._stack.enter_context(opened(self._source, self._max_pixels))
        return True
