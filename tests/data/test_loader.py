from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from swinv2_train.config.schema import AugmentConfig
from swinv2_train.data.augment import eval_crop
from swinv2_train.data.errors import DataError
from swinv2_train.data.loader import EvalLoader, TrainLoader
from swinv2_train.data.order import SampleOrder, sample_rng
from swinv2_train.data.sample import Sample
from swinv2_train.data.shards import ShardSet
from swinv2_train.data.transform import Transform
from tests.data.crops import train_crop
from tests.data.loaders import eval_loader, train_loader
from tests.data.samples import encoded, pixels, write_shards, write_tar

N = 50
BATCH = 12


class Crop(Transform):
    """A transform with randomness in pixels and in numbers, as that of a task."""

    def __call__(self, sample: Sample, rng: np.random.Generator) -> dict[str, Tensor]:
        crop = train_crop(sample.image, (16, 16), AugmentConfig(), rng)
        return {"image": crop, "mask": torch.from_numpy(rng.permutation(4))}


class Center(Transform):
    def __call__(self, sample: Sample, rng: np.random.Generator) -> dict[str, Tensor]:
        crop = eval_crop(sample.image, (16, 16), 0.875, "center", "bilinear")
        return {"image": crop, "noise": torch.tensor(rng.random())}


class Plain(Transform):
    def __call__(self, sample: Sample, rng: np.random.Generator) -> dict[str, Tensor]:
        return {"image": sample.image}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    folder = tmp_path_factory.mktemp("shards")
    write_shards(folder, [20, 17, 13])
    return ShardSet.open(str(folder), folder / "cache")


def open_train(shards: ShardSet, **changes: Any) -> TrainLoader:
    settings: dict[str, Any] = {
        "global_batch": BATCH,
        "micro_batch": 3,
        "seed": 4,
    }
    transform: Transform = changes.pop("transform", Crop())
    order = SampleOrder(shards.num_samples, seed=9, shuffle_samples=16, block_samples=4)
    return train_loader(shards, order, transform, **(settings | changes))


def steps_of(
    loader: TrainLoader, count: int, global_batch: int = BATCH, world_size: int = 1
) -> Iterator[dict[str, Any]]:
    """This rank's share of `count` steps, micro-batches joined."""
    share = global_batch // world_size
    for _ in range(count):
        batches = []
        while sum(len(batch["position"]) for batch in batches) < share:
            batches.append(next(loader))
        yield {key: torch.cat([batch[key] for batch in batches]) for key in ("image", "mask", "position")} | {
            "broken": [entry for batch in batches for entry in batch["broken"]]
        }


def run(shards: ShardSet, count: int, world_size: int = 1, **changes: Any) -> list[dict[str, Any]]:
    """`count` steps over all ranks, joined in order of rank."""
    per_rank = []
    for rank in range(world_size):
        loader = open_train(shards, rank=rank, world_size=world_size, **changes)
        per_rank.append(list(steps_of(loader, count, world_size=world_size)))
        loader.close()
    joined = []
    for parts in zip(*per_rank, strict=True):
        step = {key: torch.cat([part[key] for part in parts]) for key in ("image", "mask", "position")}
        joined.append(step | {"broken": [entry for part in parts for entry in part["broken"]]})
    return joined


def assert_same(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> None:
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        for key in ("position", "mask", "image"):
            assert torch.equal(a[key], b[key]), key
        assert a["broken"] == b["broken"]


@pytest.fixture(scope="module")
def reference(shards: ShardSet) -> list[dict[str, Any]]:
    return run(shards, 6)


def test_a_step_holds_its_positions_in_order(reference: list[dict[str, Any]]) -> None:
    assert [step["position"].tolist() for step in reference] == [list(range(s * 12, s * 12 + 12)) for s in range(6)]
    assert reference[0]["image"].shape == (12, 3, 16, 16)
    assert reference[0]["image"].dtype == torch.uint8
    assert len({image.numpy().tobytes() for step in reference for image in step["image"]}) == 72


@pytest.mark.parametrize("num_workers", [1, 2])
@pytest.mark.parametrize("micro_batch", [3, 4])
def test_workers_and_micro_batches_change_nothing(
    shards: ShardSet, reference: list[dict[str, Any]], num_workers: int, micro_batch: int
) -> None:
    assert_same(run(shards, 6, num_workers=num_workers, micro_batch=micro_batch), reference)


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_ranks_change_nothing_even_if_there_are_more_of_them_than_shards(
    shards: ShardSet, reference: list[dict[str, Any]], world_size: int
) -> None:
    assert_same(run(shards, 6, world_size=world_size, micro_batch=1), reference)


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_resumed_run_goes_on_with_the_same_samples_on_other_ranks(
    shards: ShardSet, reference: list[dict[str, Any]], num_workers: int
) -> None:
    assert_same(run(shards, 2, world_size=2, start_batch=4, num_workers=num_workers), reference[4:])


def test_an_epoch_contains_every_sample_and_the_next_augments_differently(shards: ShardSet) -> None:
    class Key(Transform):
        def __call__(self, sample: Sample, rng: np.random.Generator) -> dict[str, Tensor]:
            return {"image": sample.image.float().mean(dim=(1, 2)), "mask": torch.tensor([rng.random()])}

    loader = open_train(shards, global_batch=10, micro_batch=10, transform=Key())
    epochs = [torch.cat([step["image"] for step in steps_of(loader, 5, 10)]) for _ in range(2)]
    assert len({tuple(row.tolist()) for row in epochs[0]}) == N
    assert sorted(map(tuple, epochs[0].tolist())) == sorted(map(tuple, epochs[1].tolist()))
    assert not torch.equal(epochs[0], epochs[1])


def test_another_seed_augments_otherwise_but_keeps_the_order(shards: ShardSet, reference: list[dict[str, Any]]) -> None:
    (other,) = run(shards, 1, seed=5)
    assert torch.equal(other["position"], reference[0]["position"])
    assert not torch.equal(other["image"], reference[0]["image"])


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    folder = tmp_path_factory.mktemp("damaged")
    write_shards(folder, [20, 17, 13], broken=[3, 21, 22, 49])
    return ShardSet.open(str(folder), folder / "cache")


@pytest.mark.slow
def test_broken_samples_are_replaced_reported_and_replaced_alike_everywhere(damaged: ShardSet) -> None:
    steps = run(damaged, 5)
    assert_same(run(damaged, 5, world_size=3, num_workers=1, micro_batch=2), steps)
    broken = [entry for step in steps for entry in step["broken"]]
    first_epoch = [entry for entry in broken if entry[0] < N]
    assert {key for _, key, _ in first_epoch} >= {
        "part-000000.tar/img00003",
        "part-000001.tar/img00021",
        "part-000001.tar/img00022",
        "part-000002.tar/img00049",
    }
    assert all(reason.startswith("jpeg: ") for _, _, reason in broken)
    order = SampleOrder(N, seed=9, shuffle_samples=16, block_samples=4)
    for position, key, _ in first_epoch:
        indices = [order.at(position)[1], *(order.replacement(position, attempt) for attempt in range(1, 4))]
        assert int(key[-5:]) in indices
    assert all(step["image"].shape == (12, 3, 16, 16) for step in steps)


def test_a_data_set_of_broken_samples_ends_in_one_sentence(tmp_path: Path) -> None:
    write_shards(tmp_path, [6], broken=range(6))
    shards = ShardSet.open(str(tmp_path), tmp_path / "cache")
    for num_workers in (0, 1):
        loader = open_train(shards, num_workers=num_workers)
        with pytest.raises(DataError, match=r"samples in a row are broken, the last of them part-000000\.tar/img0000"):
            next(loader)
        loader.close()
    with pytest.raises(
        DataError,
        match=r"none of the 6 evaluation samples can be used, the last of them part-000000\.tar/img00005 \(jpeg: ",
    ):
        next(iter(open_eval(shards)))


def test_other_numbers_of_channels_and_16_bit(tmp_path: Path) -> None:
    import imagecodecs

    wide = [imagecodecs.png_encode(pixels(n, 20, 20, 3, np.uint16)) for n in range(4)]
    narrow = [encoded(pixels(n, 20, 20), "PNG") for n in range(4, 8)]
    members = [(f"{n}.png", data) for n, data in enumerate([*wide, *narrow])]
    shards = ShardSet.open(str(write_tar(tmp_path / "s.tar", members)), tmp_path / "cache")
    batch = next(open_train(shards, global_batch=8, micro_batch=8, transform=Plain()))
    assert batch["image"].dtype == torch.uint16
    order = SampleOrder(8, seed=9, shuffle_samples=16, block_samples=4)
    for position, image in enumerate(batch["image"]):
        n = order.at(position)[1]
        expected = pixels(n, 20, 20, 3, np.uint16) if n < 4 else pixels(n, 20, 20).astype(np.uint16) * 257
        assert (image.permute(1, 2, 0).numpy() == expected).all()
    grey = next(open_train(shards, global_batch=8, micro_batch=8, channels=1, transform=Plain()))
    assert grey["image"].shape == (8, 1, 20, 20)


class Failing(Transform):
    def __call__(self, sample: Sample, rng: np.random.Generator) -> dict[str, Tensor]:
        raise KeyError("mask")


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_transform_that_fails_is_named_in_one_sentence_with_the_traceback_attached(
    shards: ShardSet, num_workers: int
) -> None:
    loader = open_train(shards, transform=Failing(), num_workers=num_workers)
    with pytest.raises(DataError) as caught:
        next(loader)
    assert str(caught.value) == "the transform of samples 0 to 2 failed: KeyError: 'mask'"
    assert "in __call__" in caught.value.__notes__[0]
    loader.close()


def test_a_batch_that_cannot_be_cut_is_refused(shards: ShardSet) -> None:
    with pytest.raises(DataError, match="12 does not divide into micro-batches of 5 on 1 ranks"):
        open_train(shards, micro_batch=5)
    with pytest.raises(DataError, match="on 5 ranks"):
        open_train(shards, micro_batch=1, world_size=5)


def open_eval(shards: ShardSet, **changes: Any) -> EvalLoader:
    return eval_loader(shards, Center(), **({"micro_batch": 4, "seed": 1} | changes))


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("num_samples", [None, 1, 8, 13, 1000])
def test_evaluation_sees_every_sample_once_in_equally_many_batches(
    shards: ShardSet, world_size: int, num_samples: int | None
) -> None:
    seen: dict[int, tuple[bytes, float]] = {}
    lengths = set()
    for rank in range(world_size):
        loader = open_eval(shards, rank=rank, world_size=world_size, num_samples=num_samples)
        batches = list(loader)
        lengths.add(len(batches))
        assert len(loader) == len(batches)
        for batch in batches:
            assert batch["image"].shape == (4, 3, 16, 16)
            for position, valid, image, noise in zip(
                batch["position"], batch["valid"], batch["image"], batch["noise"], strict=True
            ):
                if valid:
                    assert int(position) not in seen
                    seen[int(position)] = (image.numpy().tobytes(), float(noise))
    assert len(lengths) == 1
    assert sorted(seen) == list(range(min(num_samples or N, N)))
    expected = Center()
    for index in (0, len(seen) - 1):
        sample = expected(Sample(shards.read(index), 3), sample_rng(1, index))
        assert seen[index] == (sample["image"].numpy().tobytes(), float(sample["noise"]))


@pytest.mark.slow
def test_evaluation_repeats_itself_with_and_without_workers(shards: ShardSet) -> None:
    loader = open_eval(shards, num_workers=2)
    passes = [list(loader), list(loader), list(open_eval(shards))]
    for other in passes[1:]:
        for a, b in zip(passes[0], other, strict=True):
            assert all(torch.equal(a[key], b[key]) for key in ("image", "noise", "valid", "position"))


def test_broken_evaluation_samples_are_marked_and_not_replaced(damaged: ShardSet) -> None:
    batches = list(open_eval(damaged, micro_batch=1))
    invalid = [int(b["position"][0]) for b in batches if not b["valid"].all()]
    assert invalid == [3, 21, 22, 49]
    assert [entry[:2] for b in batches[:5] for entry in b["broken"]] == [(3, "part-000000.tar/img00003")]
    assert len(batches) == N
    assert torch.equal(batches[3]["image"], batches[0]["image"])  # filled with a sample that can be read


def test_evaluation_draws_nothing_from_the_global_generator(shards: ShardSet) -> None:
    torch.manual_seed(0)
    state = torch.get_rng_state()
    list(open_eval(shards, num_workers=1, num_samples=4))
    loader = open_train(shards, num_workers=1)
    next(loader)
    loader.close()
    assert torch.equal(torch.get_rng_state(), state)
