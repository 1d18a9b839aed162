"""Prediction of video files: the most likely classes of every window of time, and a film strip with their course.

Videos are read from their files as they are decoded, in one pass. In memory are the frames of the windows that are
being computed, and a few numbers for each window, whatever the length of a video.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from swinv2_train.config.checks import resolution
from swinv2_train.config.tasks import VideoConfig
from swinv2_train.data.augment import normalise_clips
from swinv2_train.data.clip_input import FixedCrops
from swinv2_train.data.clip_windows import ClipWindows, window_starts
from swinv2_train.data.video import Video
from swinv2_train.tasks.prediction import ImagePredictor, Prediction
from swinv2_train.tracking.charts import Series
from swinv2_train.tracking.figures import BACKGROUND, STRIP_GAP, film_strip
from swinv2_train.tracking.film_chart import film_chart

_STRIPS = "strips"
_VIDEOS = "videos.csv"
_QUALITY = 90
_BATCH = 4
_FRAMES, _SIDE = 8, 192
"""Frames of a strip, and the longer side of one in pixels."""
_CURVES = 5
_SAME_TIME = 1e-6
"""Seconds."""
_MANY_WINDOWS = 20
"""From this number, the windows of a video are counted on the terminal."""
_MOST_POINTS = 512
_MOST_PARTS = 12
"""Parts of a video that the terminal shows."""


@dataclass
class Windows:
    """Windows of one video, in their order."""

    starts: np.ndarray = field(default_factory=lambda: np.zeros(0))
    """(W,) seconds from the first frame of the video."""
    ends: np.ndarray = field(default_factory=lambda: np.zeros(0))
    numbers: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.int32))
    """(W, top) int32: the most likely classes of each, best first."""
    shares: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    """(W, top) float32: their probabilities."""

    @property
    def gaps(self) -> np.ndarray:
        """(W - 1,) bool: True if a window ends before the next one starts."""
        return self.starts[1:] > self.ends[:-1] + _SAME_TIME


@dataclass
class VideoPrediction(Prediction):
    """Classes of one video: in `classes` averaged over its windows, and those of every window."""

    COLUMNS: ClassVar[tuple[str, ...]] = ("video", "start", "end")
    NOUN: ClassVar[str] = "video"
    TITLES: ClassVar[tuple[str, ...]] = ("video", "time")

    windows: Windows = field(default_factory=Windows)
    seconds: float = 0.0
    frames: int = 0
    names: Sequence[str] = ()

    @classmethod
    def columns(cls, found: Sequence[VideoPrediction]) -> tuple[str, ...]:
        """Return the titles: video, start, end, and class1, p1, class2, p2, ... for the classes of a window."""
        most = max((one.windows.numbers.shape[1] for one in found), default=1)
        return (*cls.COLUMNS, *(f"{name}{rank}" for rank in range(1, most + 1) for name in ("class", "p")))

    def rows(self) -> list[tuple[Any, ...]]:
        """Return a line for each window; times in seconds."""
        return [
            (
                self.path,
                f"{start:.3f}",
                f"{end:.3f}",
                *(part for each in classes for part in (each[1], f"{each[2]:.6f}")),
            )
            for start, end, classes in self._listed()
        ]

    def record(self) -> dict[str, Any]:
        windows = [
            {"start": round(start, 3), "end": round(end, 3), "classes": _objects(classes)}
            for start, end, classes in self._listed()
        ]
        facts = {"video": str(self.path), "seconds": round(self.seconds, 3), "frames": self.frames}
        return {**facts, "classes": _objects(self.classes), "windows": windows}

    def lines(self, top: int) -> list[tuple[str, ...]]:
        """Return the averages, and below them each part of the video whose windows have the same best class."""
        lines = [(str(self.path), f"{self.seconds:.1f} s", *self.summary(top))]
        if len(self._parts) == 1:
            return lines
        for first, last in self._parts[:_MOST_PARTS]:
            shares = self.windows.shares[first : last + 1, 0]
            time = f"{self.windows.starts[first]:.1f}-{self.windows.ends[last]:.1f} s"
            lines.append(("", time, f"{self.names[self.windows.numbers[first, 0]]} {shares.mean():.1%}"))
        if len(self._parts) > _MOST_PARTS:
            lines.append(("", f"... and {len(self._parts) - _MOST_PARTS:,} more parts, which the tables have"))
        return lines

    @classmethod
    def collected(cls, found: Sequence[VideoPrediction], names: Sequence[str]) -> dict[str, str]:
        """Return videos.csv: a line for each video and class, with the average over its windows."""
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(("video", "rank", "class_number", "class", "probability"))
        for one in found:
            writer.writerows(Prediction.rows(one))
        return {_VIDEOS: stream.getvalue()}

    def _listed(self) -> Iterator[tuple[float, float, list[tuple[int, str, float]]]]:
        windows = self.windows
        for start, end, numbers, shares in zip(
            windows.starts.tolist(), windows.ends.tolist(), windows.numbers, windows.shares, strict=True
        ):
            pairs = zip(numbers.tolist(), shares.tolist(), strict=True)
            yield start, end, [(number, self.names[number], share) for number, share in pairs]

    @cached_property
    def _parts(self) -> list[tuple[int, int]]:
        """First and last window of each part with the same best class, and without gaps between its windows."""
        best = self.windows.numbers[:, 0]
        cuts = [0, *(np.flatnonzero((np.diff(best) != 0) | self.windows.gaps) + 1).tolist(), len(best)]
        return [(first, last - 1) for first, last in pairwise(cuts)]


def _objects(classes: Sequence[tuple[int, str, float]]) -> list[dict[str, Any]]:
    return [{"number": number, "name": name, "probability": round(share, 6)} for number, name, share in classes]


class Course:
    """Probabilities of all classes over time, at a limited number of points: of a long video, each is the mean of
    several windows."""

    def __init__(self, num_classes: int, most: int = _MOST_POINTS) -> None:
        """`most` points, an even number."""
        self._sums, self._times = np.zeros((most, num_classes)), np.zeros(most)
        self._counts, self._each, self._added = np.zeros(most), 1, 0

    def add(self, time: float, shares: np.ndarray) -> None:
        """Add a window by its middle, in seconds, and its probabilities (K,)."""
        place = self._added // self._each
        if place == len(self._counts):
            for values in (self._sums, self._times, self._counts):
                half = len(values) // 2
                values[:half] = values[0::2] + values[1::2]
                values[half:] = 0
            self._each, place = 2 * self._each, place // 2
        self._sums[place] += shares
        self._times[place] += time
        self._counts[place] += 1
        self._added += 1

    @property
    def times(self) -> np.ndarray:
        """(N,) seconds."""
        return self._times[self._counts > 0] / self._counts[self._counts > 0]

    @property
    def shares(self) -> np.ndarray:
        """(N, K): the probabilities at each time."""
        return self._sums[self._counts > 0] / self._counts[self._counts > 0, None]

    @property
    def mean(self) -> np.ndarray:
        """(K,): the average over all windows."""
        return self._sums.sum(axis=0) / self._added


class VideoPredictor(ImagePredictor):
    """The most likely classes of every window of a video. Windows span as many frames as the clips of the training."""

    PREDICTION = VideoPrediction

    def predict_image(self, path: Path, *, wanted: bool) -> VideoPrediction:
        """Return the prediction for a video; for the arguments and errors see `ImagePredictor`."""
        config, task = self.model.config, self.model.config.task
        assert isinstance(task, VideoConfig)
        data, names = config.data, self.model.names
        video = Video.of(path, data.max_pixels)
        times, total, span = video.facts.times, video.facts.frames, data.frames * data.frame_stride
        starts = window_starts(times, span, task.hop or None)
        drawn = wanted or self.options.files is not None
        middles = _middles(times, video.facts.seconds) if drawn else []
        crops = FixedCrops.of(video.size, resolution(config), data, task.view_counts[1])
        numbers, shares, pictures, course = [], [], [], Course(len(names))
        ends = [float(times[start + span]) if start + span < total else video.facts.seconds for start in starts]
        stream = ClipWindows(video, starts, data.frames, data.frame_stride).each(crops, middles)
        clips = _clips(stream, pictures)
        while group := list(islice(clips, self.options.batch or _BATCH)):
            for found in self._shares(torch.stack(group), crops):
                window = len(numbers)
                course.add((float(times[starts[window]]) + ends[window]) / 2, found.numpy())
                best = found.topk(min(self.options.top, len(names)))
                numbers.append(best.indices.numpy().astype(np.int32))
                shares.append(best.values.numpy())
            if len(starts) >= _MANY_WINDOWS:
                self.progress(f"windows of {path.name}", len(numbers), len(starts))
        windows = Windows(times[starts], np.array(ends), np.stack(numbers), np.stack(shares))
        self._note_gaps(windows, task.hop)
        mean = torch.from_numpy(course.mean).topk(min(self.options.top, len(names)))
        pairs = zip(mean.indices.tolist(), mean.values.tolist(), strict=True)
        classes = [(number, names[number], share) for number, share in pairs]
        prediction = VideoPrediction(
            path, classes, windows=windows, seconds=video.facts.seconds, frames=total, names=names
        )
        if self.options.files is not None:
            # Videos in several folders may have the same name.
            title = str(self.options.files[path].with_name(path.name))
            picture = _strip(prediction, pictures, course, title)
            picture.save(self.target(path, _STRIPS, ".jpg"), quality=_QUALITY)
        if wanted:
            prediction.picture = _tiled(pictures)
        return prediction

    def _note_gaps(self, windows: Windows, hop: float) -> None:
        """Note once that there is time between windows."""
        if windows.gaps.any() and not self.notes:
            seconds = (windows.ends - windows.starts)[:-1][windows.gaps].min()
            unseen = "the model does not see the time between windows"
            self.notes.append(f"--hop {hop:g} is longer than a window ({seconds:.2f} s): {unseen}")

    def _shares(self, clips: Tensor, crops: FixedCrops) -> Tensor:
        """Return the probability of every class for scaled clips (B, 3, T, h, w), averaged over the crops: (B, K) on
        the host."""
        found = []
        for view in zip(*(crops.views(clip) for clip in clips), strict=True):
            batch = torch.stack(view).to(self.model.device)
            logits = self.model.module(normalise_clips(batch, self.model.mean, self.model.std)).float().cpu()
            if not logits.isfinite().all():
                raise FloatingPointError("the outputs of the model are not finite")
            found.append(logits.sigmoid() if self.model.config.task.multi_label else logits.softmax(dim=1))
        return torch.stack(found).mean(dim=0)


def _middles(times: np.ndarray, seconds: float) -> list[int]:
    """Return the frames that are shown in the middles of equal parts of a video."""
    wanted = (np.arange(_FRAMES) + 0.5) * seconds / _FRAMES
    return np.unique(np.searchsorted(times, wanted, side="right").clip(1) - 1).tolist()


def _clips(stream: Iterator[tuple[int, Tensor]], pictures: list[Tensor]) -> Iterator[Tensor]:
    """Yield the clips of windows, and append the other frames, reduced, to `pictures`."""
    for window, frames in stream:
        if window < 0:
            pictures.append(_reduced(frames))
        else:
            yield frames


def _reduced(frame: Tensor) -> Tensor:
    """(3, H, W) uint8 -> at most `_SIDE` pixels a side."""
    picture = Image.fromarray(frame.permute(1, 2, 0).contiguous().numpy())
    scale = _SIDE / max(picture.size)
    picture = picture.resize((max(1, round(picture.width * scale)), max(1, round(picture.height * scale))))
    return torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1)


def _strip(prediction: VideoPrediction, pictures: Sequence[Tensor], course: Course, title: str) -> Image.Image:
    """Draw the film strip of a video, and below it the probabilities of its most likely classes over time."""
    times, values, seconds = course.times, course.shares, prediction.seconds
    if len(times) == 1:  # one window: a line over the entire video
        times, values = np.array([0.0, seconds or 1.0]), values.repeat(2, axis=0)
    shown = prediction.classes[:_CURVES]
    series = [Series(name, times.tolist(), values[:, number].tolist()) for number, name, _ in shown]
    strip = film_strip(torch.stack(list(pictures), dim=1), _FRAMES)
    return film_chart(strip, seconds, series, [number for number, *_ in shown], title).image


def _tiled(pictures: Sequence[Tensor]) -> Image.Image:
    """Return four of the frames in two rows, with a gap between them."""
    chosen = [pictures[round(part * (len(pictures) - 1) / 3)] for part in range(4)]
    _, height, width = chosen[0].shape
    tiled = Image.new("RGB", (2 * width + STRIP_GAP, 2 * height + STRIP_GAP), BACKGROUND)
    for number, frame in enumerate(chosen):
        place = (number % 2 * (width + STRIP_GAP), number // 2 * (height + STRIP_GAP))
        tiled.paste(Image.fromarray(frame.permute(1, 2, 0).contiguous().numpy()), place)
    return tiled
