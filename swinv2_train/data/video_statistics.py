"""Contribution of some frames of a video to a dataset card."""

from __future__ import annotations

import contextlib

import numpy as np

from swinv2_train.data.card import ImageFacts
from swinv2_train.data.decode import channel_moments
from swinv2_train.data.video import MAX_PIXELS, iterate_frames
from swinv2_train.data.video_facts import VideoFacts
from swinv2_train.data.video_file import Source

STATISTICS_FRAMES = 8
"""Frames of each video, evenly spaced, that mean and standard deviation of the card are computed from."""


def frame_facts(source: Source, facts: VideoFacts, container: str, max_pixels: int = MAX_PIXELS) -> ImageFacts:
    """Return what a video adds to the counts of images: its size, and the statistics of some frames.

    Args:
        container: extension of its member.

    Raises:
        BrokenSample: if one of these frames cannot be decoded.
    """
    moments, flat = [], True
    numbers = spread(facts.frames, STATISTICS_FRAMES)
    with contextlib.closing(iterate_frames(source, facts, numbers, max_pixels)) as frames:
        for _, image in frames:
            moments.append(channel_moments(image))
            flat = flat and all(plane.min() == plane.max() for plane in image.numpy())
    means, squares = (tuple(np.mean(values, axis=0).tolist()) for values in zip(*moments, strict=True))
    return ImageFacts(container, 8, facts.height, facts.width, means, squares, flat=flat)


def spread(total: int, count: int) -> list[int]:
    """Return at most `count` different frame numbers of a video, evenly spaced, with the first and the last one."""
    return np.unique(np.linspace(0, total - 1, count).round().astype(int)).tolist()
