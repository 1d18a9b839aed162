"""Before a step, the ranks agree a step ahead on weights, stop requests, and failures; one small sum for all of it."""

from __future__ import annotations

import json
import math
import os
import re
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from swinv2_train.data.errors import DataError
from swinv2_train.engine.feed import Feed, StepInput
from swinv2_train.errors import LostRanks, RunError
from swinv2_train.exit_codes import FAILED
from swinv2_train.launch.ranks import Ranks, join, leave
from tests.engine.apart import Apart

ACCUMULATION, STEPS = 2, 5
TASK: Any = SimpleNamespace(
    config=SimpleNamespace(task=SimpleNamespace(terms=lambda: {"near": 1.0, "far": 0.5})),
    weights=lambda batch: {"near": float(len(batch["position"])), "far": float(batch["pixels"].sum())},
)


class Loader:
    """Micro-batches of one sample; its number of pixels depends on step, rank, and micro-batch."""

    def __init__(self, rank: int, step: int = 1, fails: int = 0, broken: int = 0) -> None:
        self.rank, self.fails, self.broken = rank, fails, broken
        self.next, self.closed = ACCUMULATION * (step - 1), False

    def __iter__(self) -> Loader:
        return self

    def __next__(self) -> dict[str, Any]:
        step, index = self.next // ACCUMULATION + 1, self.next % ACCUMULATION
        if step == self.fails:
            raise DataError("the shard train-7.tar is gone")
        self.next += 1
        lines = [(step, "train-0.tar/cat", "half an image")] if step == self.broken and index == 0 else []
        pixels = torch.tensor([float(pixels_of(step, self.rank, index))])
        return {"position": torch.tensor([self.next]), "pixels": pixels, "broken": lines}

    def close(self) -> None:
        self.closed = True


def pixels_of(step: int, rank: int, index: int) -> int:
    return 1000 * step + 10 * rank**2 + index


def weights_of(step: int, world_size: int) -> list[float]:
    """The summed weights of a step."""
    pixels = [pixels_of(step, rank, index) for rank in range(world_size) for index in range(ACCUMULATION)]
    return [float(world_size * ACCUMULATION), float(sum(pixels))]


def all_weights(ranks: Ranks, count: int) -> list[list[float]]:
    return [weights_of(step, ranks.world_size) for step in range(1, count + 1)]


def opened(ranks: Ranks, **loader: int) -> tuple[Feed, SimpleNamespace]:
    stop = SimpleNamespace(requested=False)
    return Feed(Loader(ranks.rank, **loader), ACCUMULATION, TASK, ranks, stop), stop  # type: ignore[arg-type]


def nothing(step: int) -> None:
    pass


def take_steps(feed: Feed, count: int, before: Any = nothing, after: Any = nothing) -> list[StepInput]:
    """Go through steps as the loop does; `before` and `after` are called around the moment of the sum."""
    taken = []
    for step in range(1, count + 1):
        taken.append(feed.take())
        if taken[-1].stops:
            break
        if step < count:
            feed.fetch()
        before(step)
        feed.begin()
        after(step)
    return taken


def go_through_steps() -> None:
    """Unequal weights, a broken sample on the last rank; another collective on the same group while a sum goes on."""
    ranks = join("cpu", 1.0)
    last = ranks.rank == ranks.world_size - 1
    feed, _ = opened(ranks, broken=3 if last else 0)
    steps = take_steps(feed, STEPS, after=lambda step: ranks.sum([float(step)]) + ranks.gather(step))
    assert [step.global_weights for step in steps] == [
        weights_of(step, ranks.world_size) for step in range(1, STEPS + 1)
    ]
    assert [step.num_broken for step in steps] == [0, 0, 1, 0, 0]
    assert [len(step.broken) for step in steps] == [0, 0, int(last), 0, 0]
    assert not any(step.stops for step in steps)
    feed.close()
    start_over(ranks)
    ranks.barrier()
    leave()


def start_over(ranks: Ranks) -> None:
    """As after a rollback: what is under way is forgotten, also a failure of one rank."""
    feed, _ = opened(ranks, fails=3 if ranks.is_main else 0)
    assert [step.global_weights for step in take_steps(feed, 2)] == all_weights(ranks, 2)
    feed.fetch()
    feed.begin()
    feed.drain()
    feed.close()
    feed, _ = opened(ranks, step=2)
    assert feed.take().global_weights == weights_of(2, ranks.world_size)


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_weights_of_all_ranks_step_by_step_and_after_a_new_start(tmp_path: Path, world_size: int) -> None:
    with Apart(tmp_path) as ranks:
        ranks.start_ranks(world_size, go_through_steps)
        assert ranks.exit_codes() == [0] * world_size, "".join(map(ranks.output, range(world_size)))


def stop_one(result: str) -> None:
    """A request on one rank: in step 2 before its sum, in step 2 after it, before everything, and in the last step."""
    ranks, found = join("cpu", 1.0), []
    for moment, step in (("before", 2), ("after", 2), ("start", 0), ("after", STEPS)):
        feed, stop = opened(ranks)

        def request(now: int, stop: Any = stop, step: int = step) -> None:
            stop.requested = stop.requested or (now == step and ranks.rank == ranks.world_size - 1)

        stop.requested = moment == "start" and ranks.rank == ranks.world_size - 1
        steps = take_steps(feed, STEPS, **({moment: request} if moment != "start" else {}))
        found.append([step.stops for step in steps])
        feed.drain()
        feed.close()
    everyone = ranks.gather(found)
    if ranks.is_main:
        Path(result).write_text(json.dumps(everyone))
    ranks.barrier()
    leave()


@pytest.mark.parametrize("world_size", [1, 3])
def test_a_stop_request_on_one_rank_stops_all_before_the_same_step(tmp_path: Path, world_size: int) -> None:
    with Apart(tmp_path) as ranks:
        ranks.start_ranks(world_size, stop_one, str(tmp_path / "found.json"))
        assert ranks.exit_codes() == [0] * world_size, ranks.output(0)
    everyone = json.loads((tmp_path / "found.json").read_text())
    goes, stops = False, True
    assert everyone == [[[goes] * 2 + [stops], [goes] * 3 + [stops], [stops], [goes] * STEPS]] * world_size


def fail_to_read(result: str) -> None:
    """The last rank cannot read the batches of step 3, while step 2 runs."""
    ranks = join("cpu", 1.0)
    feed, _ = opened(ranks, fails=3 if ranks.rank == ranks.world_size - 1 else 0)
    assert len(take_steps(feed, 2)) == 2
    feed.fetch()
    feed.begin()
    try:
        feed.take()
    except RunError as error:
        everyone = ranks.gather([type(error).__name__, str(error), error.exit_code])
        if ranks.is_main:
            Path(result).write_text(json.dumps(everyone))
    ranks.barrier()
    leave()


@pytest.mark.parametrize("world_size", [1, 3])
def test_a_rank_that_cannot_read_ends_all_of_them_after_the_current_step(tmp_path: Path, world_size: int) -> None:
    with Apart(tmp_path) as ranks:
        ranks.start_ranks(world_size, fail_to_read, str(tmp_path / "found.json"))
        assert ranks.exit_codes() == [0] * world_size, ranks.output(0)
    first, *others = json.loads((tmp_path / "found.json").read_text())
    place = "" if world_size == 1 else "rank 2: "
    assert first == ["RunError", f"{place}the shard train-7.tar is gone", FAILED]
    assert [(kind, code) for kind, _, code in others] == [("MainRankError", FAILED)] * (world_size - 1)


def lose_one(moment: str) -> None:
    ranks = join("cpu", 1.0)
    feed, _ = opened(ranks)
    take_steps(feed, 2)
    feed.fetch()
    if moment == "after":
        feed.begin()
    if ranks.rank == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    if moment == "before":
        feed.begin()
    try:
        feed.take()
        ranks.barrier()
    except LostRanks as error:
        print(error, flush=True)
        os._exit(FAILED)


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_rank_that_died_is_one_sentence_in_each_of_the_others(tmp_path: Path, moment: str) -> None:
    """Also in those that exchange nothing with it: the end of one ends the next."""
    with Apart(tmp_path) as ranks:
        ranks.start_ranks(4, lose_one, moment)
        assert ranks.exit_codes() == [FAILED] * 3 + [-signal.SIGKILL]
        for rank in range(3):
            expected = rf"rank {rank} lost contact with another rank \(.*(closed|reset) by peer.*\): the remaining .*"
            assert re.fullmatch(expected, ranks.output(rank).strip().splitlines()[-1])


def wait_for_one() -> None:
    """Rank 1 never begins the sum; the others give up after the time limit of collectives."""
    ranks = join("cpu", 0.05)
    if ranks.rank == 1:
        signal.pause()
    pending = ranks.begin_sum([1.0])
    print(re.sub(r"\d+ s", "N s", ranks.last_collective), flush=True)
    try:
        pending.result()
    except LostRanks as error:
        print(error, flush=True)
    os._exit(0)


@pytest.mark.slow
def test_a_rank_that_does_not_answer_is_lost_and_the_watchdog_can_see_it(tmp_path: Path) -> None:
    with Apart(tmp_path) as ranks:
        ranks.start_ranks(2, wait_for_one)
        ranks.processes[0].join(90)
        first, second = ranks.output(0).strip().splitlines()[-2:]
    assert first == "none yet; in the background: sum ahead number 1, begun N s ago, not finished"
    assert second.startswith("rank 0 lost contact with another rank (Timed out waiting 3000ms")


def count_messages(result: str) -> None:
    """Count what a rank sends in each step, and every other call of torch.distributed."""
    ranks, counts = join("cpu", 1.0), {"isend": 0, "irecv": 0, "collective": 0}

    def counted(name: str, kind: str) -> None:
        function = getattr(dist, name)

        def call(*arguments: Any, **keywords: Any) -> Any:
            counts[kind] += 1
            return function(*arguments, **keywords)

        setattr(dist, name, call)

    for kind in ("isend", "irecv"):
        counted(kind, kind)
    for name in ("all_reduce", "barrier", "all_gather_object", "broadcast_object_list", "send", "recv"):
        counted(name, "collective")
    feed, _ = opened(ranks)
    steps = take_steps(feed, STEPS)
    assert [step.global_weights for step in steps] == [
        weights_of(step, ranks.world_size) for step in range(1, STEPS + 1)
    ]
    found = dict(counts)
    everyone = ranks.gather(found)
    if ranks.is_main:
        Path(result).write_text(json.dumps(everyone))
    ranks.barrier()
    leave()


@pytest.mark.parametrize("world_size", [2, 3, 4, 8])
def test_messages_of_a_step_grow_with_the_logarithm_of_the_ranks(tmp_path: Path, world_size: int) -> None:
    with Apart(tmp_path) as ranks:
        ranks.start_ranks(world_size, count_messages, str(tmp_path / "found.json"))
        assert ranks.exit_codes() == [0] * world_size, ranks.output(0)
    everyone = json.loads((tmp_path / "found.json").read_text())
    assert max(found["isend"] for found in everyone) == STEPS * math.ceil(math.log2(world_size))
    assert sum(found["isend"] for found in everyone) == sum(found["irecv"] for found in everyone)
    assert all(found["collective"] == 0 for found in everyone)
