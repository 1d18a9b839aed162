"""Check of a single sample with a video."""

from __future__ import annotations

import hashlib

import numpy as np

from swinv2_train.data.card_videos import VideoCounts
from swinv2_train.data.errors import BrokenSample
from swinv2_train.data.inspect_images import Checked
from swinv2_train.data.labels import known_labels
from swinv2_train.data.raw_sample import RawSample
from swinv2_train.data.samples import TEXT_EXTENSIONS, VIDEO, VIDEO_FACTS
from swinv2_train.data.shards import ShardSet
from swinv2_train.data.video import check_frames, probe
from swinv2_train.data.video_facts import VideoFacts
from swinv2_train.data.video_statistics import frame_facts
from swinv2_train.reading import UnreadableError, parse_json


class CheckVideo:
    """Runs in the worker processes: read one sample, and decode all frames of its video."""

    def __init__(self, shards: ShardSet, max_pixels: int) -> None:
        self._shards, self._max_pixels = shards, max_pixels

    def __call__(self, index: int) -> Checked:
        try:
            raw = self._shards.read(index, (VIDEO, VIDEO_FACTS, *TEXT_EXTENSIONS))
            facts = probe(raw.data, self._max_pixels)
            _compare(raw, facts)
            check_frames(raw.data, facts, self._max_pixels)
            image = frame_facts(raw.data, facts, raw.extension.rpartition(".")[2], self._max_pixels)
            labels, problem = known_labels(raw)
            digest = int.from_bytes(hashlib.blake2b(raw.data, digest_size=8).digest())
            return Checked(image, len(raw.data), labels, problem, digest=digest, video=VideoCounts.of(facts))
        except BrokenSample as error:
            return Checked(broken=error.reason)


def _compare(raw: RawSample, facts: VideoFacts) -> None:
    """Compare the facts that were packed, if there are any, with those of the video.

    Raises:
        BrokenSample: if the frames, their times, or their size differ.
    """
    if VIDEO_FACTS not in raw.members:
        return
    try:
        packed = VideoFacts.from_json(parse_json(raw.members[VIDEO_FACTS]))
    except (BrokenSample, UnreadableError) as error:
        raise BrokenSample(f"{VIDEO_FACTS}: {error}") from None
    for name, before, now in (
        ("number of frames", packed.frames, facts.frames),
        ("size", f"{packed.width} x {packed.height}", f"{facts.width} x {facts.height}"),
        ("orientation", packed.orientation, facts.orientation),
    ):
        if before != now:
            raise BrokenSample(f"{VIDEO_FACTS} is of another video: its {name} is {before}, not {now}")
    if not np.array_equal(packed.pts.numbers, facts.pts.numbers):
        raise BrokenSample(f"{VIDEO_FACTS} is of another video: the times of its frames differ")
