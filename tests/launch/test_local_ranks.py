"""Device and number of ranks: one place decides, for runs and for evaluations."""

from __future__ import annotations

import sys

import pytest
import torch

from swinv2_train.config.errors import ConfigError
from swinv2_train.launch import local_ranks
from swinv2_train.launch.local_ranks import LAUNCH_KEYS, choose_ranks


@pytest.fixture(autouse=True)
def driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_ranks, "DRIVERS", ("/dev/null",))


def test_without_a_driver_torch_is_not_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError):
        choose_ranks("auto", 2)
    monkeypatch.setattr(local_ranks, "DRIVERS", ("/dev/no-such-driver",))
    assert choose_ranks("auto", 2) == ("cpu", 2)


@pytest.mark.parametrize(
    ("gpus", "device", "wanted", "expected"),
    [
        (0, "auto", None, ("cpu", 1)),
        (0, "auto", 3, ("cpu", 3)),
        (8, "auto", None, ("cuda", 8)),
        (8, "cuda", 2, ("cuda", 2)),
        (8, "cpu", None, ("cpu", 1)),
        (8, "cpu", 9, ("cpu", 9)),
    ],
)
def test_a_rank_per_gpu_or_as_many_as_are_wanted(
    monkeypatch: pytest.MonkeyPatch, gpus: int, device: str, wanted: int | None, expected: tuple[str, int]
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert choose_ranks(device, wanted) == expected


@pytest.mark.parametrize(
    ("gpus", "device", "wanted", "key"), [(0, "cuda", None, "launch.device"), (8, "auto", 9, "launch.nproc_per_node")]
)
def test_what_is_not_there_is_refused_by_its_name(
    monkeypatch: pytest.MonkeyPatch, gpus: int, device: str, wanted: int | None, key: str
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    with pytest.raises(ConfigError, match=f"^{key}=.*launch.device=cpu"):
        choose_ranks(device, wanted, LAUNCH_KEYS)


def test_a_plan_may_have_more_ranks_than_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    assert choose_ranks("auto", 64, LAUNCH_KEYS, only_planned=True) == ("cuda", 64)
