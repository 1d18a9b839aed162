"""Work that goes wrong on a rank ends all of them, whatever kind of sentence it ends in, and leaves nobody waiting."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from swinv2_train.checkpoint.errors import CheckpointError
from swinv2_train.config.errors import ConfigError
from swinv2_train.data.errors import DataError
from swinv2_train.errors import MainRankError, RunError
from swinv2_train.launch.failures import on_main, together
from tests.engine.threads import on_ranks

ERRORS = [
    ConfigError("", "x", "wrong"),
    DataError("wrong"),
    CheckpointError("wrong"),
    RunError("wrong"),
    OSError("wrong"),
]


@pytest.mark.parametrize("agree", [on_main, together])
@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_what_goes_wrong_on_the_main_rank_ends_the_others(agree: Callable[..., Any], error: Exception) -> None:
    def on_rank(ranks: Any) -> BaseException | None:
        def work() -> None:
            if ranks.is_main:
                raise error

        try:
            agree(ranks, work)
        except (type(error), MainRankError) as caught:
            return caught
        return None

    main, other = on_ranks(2, on_rank)
    assert main is error
    assert isinstance(other, MainRankError)
    assert "wrong" in str(other)


def test_what_goes_well_is_the_result() -> None:
    assert on_ranks(2, lambda ranks: on_main(ranks, lambda: ranks.rank)) == [0, None]
    assert on_ranks(2, lambda ranks: together(ranks, lambda: ranks.rank)) == [0, 1]


def test_an_error_of_another_rank_is_reported_by_the_main_rank() -> None:
    def on_rank(ranks: Any) -> str:
        def work() -> None:
            if not ranks.is_main:
                raise DataError("no such shard")

        with pytest.raises(RunError) as caught:
            together(ranks, work)
        return f"{type(caught.value).__name__}: {caught.value}"

    assert on_ranks(2, on_rank) == ["RunError: rank 1: no such shard", "MainRankError: no such shard"]
