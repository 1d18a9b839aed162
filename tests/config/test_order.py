from __future__ import annotations

from typing import Any

import pytest

from swinv2_train.config.compose import compose
from swinv2_train.config.errors import ConfigError
from swinv2_train.config.order import check_order, fill_in_order
from swinv2_train.data.lanes import LaneOrder

EARLIER = {"seed": 0, "data.shuffle_samples": 131072, "data.shards": "x"}
"""Section `order` of the checkpoints of earlier versions."""


def filled(*overrides: str, saved: dict[str, Any] | None = None) -> tuple[str | None, int | None, int | None]:
    config = compose(list(overrides))
    check_order(config)
    fill_in_order(config, saved)
    check_order(config)
    before = config.data.order, config.data.lanes, config.data.block_samples
    fill_in_order(config, saved)
    assert (config.data.order, config.data.lanes, config.data.block_samples) == before
    return before


@pytest.mark.parametrize(
    ("batch", "lanes"), [(2048, 64), (9216, 64), (1024, 64), (96, 48), (6, 3), (2, 1), (7, 1), (1, 1), (254, 1)]
)
def test_a_new_run_has_as_many_lanes_as_its_batch_allows(batch: int, lanes: int) -> None:
    assert filled(f"optim.global_batch={batch}") == ("lanes", lanes, 16)
    LaneOrder(100, 0, lanes=lanes).share(0, batch, 0, 1)


@pytest.mark.parametrize(("batch", "repeats", "lanes"), [(1024, 4, 64), (96, 3, 16), (96, 7, 1)])
def test_repeats_of_a_sample_stay_in_a_lane(batch: int, repeats: int, lanes: int) -> None:
    config = compose(["task=classification", "task.num_classes=2", f"optim.global_batch={batch}"])
    config.task.repeats = repeats
    fill_in_order(config, None)
    assert config.data.lanes == lanes
    LaneOrder(100, 0, lanes=lanes, repeats=repeats).share(0, batch, 0, 1)


def test_a_run_keeps_the_order_it_began_with() -> None:
    assert filled(saved=EARLIER) == ("groups", 1, 4096)
    assert filled("data.shuffle_samples=20", saved=EARLIER) == ("groups", 1, 1)
    assert filled(saved={}) == ("groups", 1, 4096)
    begun = EARLIER | {"data.order": "lanes", "data.lanes": 8, "data.block_samples": 5}
    assert filled(saved=begun) == ("lanes", 8, 5)
    assert filled("data.order=groups", saved=begun)[0] == "groups"  # and refused by the check of the run
    assert filled("replay=a/file.json") == ("groups", 1, 4096)  # of a run whose config records no order


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["data.order=random"], "data.order=random"),
        (["data.lanes=0"], "data.lanes=0"),
        (["data.block_samples=0"], "data.block_samples=0"),
        (["data.order=groups", "data.lanes=4"], "data.lanes=4: needs data.order=lanes"),
        (["data.lanes=5", "optim.global_batch=96"], "data.lanes=5: must divide half of the samples .* below is 4$"),
        (["data.lanes=2", "optim.global_batch=7"], "data.lanes=2: must divide half of the samples .* below is 1$"),
    ],
)
def test_contradictions_are_named(overrides: list[str], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        filled(*overrides)
