"""Windows over an entire video: they cover it, need each frame once, and hold no more frames than a span has."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from swinv2_train.config.data import DataConfig
from swinv2_train.data.clip_input import FixedCrops
from swinv2_train.data.clip_windows import ClipWindows, frames_of_windows, window_starts
from swinv2_train.data.clips import clip_numbers
from swinv2_train.data.video import Video
from tests.data.filmed import film
from tests.data.videos import read_number, read_numbers

CLIPS = ((4, 1), (4, 3), (3, 5), (8, 2))


@pytest.mark.parametrize(("frames", "stride"), CLIPS)
def test_windows_cover_a_video_and_need_each_frame_once(frames: int, stride: int) -> None:
    span = frames * stride
    for total in (1, 2, span - 1, span, span + 1, 2 * span, 5 * span + 3):
        for hop in (None, 0.01, 0.1, 0.3, 7.0):
            starts = window_starts(np.arange(total) / 30, span, hop)
            assert starts == sorted(set(starts))
            assert starts[0] == 0
            assert starts[-1] == max(0, total - span)
            wanted = {number for start in starts for number in clip_numbers(total, frames, stride, start)}
            assert list(frames_of_windows(total, frames, stride, starts)) == sorted(wanted)


def test_a_window_begins_every_half_span_or_every_hop() -> None:
    times = np.arange(100) / 25
    assert window_starts(times, 16, None) == [*range(0, 85, 8), 84]
    assert window_starts(times, 16, 1.0) == [0, 25, 50, 75, 84]
    assert window_starts(times, 16, 1e-9) == list(range(85))  # no more windows than frames
    late = np.concatenate([np.arange(50) / 50, 1 + np.arange(50) / 10])  # 50 frames/s, then 10
    assert window_starts(late, 10, 1.0) == [0, 50, 60, 70, 80, 90]
    assert window_starts(np.zeros(30), 10, 1.0) == [0, 20]  # without times


@pytest.mark.parametrize(("container", "count"), [("mp4", 50), ("mkv", 50), ("mp4", 5)])
def test_clips_and_extra_frames_are_exact(container: str, count: int) -> None:
    video = Video.of(film(count, container))
    starts = window_starts(video.facts.times, 16, 0.1)
    crops = FixedCrops.of(video.size, (48, 64), DataConfig(crop_pct=1.0))
    seen, extra = [], []
    for number, found in ClipWindows(video, starts, 8, 2).each(crops, [0, count // 2, count - 1]):
        if number < 0:
            extra.append(read_number(found))
        else:
            assert number == len(seen)
            seen.append(read_numbers(found))
    assert seen == [clip_numbers(count, 8, 2, start) for start in starts]
    assert extra == [0, count // 2, count - 1]


@pytest.mark.parametrize("hop", [None, 0.05, 1.5])
def test_the_frames_in_memory_do_not_grow_with_the_length(hop: float | None) -> None:
    held = []
    for count in (40, 240):
        video = Video.of(film(count, "mp4", size=(16, 16)))
        stream = ClipWindows(video, window_starts(video.facts.times, 16, hop), 8, 2)
        crops = FixedCrops.of(video.size, (16, 16), DataConfig(crop_pct=1.0))
        for _ in stream.each(crops, [3, count - 2]):
            pass
        held.append(stream.most_held)
    assert held[0] == held[1] <= 17  # a span, and a frame that only the strip needs


def test_crops_of_a_window_are_the_views_of_an_evaluation() -> None:
    video, data = Video.of(film(30, size=(40, 64))), DataConfig(crop_pct=0.9, frames=4, frame_stride=2)
    crops = FixedCrops.of(video.size, (32, 32), data, 3)
    ((_, clip),) = ClipWindows(video, [11], 4, 2).each(crops)
    views = crops.views(video.frames([11, 13, 15, 17], crops.scaled))
    assert [view.shape for view in views] == [(3, 4, 32, 32)] * 3
    for view, other in zip(crops.views(clip), views, strict=True):
        assert torch.equal(view, other)
