"""CPU time of a training sample on this machine, by stage: read, decode, augment, collate."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from swinv2_train.config.schema import AugmentConfig
from swinv2_train.data.batch import collate, share_memory
from swinv2_train.data.clips import train_clip
from swinv2_train.data.decode import DecodeOptions
from swinv2_train.data.errors import BrokenSample, DataError
from swinv2_train.data.geometry import Crop, draw_crop
from swinv2_train.data.order import sample_rng
from swinv2_train.data.sample import Sample
from swinv2_train.data.samples import IMAGE, VIDEO, VIDEO_FACTS
from swinv2_train.data.shards import ShardSet
from swinv2_train.data.workers import unshared

STAGES = ("read", "decode", "augment", "collate")
_WARM_UP = 16  # samples, for libraries that are loaded at their first use


@dataclass
class Speed:
    """CPU seconds of each stage over some samples, on one core."""

    num_samples: int = 0
    """Samples that were made; broken ones do not count."""
    num_broken: int = 0
    bytes_read: int = 0
    pixels: int = 0
    """Pixels of the images, decoded or not, or of the frames of the clips."""
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))

    def rate(self, stage: str | None = None) -> float:
        """Return the images per second and core of a stage, or of all of them together."""
        seconds = sum(self.seconds.values()) if stage is None else self.seconds[stage]
        return self.num_samples / seconds if seconds > 0 else float("inf")

    def share(self, stage: str) -> float:
        """Return the fraction of the CPU time that a stage takes."""
        return self.seconds[stage] / (sum(self.seconds.values()) or 1.0)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Count the CPU time of this process inside the block."""
        begun = time.process_time()
        try:
            yield
        finally:
            self.seconds[stage] += time.process_time() - begun


def measure_speed(
    shards: ShardSet,
    size: tuple[int, int],
    augment: AugmentConfig,
    decoding: DecodeOptions,
    *,
    num_samples: int = 512,
    micro_batch: int = 64,
    seed: int = 0,
    clip: tuple[int, int] | None = None,
) -> Speed:
    """Make training samples as a data worker does, on one thread of this process, and measure each stage.

    Samples are chosen at random, and read once before, so that the storage is not part of the result. Flips are; the
    augmentation of a task, such as its masks or colors, is not.

    Args:
        clip: frames and stride of the clips to make of videos; None for images.

    Raises:
        DataError: if no sample can be used, or shared memory is full.
    """
    chosen = np.random.default_rng(seed).permutation(shards.num_samples)[:num_samples].tolist()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        made = _Inputs(size, augment, decoding, clip)
        _measure(shards, chosen[:_WARM_UP], made, micro_batch)
        for index in chosen:
            with _suppressed():
                shards.read(index, _members(shards))
        speed = _measure(shards, chosen, made, micro_batch)
    finally:
        torch.set_num_threads(threads)
    if not speed.num_samples:
        raise DataError("none of the samples can be used: check the shards with swinv2-data inspect")
    return speed


@dataclass(frozen=True)
class _Inputs:
    """Inputs of a model to be made; see `measure_speed`."""

    size: tuple[int, int]
    augment: AugmentConfig
    decoding: DecodeOptions
    clip: tuple[int, int] | None

    def decoded(self, sample: Sample, rng: np.random.Generator) -> tuple[Tensor, Crop]:
        """Return the pixels (..., C, H, W) that a drawn crop needs, and the crop."""
        if self.clip is None:
            return sample.part(sample.aligned(draw_crop(sample.size, self.size, self.augment, rng)))
        numbers = train_clip(sample.video.facts.frames, *self.clip, rng)
        crop = draw_crop(sample.video.size, self.size, self.augment, rng)
        return sample.video.frames(numbers).transpose(0, 1), crop


def _members(shards: ShardSet) -> tuple[str, ...]:
    return (VIDEO, VIDEO_FACTS) if shards.scope.main == VIDEO else (IMAGE,)


def _measure(shards: ShardSet, chosen: list[int], made: _Inputs, micro_batch: int) -> Speed:
    speed = Speed()
    waiting: list[dict[str, Any]] = []
    for number, index in enumerate(chosen):
        with _suppressed(speed):
            with speed.timed("read"):
                sample = Sample(shards.read(index, _members(shards)), None, made.decoding)
            with speed.timed("decode"):
                part, crop = made.decoded(sample, sample_rng(0, number))
            with speed.timed("augment"):
                image = crop.image(part, made.augment.interpolation)
                waiting.append({"image": image.movedim(-3, 0)})
            speed.num_samples += 1
            speed.bytes_read += len(sample.raw.data)
            speed.pixels += part.shape[0] * math.prod(crop.source) if made.clip else math.prod(sample.size)
        if waiting and (len(waiting) == micro_batch or index == chosen[-1]):
            with speed.timed("collate"):
                _passed_on(waiting)
            waiting = []
    return speed


def _passed_on(samples: list[dict[str, Any]]) -> None:
    """Collate samples into shared memory, in which workers pass them to the training process."""
    by_channels: dict[int, list[dict[str, Any]]] = {}
    for sample in samples:
        by_channels.setdefault(sample["image"].shape[0], []).append(sample)
    for alike in by_channels.values():
        try:
            share_memory(collate(alike))
        except (RuntimeError, OSError) as error:
            raise DataError(unshared(error)) from None


@contextmanager
def _suppressed(speed: Speed | None = None) -> Iterator[None]:
    """Go on after a broken sample, and count it."""
    try:
        yield
    except BrokenSample:
        if speed is not None:
            speed.num_broken += 1
