"""Stop anywhere, go on with any number of ranks: every sample that the order plans is consumed once, and no other."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from swinv2_train.data.order import SampleOrder
from swinv2_train.data.raw_sample import RawSample
from swinv2_train.data.sample import Sample
from swinv2_train.data.transform import Transform
from swinv2_train.engine.state import TrainState
from tests.data.loaders import train_loader


class NumberedSamples:
    """Stands for a set of shards; the picture of sample i is one pixel that says i."""

    remote = False

    def __init__(self, num_samples: int) -> None:
        self.num_samples = num_samples
        self.parts = SimpleNamespace(samples=0)

    def read(self, index: int, members: Sequence[str]) -> RawSample:
        buffer = io.BytesIO()
        Image.new("RGB", (1, 1), (index >> 8, index & 255, 7)).save(buffer, "PNG")
        return RawSample(str(index), "png", {"image": buffer.getvalue()})

    def name(self, index: int) -> str:
        return str(index)

    def declare(self, members: Sequence[str]) -> None:
        pass

    def close(self) -> None:
        pass


class ReadNumber(Transform):
    """The number that the pixel says."""

    def __call__(self, sample: Sample, rng: np.random.Generator) -> dict[str, torch.Tensor]:
        high, low, _ = (int(value) for value in sample.image.flatten())
        return {"index": torch.tensor(high * 256 + low)}


@dataclass(frozen=True)
class Part:
    """A stretch of a run between two starts."""

    steps: int
    world_size: int
    micro_batch: int
    avoid_after: tuple[int, ...] = ()
    """A rollback at its end: batches, counted from the next one on, that are left out for good."""


def divisors(number: int) -> list[int]:
    return [size for size in range(1, number + 1) if number % size == 0]


@st.composite
def parts(draw: st.DrawFn, global_batch: int) -> Part:
    world_size = draw(st.sampled_from(divisors(global_batch)))
    micro_batch = draw(st.sampled_from(divisors(global_batch // world_size)))
    return Part(draw(st.integers(0, 5)), world_size, micro_batch, tuple(draw(st.sets(st.integers(0, 6), max_size=3))))


@st.composite
def runs(draw: st.DrawFn) -> tuple[int, int, list[Part]]:
    """(samples in the data set, global batch, parts of the run)."""
    global_batch = draw(st.integers(1, 12))
    return draw(st.integers(1, 90)), global_batch, draw(st.lists(parts(global_batch), min_size=1, max_size=4))


def read_part(
    order: SampleOrder, global_batch: int, part: Part, state: TrainState, workers: int
) -> list[list[tuple[int, int]]]:
    """Return what the ranks of a part consume, step by step: (position, sample) in rank order."""
    steps: list[list[tuple[int, int]]] = [[] for _ in range(part.steps)]
    accumulation = global_batch // part.world_size // part.micro_batch
    for rank in range(part.world_size):
        loader = train_loader(
            NumberedSamples(order.num_samples),  # type: ignore[arg-type]
            order,
            ReadNumber(),
            global_batch=global_batch,
            micro_batch=part.micro_batch,
            rank=rank,
            world_size=part.world_size,
            start_batch=state.batch,
            avoid=state.avoided_batches,
            num_workers=workers,
        )
        for step in steps:
            for _ in range(accumulation):
                batch: dict[str, Any] = next(loader)
                assert batch["broken"] == []
                step += zip(batch["position"].tolist(), batch["index"].tolist(), strict=True)
        loader.close()
    return steps


def check(num_samples: int, global_batch: int, run: list[Part], workers: int = 0) -> None:
    """Play a run in parts and compare what it consumed with the plan."""
    order = SampleOrder(num_samples, seed=5, shuffle_samples=16, block_samples=4)
    state, consumed = TrainState(), []
    avoided: set[int] = set()
    for part in run:
        consumed += read_part(order, global_batch, part, state, workers)
        state.step += part.steps
        # A rollback leaves out batches from the present one on; those before it are part of the run.
        ahead = {state.batch + offset for offset in part.avoid_after}
        avoided |= ahead
        state.avoid(sorted(ahead))

    planned = [batch for batch in range(len(consumed) + len(avoided)) if batch not in avoided][: len(consumed)]
    for batch, step in zip(planned, consumed, strict=True):
        positions = range(batch * global_batch, (batch + 1) * global_batch)
        assert step == [(position, order.at(position)[1]) for position in positions]

    # Whole epochs that no avoided batch reaches into hold each sample exactly once.
    by_epoch: dict[int, Counter[int]] = {}
    for position, index in (entry for step in consumed for entry in step):
        by_epoch.setdefault(position // num_samples, Counter())[index] += 1
    end = (planned[-1] + 1) * global_batch if planned else 0
    left_out = {position for batch in avoided for position in range(batch * global_batch, (batch + 1) * global_batch)}
    for epoch in range(end // num_samples):
        if left_out.isdisjoint(range(epoch * num_samples, (epoch + 1) * num_samples)):
            assert by_epoch[epoch] == Counter(range(num_samples))
        else:
            assert all(count == 1 for count in by_epoch.get(epoch, Counter()).values())


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(runs())
@example((7, 6, [Part(3, 2, 3, (0, 1)), Part(0, 6, 1, (2,)), Part(5, 3, 1), Part(2, 1, 6)]))
def test_no_stop_and_no_number_of_ranks_loses_or_repeats_a_sample(run: tuple[int, int, list[Part]]) -> None:
    check(*run)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("num_samples", "global_batch", "run"),
    [
        (31, 12, [Part(4, 1, 4), Part(3, 2, 6)]),
        (10, 4, [Part(3, 2, 1, (0, 2)), Part(4, 1, 4)]),
    ],
    ids=["more ranks", "rollback"],
)
def test_nor_do_worker_processes(num_samples: int, global_batch: int, run: list[Part]) -> None:
    check(num_samples, global_batch, run, workers=2)
