"""Stacked and ragged entries: collated, passed between processes, selected, and moved."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data._utils.pin_memory import pin_memory

from swinv2_train.data.batch import Ragged, collate, select, share_memory, to_device
from swinv2_train.data.errors import DataError
from swinv2_train.data.order import SampleOrder
from swinv2_train.data.sample import Sample
from swinv2_train.data.shards import ShardSet
from swinv2_train.data.transform import Transform
from tests.data.loaders import eval_loader, train_loader
from tests.data.samples import write_shards


class Objects(Transform):
    """A sample with as many boxes and masks as it draws, also none, and a text."""

    ragged = ("boxes", "masks", "text")

    def __call__(self, sample: Sample, rng: np.random.Generator) -> dict[str, Any]:
        count = int(rng.integers(0, 4))
        boxes = torch.from_numpy(rng.random((count, 4), dtype=np.float32))
        masks = torch.from_numpy(rng.random((count, 5, 6)) < 0.5)
        return {"image": sample.image[:, :8, :8], "boxes": boxes, "masks": masks, "text": f"{count} in {sample.key}"}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    folder = tmp_path_factory.mktemp("ragged")
    write_shards(folder, [12], broken=[5])
    return ShardSet.open(str(folder), folder / "cache")


def assert_same(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        if isinstance(value, Tensor):
            assert torch.equal(value, theirs[name]), name
        elif isinstance(value, Ragged):
            assert len(value) == len(theirs[name])
            for a, b in zip(value, theirs[name], strict=True):
                assert (torch.equal(a, b) and a.dtype == b.dtype) if isinstance(a, Tensor) else a == b, name
        else:
            assert value == theirs[name], name


def read(shards: ShardSet, workers: int) -> list[dict[str, Any]]:
    order = SampleOrder(shards.num_samples, seed=1, shuffle_samples=8, block_samples=4)
    loader = train_loader(shards, order, Objects(), global_batch=8, micro_batch=4, num_workers=workers)
    batches = [next(loader) for _ in range(6)]
    loader.close()
    return batches


def test_ragged_entries_pass_through_workers(shards: ShardSet) -> None:
    alone = read(shards, 0)
    for batch in alone:
        for boxes, masks, text in zip(batch["boxes"], batch["masks"], batch["text"], strict=True):
            assert len(boxes) == len(masks) == int(text.split()[0])
    counts = {len(boxes) for batch in alone for boxes in batch["boxes"]}
    assert counts == {0, 1, 2, 3}
    assert any(batch["broken"] for batch in alone)
    for workers in (1, 2):
        made = read(shards, workers)
        for ours, theirs in zip(made, alone, strict=True):
            assert_same(ours, theirs)
        # Put there by the worker, whose failures are reported, and in one piece: each takes a file descriptor.
        assert all(batch["masks"][0].is_shared() for batch in made if batch["masks"][0].numel())
        storages = {mask.untyped_storage().data_ptr() for mask in made[0]["masks"] if mask.numel()}
        assert len(storages) == 1


def test_ragged_entries_of_an_evaluation_are_padded_like_the_others(shards: ShardSet) -> None:
    batches = list(eval_loader(shards, Objects(), micro_batch=5))
    assert [len(batch["boxes"]) for batch in batches] == [5, 5, 5]
    assert batches[1]["valid"].tolist() == [False, True, True, True, True]
    assert batches[1]["text"][0] == batches[1]["text"][1]
    assert batches[2]["valid"].tolist() == [True, True, False, False, False]


def test_any_selection_of_samples_is_the_batch_of_these_samples() -> None:
    samples = [
        {
            "image": torch.full((1, 2, 2), n, dtype=torch.uint8),
            "boxes": torch.arange(4.0 * n).view(n, 4),
            "text": "x" * n,
        }
        for n in (2, 0, 3, 1)
    ]
    ragged = ("boxes", "text")
    batch = collate(samples, ragged=ragged) | {"broken": [(1, "a", "b")]}
    valid = torch.tensor([True, False, True, True])
    for chosen, expected in (
        ([3, 0, 0], [3, 0, 0]),
        (torch.tensor([2]), [2]),
        (valid, [0, 2, 3]),
        (range(4), range(4)),
    ):
        assert_same(select(batch, chosen), collate([samples[n] for n in expected], ragged=ragged))
    nothing = select(batch, [])
    assert (len(nothing["image"]), len(nothing["boxes"])) == (0, 0)
    assert "broken" not in nothing
    whole = select(select(batch, [1, 3]), [1])
    assert whole["text"][0] == "x"
    assert torch.equal(whole["boxes"][0], samples[3]["boxes"])


def test_ragged_entries_move_with_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    boxes = [torch.ones(2, 4), torch.zeros(0, 4)]
    batch = {"image": torch.zeros(2, 1), "boxes": Ragged(boxes), "text": Ragged(["a", "b"]), "broken": [(0, "x", "y")]}
    moved = to_device(batch, torch.device("meta"))
    assert [box.device.type for box in moved["boxes"]] == ["meta", "meta"]
    assert [box.shape for box in moved["boxes"]] == [(2, 4), (0, 4)]
    assert list(moved["text"]) == ["a", "b"]
    assert moved["broken"] == batch["broken"]
    share_memory(batch)
    assert batch["image"].is_shared()
    assert batch["boxes"][0].is_shared()
    assert_same(pickle.loads(pickle.dumps(batch)), batch)
    # The thread of the loader that pins batches finds the entry by its method.
    pinned: list[tuple[int, ...]] = []
    monkeypatch.setattr(Tensor, "pin_memory", lambda self: (pinned.append(tuple(self.shape)), self.clone())[1])
    assert_same(pin_memory(batch), batch)
    assert pinned == [(2, 1), (8,)]


def test_only_images_are_scaled_to_the_depth_of_others() -> None:
    narrow = {"image": torch.tensor([[[3]]], dtype=torch.uint8), "labels": torch.tensor([[3]], dtype=torch.uint8)}
    wide = {"image": torch.tensor([[[700]]], dtype=torch.uint16), "labels": torch.tensor([[700]], dtype=torch.uint16)}
    batch = collate([narrow, wide])
    assert batch["image"].flatten().tolist() == [771, 700]
    assert batch["labels"].flatten().tolist() == [3, 700]
    assert batch["image"].dtype == batch["labels"].dtype == torch.uint16
    assert collate([narrow, wide], images=("image", "labels"))["labels"].flatten().tolist() == [771, 700]
    assert collate([narrow, narrow])["labels"].dtype == torch.uint8
    ragged = collate([narrow, wide], ragged=("image", "labels"))
    assert [value.item() for value in ragged["image"]] == [771, 700]
    assert [value.item() for value in ragged["labels"]] == [3, 700]
    assert ragged["labels"].nbytes == 4


@pytest.mark.parametrize(
    ("first", "second", "ragged", "message"),
    [
        (
            torch.zeros(2, 4),
            torch.zeros(3, 4),
            (),
            r"boxes differs in shape .*\(2, 4\) and \(3, 4\).*Transform",
        ),
        ("a", "b", (), r"entry boxes is not a tensor: name it in Transform\.ragged"),
        (
            torch.zeros(1),
            torch.zeros(1, dtype=torch.int64),
            ("boxes",),
            r"one type, not torch\.float32, torch\.int64",
        ),
        (torch.zeros(1), "a", ("boxes",), "of one type, not tensors and other values"),
    ],
)
def test_entries_that_do_not_fit_are_named(first: Any, second: Any, ragged: tuple[str, ...], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        collate([{"boxes": first}, {"boxes": second}], ragged=ragged)


class Stepwise(Transform):
    """The number of the global batch, from which a task draws what its samples share."""

    def __call__(self, sample: Sample, rng: np.random.Generator) -> dict[str, Any]:
        return {"step": torch.tensor(sample.batch), "at": torch.tensor(sample.position)}


@pytest.mark.parametrize(("repeats", "start"), [(1, 0), (2, 0), (1, 3), (2, 6)])
def test_a_transform_knows_the_position_and_the_step_of_its_sample(tmp_path: Path, repeats: int, start: int) -> None:
    """Also after a change of the global batch at any position."""
    write_shards(tmp_path, [5])
    shards = ShardSet.open(str(tmp_path), tmp_path / "cache")
    order = SampleOrder(shards.num_samples, seed=1, repeats=repeats)
    loader = train_loader(shards, order, Stepwise(), global_batch=4, micro_batch=2, first_position=start)
    for first in range(start, start + 12, 2):
        batch = next(loader)
        assert batch["at"].tolist() == batch["position"].tolist() == [first, first + 1]
        assert batch["step"].tolist() == [start // 4 + (first - start) // 4] * 2
    loader.close()
    (batch,) = eval_loader(shards, Stepwise(), micro_batch=5)
    assert batch["at"].tolist() == batch["position"].tolist()
    assert not batch["step"].any()


class Unequal(Transform):
    def __call__(self, sample: Sample, rng: np.random.Generator) -> dict[str, Any]:
        return {"boxes": torch.zeros(int(sample.key[-1]), 4)}


def test_a_transform_that_forgets_to_declare_an_entry_is_told_so(tmp_path: Path) -> None:
    write_shards(tmp_path, [3])
    loader = eval_loader(ShardSet.open(str(tmp_path), tmp_path / "cache"), Unequal(), micro_batch=3)
    with pytest.raises(DataError, match=r"the transform of samples 0 to 2 failed: ValueError: the entry boxes differs"):
        next(iter(loader))
