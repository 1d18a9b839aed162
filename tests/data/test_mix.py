"""Mixed and repeated samples are the same bits for every number of ranks, workers and micro-batches."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from swinv2_train.config.compose import compose
from swinv2_train.config.tasks import ClassificationConfig
from swinv2_train.data.mix import Mix, blend, draw_mix, partner_of
from swinv2_train.data.order import SampleOrder
from swinv2_train.data.shards import ShardSet
from swinv2_train.tasks.classification import ClassificationTransform
from tests.data.loaders import train_loader
from tests.runs import make_labelled_shard

MEAN, STD = [0.4] * 3, [0.2] * 3
BATCH = 24


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    """40 samples, one of them without a label and one whose label does not exist."""
    folder = tmp_path_factory.mktemp("labelled")
    make_labelled_shard(folder / "a.tar", 26, 0, {3: None})
    make_labelled_shard(folder / "b.tar", 14, 1, {5: b"7"})
    return ShardSet.open(str(folder), folder / "cache")


def transform(repeats: int, *overrides: str) -> ClassificationTransform:
    config = compose(
        ["task=classification", "task.num_classes=3", f"task.repeats={repeats}", "data.resolution=24", *overrides]
    )
    return ClassificationTransform(config, MEAN, STD, training=True)


TRANSFORMS = {
    1: transform(1, "task.auto_augment=null", "task.erase_prob=0.5"),
    2: transform(2, "task.auto_augment=null", "task.erase_prob=0.5", "task.mix_prob=0.8"),
    3: transform(3, "task.auto_augment=null", "task.color_jitter=0"),
}


def read(shards: ShardSet, repeats: int, steps: int, world: int, **changes: Any) -> list[dict[str, Any]]:
    """The batches of all ranks, one dictionary per step."""
    order = SampleOrder(shards.num_samples, seed=9, shuffle_samples=16, block_samples=4, repeats=repeats)
    settings: dict[str, Any] = {"micro_batch": BATCH // world, "start_batch": 0, "num_workers": 0} | changes
    parts: list[list[dict[str, Any]]] = [[] for _ in range(steps)]
    for rank in range(world):
        ranks = {"rank": rank, "world_size": world}
        loader = train_loader(shards, order, TRANSFORMS[repeats], global_batch=BATCH, seed=4, **ranks, **settings)
        for step in parts:
            step.extend(next(loader) for _ in range(BATCH // world // settings["micro_batch"]))
        loader.close()
    keys = [key for key in parts[0][0] if key != "broken"]
    return [
        {key: torch.cat([batch[key] for batch in step]) for key in keys}
        | {"broken": [entry for batch in step for entry in batch["broken"]]}
        for step in parts
    ]


def assert_same(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> None:
    for a, b in zip(ours, theirs, strict=True):
        assert a.keys() == b.keys()
        assert a["broken"] == b["broken"]
        for key in a.keys() - {"broken"}:
            assert torch.equal(a[key], b[key]), key


@pytest.fixture(scope="module")
def references(shards: ShardSet) -> dict[int, list[dict[str, Any]]]:
    return {repeats: read(shards, repeats, 4, 1) for repeats in TRANSFORMS}


@pytest.mark.slow
@settings(max_examples=12, deadline=None)
@example(repeats=3, world=3, pieces=8, start=1)
@example(repeats=2, world=2, pieces=3, start=0)
@example(repeats=1, world=3, pieces=8, start=2)
@given(
    repeats=st.sampled_from([1, 2, 3]),
    world=st.sampled_from([1, 2, 3]),
    pieces=st.sampled_from([1, 2, 4, 8]),
    start=st.integers(0, 3),
)
def test_ranks_micro_batches_and_the_start_change_no_bit(
    shards: ShardSet, references: dict[int, list[dict[str, Any]]], repeats: int, world: int, pieces: int, start: int
) -> None:
    share = BATCH // world
    micro = share // pieces if share % pieces == 0 else 1
    same = read(shards, repeats, 1, world, micro_batch=micro, start_batch=start)
    assert_same(same, references[repeats][start : start + 1])


@pytest.mark.slow
def test_workers_change_no_bit(shards: ShardSet, references: dict[int, list[dict[str, Any]]]) -> None:
    assert_same(read(shards, 2, 4, 1, micro_batch=3, num_workers=2), references[2])


def test_samples_without_a_usable_label_are_named_counted_and_replaced(
    references: dict[int, list[dict[str, Any]]],
) -> None:
    broken = [entry for step in references[1] for entry in step["broken"]]
    assert {(key, reason) for _, key, reason in broken} == {
        ("a.tar/a-0003", "it has no label (no member cls, and no labels in a member json)"),
        ("b.tar/b-0005", "its label 7 is outside 0 to 2"),
    }
    positions = [position for position, _, _ in broken]
    assert len(positions) == len(set(positions)), "a partner's broken sample is counted where it belongs alone"


def test_copies_of_a_sample_share_its_label_and_mix_with_the_other_sample_of_their_block(
    references: dict[int, list[dict[str, Any]]],
) -> None:
    for repeats, steps in references.items():
        for step in steps:
            labels = step["label"].view(-1, repeats)
            assert (labels == labels[:, :1]).all()
            swapped = labels[:, 0].view(-1, 2).flip(1).flatten()
            assert (step["partner_label"].view(-1, repeats) == swapped[:, None]).all()
            images = {image.numpy().tobytes() for image in step["image"]}
            # Of a ratio near 0 or 1 nothing may be left to see.
            assert len(images) >= BATCH - 2, "every copy is augmented in its own way"


def test_a_micro_batch_with_its_partners_inside_reads_nothing_twice(
    shards: ShardSet, references: dict[int, list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    indices: list[int] = []
    plain = ShardSet.read
    monkeypatch.setattr(
        ShardSet, "read", lambda self, index, *members: (indices.append(index), plain(self, index, *members))[1]
    )
    # Of three samples one has its partner elsewhere.
    for repeats, micro_batch, reads in ((3, 6, BATCH // 3), (1, 4, BATCH), (1, 3, BATCH + BATCH // 3)):
        sound = next(step for step, batch in enumerate(references[repeats]) if not batch["broken"])
        indices.clear()
        read(shards, repeats, 1, 1, micro_batch=micro_batch, start_batch=sound)
        assert len(indices) == reads


@pytest.mark.parametrize("repeats", [1, 2, 5])
def test_partners_stay_inside_their_block(repeats: int) -> None:
    for position in range(1000, 1040):
        partner = partner_of(position, repeats)
        assert partner // (2 * repeats) == position // (2 * repeats)
        assert partner // repeats != position // repeats
        assert partner_of(partner, repeats) == position


def draws(count: int, **changes: Any) -> list[Mix]:
    config = ClassificationConfig(**changes)
    return [draw_mix(config, (40, 30), np.random.default_rng(seed)) for seed in range(count)]


def test_ratios_have_the_moments_of_their_beta_distribution() -> None:
    shares = np.array([mix.share for mix in draws(3000, cutmix=0.0, mixup=0.8)])
    assert shares.mean() == pytest.approx(0.5, abs=0.02)
    assert shares.var() == pytest.approx(1 / (4 * (2 * 0.8 + 1)), abs=0.01)  # Beta(a, a): 1 / (4 (2a + 1))
    mixes = draws(3000, mix_prob=0.7, mix_switch_prob=0.25)
    unmixed = sum(mix.share == 1 and mix.box is None for mix in mixes)
    assert unmixed == pytest.approx(900, abs=90)
    assert sum(mix.box is not None for mix in mixes) == pytest.approx(3000 * 0.7 * 0.25, abs=75)
    assert all(mix.box is None and mix.share == 1 for mix in draws(5, mixup=0.0, cutmix=0.0))
    assert all(mix.box is not None for mix in draws(50, mixup=0.0))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16])
def test_cutmix_pastes_the_partners_pixels_and_shares_by_area(dtype: torch.dtype) -> None:
    own, other = (torch.full((3, 40, 30), value, dtype=torch.int32).to(dtype) for value in (200, 10))
    for mix in draws(40, mixup=0.0):
        mixed = blend(own, other, mix).to(torch.int32)
        assert blend(own, other, mix).dtype == dtype
        assert set(mixed.unique().tolist()) <= {10, 200}
        assert float((mixed == 200).double().mean()) == pytest.approx(mix.share)
    assert (own.to(torch.int32) == 200).all()


def test_mixup_rounds_to_the_nearest_value_in_8_and_16_bit() -> None:
    rng = np.random.default_rng(0)
    own, other = (torch.from_numpy(rng.integers(0, 256, (3, 8, 8), dtype=np.uint8)) for _ in range(2))
    exact = own.double() * 0.3 + other.double() * 0.7
    assert (blend(own, other, Mix(0.3)).double() - exact).abs().max() <= 0.5 + 1e-4
    wide = blend(own, (other.to(torch.int32) * 257).to(torch.uint16), Mix(0.3))
    assert wide.dtype == torch.uint16
    assert (wide.double() - exact * 257).abs().max() <= 0.5 + 1e-2
    assert torch.equal(blend(own, other, Mix(1.0)), own)
