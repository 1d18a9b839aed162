"""Batches arrive on a GPU complete and in order, while earlier ones are still in use."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from swinv2_train.data.batch import Batch, Ragged, tensors
from swinv2_train.data.device import on_device

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]
CUDA = torch.device("cuda", 0)


def batches(count: int) -> Iterator[Batch]:
    for number in range(count):
        generator = torch.Generator().manual_seed(number)
        images = torch.randint(0, 256, (16, 3, 256, 256), dtype=torch.uint8, generator=generator)
        boxes = Ragged([torch.full((5, 4), float(number)), torch.zeros(0, 4)])
        yield {"image": images.pin_memory(), "boxes": boxes.pin_memory(), "broken": [(number, "a", "b")]}


def test_copies_on_another_stream_arrive_before_they_are_used() -> None:
    """The device is kept busy, so that a copy that nobody waited for, or memory that was reused, would be seen."""
    busy = torch.randn(2048, 2048, device=CUDA)
    sums = []
    for number, batch in enumerate(on_device(batches(40), CUDA)):
        assert {tensor.device for tensor in tensors(batch)} == {CUDA}
        assert batch["broken"] == [(number, "a", "b")]
        for _ in range(10):
            busy = (busy @ busy).clamp(-1, 1)
        sums.append(batch["image"].long().sum() + batch["boxes"][0].long().sum())
    expected = [int(batch["image"].long().sum()) + 20 * number for number, batch in enumerate(batches(40))]
    assert torch.stack(sums).tolist() == expected


def test_one_batch_is_taken_in_advance() -> None:
    taken: list[int] = []

    def each() -> Iterator[Batch]:
        for number, batch in enumerate(batches(3)):
            taken.append(number)
            yield batch

    moved = on_device(each(), CUDA)
    seen = []
    for batch in moved:
        seen.append((batch["broken"][0][0], len(taken)))
    assert seen == [(0, 2), (1, 3), (2, 3)]


def test_entries_that_stay_on_the_host_are_moved_in_parts() -> None:
    for number, batch in enumerate(on_device(batches(3), CUDA, ("image",))):
        assert (batch["image"].device.type, batch["image"].is_pinned()) == ("cpu", True)
        parts = [part.to(CUDA, non_blocking=True).long().sum() for part in batch["image"].split(5)]
        assert batch["boxes"][0].device == CUDA
        assert int(sum(parts)) == int(list(batches(3))[number]["image"].long().sum())
