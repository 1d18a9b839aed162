"""Windows over an entire video: clips at many places, decoded in one pass.

In memory are the frames that the next clips still need, at most those of one span, whatever the length of the video.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from heapq import merge
from itertools import groupby

import numpy as np
import torch
from torch import Tensor

from swinv2_train.data.clip_input import FixedCrops
from swinv2_train.data.clips import clip_numbers
from swinv2_train.data.video import Video


def window_starts(times: np.ndarray, span: int, hop: float | None) -> list[int]:
    """Return the first frames of the windows that cover a video, ascending; the last one ends with the video.

    Args:
        times: (frames,) seconds, ascending: when each frame is shown.
        span: frames that a clip spans.
        hop: seconds from the start of a window to that of the next one, at least those from frame to frame on average;
            None: half a span, in frames.
    """
    last = len(times) - span
    if last <= 0:
        return [0]
    if hop is None:
        starts = range(0, last + 1, max(1, span // 2))
    else:
        hop = max(hop, float(times[last]) / last)
        wanted = np.arange(0.0, float(times[last]) + hop / 2, hop)
        starts = np.unique(np.minimum(np.searchsorted(times, wanted - 1e-6), last)).tolist()
    return [*starts] if starts[-1] == last else [*starts, last]


def frames_of_windows(total: int, frames: int, stride: int, starts: Sequence[int]) -> Iterator[int]:
    """Yield the numbers of the frames that the clips at some starts need, ascending, each once."""
    span = frames * stride
    if total < span:
        yield from sorted({number for start in starts for number in clip_numbers(total, frames, stride, start)})
        return
    waiting, open_ones = deque(starts), deque[int]()
    for number in range(starts[0], starts[-1] + span):
        while waiting and waiting[0] <= number:
            open_ones.append(waiting.popleft())
        while open_ones and open_ones[0] + span <= number:
            open_ones.popleft()
        if any((number - start) % stride == 0 for start in open_ones):
            yield number


class ClipWindows:
    """The clips of one video that begin at some frames."""

    def __init__(self, video: Video, starts: Sequence[int], frames: int, stride: int) -> None:
        """Take a video, the first frames of the clips, ascending, and the frames of a clip and their distance."""
        self._video, self._starts, self._clip = video, starts, (frames, stride)
        self.most_held = 0
        """Largest number of frames that were in memory, other than those of the clips that were returned."""

    def each(self, crops: FixedCrops, extra: Sequence[int] = ()) -> Iterator[tuple[int, Tensor]]:
        """Yield (k, clip) for the clip at start k, (3, T, h, w) uint8, and (-1, frame) for every extra frame,
        (3, H, W), in the order of the video.

        Args:
            crops: scale the frames of clips.
            extra: numbers of the extra frames.

        Raises:
            BrokenSample: if a frame cannot be decoded.
        """
        total, others, held = self._video.facts.frames, set(extra), dict[int, Tensor]()
        clips = ((k, clip_numbers(total, *self._clip, start)) for k, start in enumerate(self._starts))
        window, numbers = next(clips)
        needed = merge(frames_of_windows(total, *self._clip, self._starts), sorted(others))
        for number, image in self._video.each(number for number, _ in groupby(needed)):
            if number in others:
                yield -1, image
            held[number] = crops.scaled(image)
            self.most_held = max(self.most_held, len(held))
            while number >= max(numbers):
                yield window, torch.stack([held[one] for one in numbers], dim=1)
                window, numbers = next(clips, (window, [total]))
                held = {one: frame for one, frame in held.items() if one >= numbers[0]}
