"""Frames of clips: Video Swin's rule, worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from swinv2_train.data.clips import clip_start, test_clips, train_clip


def test_training_clips_begin_anywhere_that_the_clip_fits() -> None:
    rng = np.random.default_rng(0)
    clips = [train_clip(20, 4, 3, rng) for _ in range(400)]
    assert {clip[0] for clip in clips} == set(range(9))  # 0 to 20 - 12
    assert all(np.diff(clip).tolist() == [3, 3, 3] for clip in clips)
    assert train_clip(12, 4, 3, rng) == [0, 3, 6, 9]


def test_evaluation_clips_are_evenly_spaced() -> None:
    # floor((i + 0.5) * (300 - 64 + 1) / 4): 29.625, 88.875, 148.125, 207.375
    assert [clip[0] for clip in test_clips(300, 32, 2, 4)] == [29, 88, 148, 207]
    assert test_clips(300, 32, 2, 1)[0] == list(range(118, 182, 2))
    assert test_clips(64, 32, 2, 2) == [list(range(0, 64, 2))] * 2
    assert clip_start(65, 32, 2, 1, 2) == 1


@pytest.mark.parametrize(("total", "expected"), [(11, [0, 3, 6, 9]), (7, [0, 3, 6, 2]), (1, [0, 0, 0, 0])])
def test_short_videos_start_again(total: int, expected: list[int]) -> None:
    assert train_clip(total, 4, 3, np.random.default_rng(1)) == expected
    assert test_clips(total, 4, 3, 3) == [expected] * 3
