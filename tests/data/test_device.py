"""Batches on their way to the device. Copies to a GPU are in tests/gpu/test_copies.py."""

from __future__ import annotations

import torch

from swinv2_train.data.batch import Ragged, tensors
from swinv2_train.data.device import on_device


def batches(count: int) -> list[dict[str, object]]:
    return [
        {"image": torch.full((2, 3), n, dtype=torch.uint8), "boxes": Ragged([torch.ones(n, 4), torch.zeros(1, 4)]),
         "text": Ragged(["a", "b"]), "broken": []}
        for n in range(count)
    ]  # fmt: skip


def test_without_a_gpu_batches_pass_unchanged_and_none_is_taken_in_advance() -> None:
    taken: list[int] = []

    def each() -> object:
        for number, batch in enumerate(batches(3)):
            taken.append(number)
            yield batch

    moved = on_device(each(), torch.device("cpu"))
    for number in range(3):
        batch = next(moved)
        assert taken == list(range(number + 1))
        assert batch["image"].tolist() == [[number] * 3] * 2
        assert batch["image"].dtype == torch.uint8
        assert [len(box) for box in batch["boxes"]] == [number, 1]
        assert batch["broken"] == []
    assert next(moved, None) is None
    assert list(on_device([], torch.device("cpu"))) == []


def test_every_tensor_of_a_batch_is_found_and_moves() -> None:
    batch = batches(2)[1]
    assert [tuple(tensor.shape) for tensor in tensors(batch)] == [(2, 3), (8,)]
    (moved,) = on_device([batch], torch.device("meta"))
    assert {tensor.device.type for tensor in tensors(moved)} == {"meta"}
    (moved,) = on_device([batch], torch.device("meta"), ("image", "text"))
    assert [tensor.device.type for tensor in tensors(moved)] == ["cpu", "meta"]
