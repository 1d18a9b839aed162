"""Room in shared memory and on the disk is checked before it is needed, with numbers and remedies."""

from __future__ import annotations

import resource
import shutil
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
from torch import nn

from swinv2_train.config.compose import compose
from swinv2_train.config.errors import ConfigError
from swinv2_train.config.plan import make_plan
from swinv2_train.config.schema import Config
from swinv2_train.data.batch import Ragged
from swinv2_train.data.card import Card
from swinv2_train.data.shards import ShardSet
from swinv2_train.engine.room import (
    check_address_space,
    check_shared_memory,
    checkpoint_size,
    disk_warning,
    shared_memory_needed,
)
from swinv2_train.errors import RunError
from tests.data.samples import write_tar

MIB = 2**20


@pytest.fixture(scope="module")
def config() -> Config:
    return compose(
        [
            "+experiment=in1k_tiny_256",
            "data.num_workers=4",
            "data.prefetch_batches=2",
            "engine.micro_batch=16",
            "optim.global_batch=128",
            "checkpoint.every_steps=100",
            "checkpoint.keep_last=3",
            "checkpoint.keep_best=1",
            "checkpoint.keep_every_steps=0",
        ]
    )


def test_the_batches_that_workers_have_ready_are_counted(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    task = config.task.implementation().from_data(config, [0.5] * 3, [0.25] * 3, None)
    needed = shared_memory_needed(config, make_plan(config, 4, 10_000), task)
    kept = 4 * 2 * 16 + 2 * 2 * 16  # those of the workers, and two steps
    images = kept * 3 * 256 * 256
    assert images < needed < 1.01 * images
    deep = shared_memory_needed(config, make_plan(config, 4, 10_000), task, Card(bits=Counter({8: 5, 16: 1})))
    assert deep == needed + images
    masks = Ragged([torch.zeros(2, 100, dtype=torch.bool)])
    monkeypatch.setattr(task, "example_batch", lambda count: {"masks": masks, "position": torch.arange(count)})
    ragged = shared_memory_needed(config, make_plan(config, 4, 10_000), task, Card(bits=Counter({16: 1})))
    assert ragged == kept * (200 + 8)


def test_an_evaluation_needs_room_next_to_the_training(config: Config, tmp_path: Path) -> None:
    write_tar(tmp_path / "eval.tar", [(f"{number}.jpg", b"x") for number in range(30)])
    held_out = ShardSet.open(str(tmp_path / "eval.tar"), tmp_path / "cache")
    task = config.task.implementation().from_data(config, [0.5] * 3, [0.25] * 3, None)
    alone, both = (
        shared_memory_needed(config, make_plan(config, 4, 10_000), task, held_out=shards) for shards in (None, held_out)
    )
    assert both == pytest.approx(alone * (1 + 8 / (4 * 2 * 16 + 2 * 2 * 16)))


@pytest.mark.parametrize(("views", "videos"), [("1x1", 30), ("4x3", 4 * 2), ("2x2", 4 * 2 * 4)])
def test_views_of_videos_need_room_as_well(views: str, videos: int) -> None:
    """Workers hold as many inputs in an evaluation as in training, but never less than a video."""
    overrides = ["task=video", "task.num_classes=3", "data.frames=4", "model.temporal_patch=2", f"task.views={views}"]
    options = ["data.num_workers=4", "data.prefetch_batches=2", "engine.micro_batch=16", "optim.global_batch=64"]
    made = compose([*overrides, *options, "data.resolution=32", "optim.steps=10"])
    task = made.task.implementation().from_data(made, [0.5] * 3, [0.25] * 3, None)
    held_out = SimpleNamespace(num_samples=30, card=None)
    alone, both = (
        shared_memory_needed(made, make_plan(made, 4, 10_000), task, held_out=shards) for shards in (None, held_out)
    )
    kept = 4 * 2 * 16 + 2 * 16  # those of the workers, and two steps of one micro-batch
    own = -(-30 // 4)
    assert both - alone == pytest.approx(alone / kept * min(own, videos) * made.task.eval_inputs)


@pytest.mark.parametrize(
    ("hosts", "refused"),
    [
        ([("a", 64 * MIB), ("a", 64 * MIB)], False),
        ([("a", 63 * MIB), ("a", 63 * MIB)], True),
        ([("a", 64 * MIB), ("b", 31 * MIB), ("a", 64 * MIB)], True),
        ([("a", 32 * MIB), ("b", 32 * MIB)], False),
        ([("a", None)], False),
    ],
)
def test_the_workers_of_all_ranks_of_a_host_must_fit(
    config: Config, hosts: list[tuple[str, int | None]], refused: bool
) -> None:
    if not refused:
        check_shared_memory(config, 32 * MIB, hosts)
        return
    with pytest.raises(ConfigError) as caught:
        check_shared_memory(config, 32 * MIB, hosts)
    for word in ("data.num_workers=4", "data.prefetch_batches", "--shm-size", "MiB free", "/dev/shm"):
        assert word in str(caught.value)


def test_a_limit_on_addresses_must_leave_room_for_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    used = psutil.Process().memory_info().vms
    check_address_space()
    monkeypatch.setattr(resource, "getrlimit", lambda _: (used + 8 * 2**30, used + 8 * 2**30))
    check_address_space()
    monkeypatch.setattr(resource, "getrlimit", lambda _: (used + 100 * MIB, used + 100 * MIB))
    with pytest.raises(RunError, match=r"ulimit -v.*raise the limit"):
        check_address_space()


def test_a_checkpoint_is_the_weights_and_what_belongs_to_them() -> None:
    made, model = Config(), nn.Linear(10, 10)
    assert checkpoint_size(made, model) == 110 * 12
    made.optim.ema_decay = 0.999
    assert checkpoint_size(made, model) == 110 * 16
    model.weight.requires_grad = False
    model.register_buffer("mean", torch.zeros(5))
    assert checkpoint_size(made, model) == 100 * 4 + 10 * 16 + 5 * 4


@pytest.mark.parametrize(
    ("free", "held", "steps_left", "fits"),
    [
        (50, 0, 1000, True),
        (49, 0, 1000, False),
        (10, 40, 1000, True),
        (19, 0, 100, False),
        (20, 0, 100, True),
        (9, 0, 0, False),
    ],
)
def test_what_the_run_will_keep_must_fit(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, held: int, steps_left: int, fits: bool
) -> None:
    """Checkpoints of 10 MiB: three newest, the best, and one that is being written; fewer if the run ends before."""
    old = tmp_path / "step-00000001"
    old.mkdir()
    with (old / "file").open("wb") as file:
        file.truncate(held * MIB)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(total=2**40, free=free * MIB))
    text = disk_warning(config, steps_left, 10 * MIB, tmp_path)
    assert (text is None) == fits
    if text is not None:
        assert str(tmp_path) in text
        assert "make room" in text
        assert ("lower keep_last" in text) == (free + held >= 20)


def test_a_file_system_without_a_size_is_not_warned_of(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(total=0, free=0))
    assert disk_warning(config, 1000, 10 * MIB, tmp_path) is None
