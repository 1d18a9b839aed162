"""Frames of a clip, by Video Swin Transformer (https://arxiv.org/abs/2106.13230).

A clip spans `frames * stride` frames of the video. A video that is shorter starts again from its first frame.
"""

from __future__ import annotations

import numpy as np


def train_clip(total: int, frames: int, stride: int, rng: np.random.Generator) -> list[int]:
    """Return the frame numbers of a clip at a random place: all places in the video are equally likely.

    Args:
        total: frames of the video.
        frames: frames of the clip.
        stride: distance of two of them.
    """
    return clip_numbers(total, frames, stride, int(rng.integers(max(total - frames * stride, 0) + 1)))


def test_clips(total: int, frames: int, stride: int, clips: int) -> list[list[int]]:
    """Return the frame numbers of evenly spaced clips; a single one is in the middle of the video."""
    return [clip_numbers(total, frames, stride, clip_start(total, frames, stride, i, clips)) for i in range(clips)]


test_clips.__test__ = False  # type: ignore[attr-defined]  # pytest would take it for a test where it is imported


def clip_start(total: int, frames: int, stride: int, clip: int, clips: int) -> int:
    """Return the first frame of one of evenly spaced clips: floor((clip + 0.5) * (total - span + 1) / clips).

    0 if the video is shorter than a clip.
    """
    places = total - frames * stride + 1
    return (2 * clip + 1) * places // (2 * clips) if places > 0 else 0


def clip_numbers(total: int, frames: int, stride: int, start: int) -> list[int]:
    """Return the frame numbers of the clip that begins at a frame."""
    return [(start + i * stride) % total for i in range(frames)]
