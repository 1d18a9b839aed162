"""The stages of a sample, measured; no test judges how long they take."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from swinv2_train.config.schema import AugmentConfig
from swinv2_train.data.decode import DecodeOptions
from swinv2_train.data.errors import DataError
from swinv2_train.data.samples import VIDEO
from swinv2_train.data.shards import ShardSet
from swinv2_train.data.speed import STAGES, Speed, measure_speed
from tests.data.samples import encoded, pixels, write_shards, write_tar
from tests.filmed import SHAPE, make_filmed_shard


def test_rates_and_shares_follow_from_the_seconds() -> None:
    speed = Speed(num_samples=100, seconds={"read": 0.1, "decode": 0.6, "augment": 0.2, "collate": 0.1})
    assert speed.rate("decode") == pytest.approx(100 / 0.6)
    assert speed.rate() == pytest.approx(100)
    assert speed.share("augment") == pytest.approx(0.2)


def test_every_stage_takes_time_and_threads_are_as_before(tmp_path: Path) -> None:
    shards = ShardSet.open(write_shards(tmp_path, [30], broken=[3]))
    threads = torch.get_num_threads()
    speed = measure_speed(shards, (16, 16), AugmentConfig(), DecodeOptions(), num_samples=30, micro_batch=7)
    assert (speed.num_samples, speed.num_broken) == (29, 1)
    assert all(speed.seconds[stage] > 0 for stage in STAGES)
    assert speed.pixels == 29 * 24 * 32
    assert speed.bytes_read == sum(len(shards.read(n, ("image",)).data) for n in range(30) if n != 3)
    assert torch.get_num_threads() == threads


def test_images_of_several_kinds_and_none_at_all(tmp_path: Path) -> None:
    members = [("a.png", encoded(pixels(1), "PNG")), ("b.png", encoded(pixels(2, channels=1), "PNG"))]
    shards = ShardSet.open(str(write_tar(tmp_path / "x.tar", members)))
    assert measure_speed(shards, (8, 8), AugmentConfig(), DecodeOptions()).num_samples == 2
    broken = ShardSet.open(write_shards(tmp_path / "broken", [2], broken=[0, 1]))
    with pytest.raises(DataError, match="none of the samples can be used"):
        measure_speed(broken, (8, 8), AugmentConfig(), DecodeOptions())


def test_clips_of_videos(tmp_path: Path) -> None:
    make_filmed_shard(tmp_path / "clips.tar", 4, 0, broken=(1,))
    shards = ShardSet.open(str(tmp_path / "clips.tar"), main=VIDEO)
    speed = measure_speed(shards, (16, 16), AugmentConfig(), DecodeOptions(), micro_batch=2, clip=(4, 2))
    assert (speed.num_samples, speed.num_broken) == (3, 1)
    assert speed.pixels == 3 * 4 * SHAPE[0] * SHAPE[1]
    assert all(speed.seconds[stage] > 0 for stage in STAGES)
