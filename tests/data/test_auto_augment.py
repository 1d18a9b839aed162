"""Policies and jitter depend only on the sample's generator, and leave the global generators unchanged."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from swinv2_train.data.auto_augment import ColourAugment, seeded_globals
from swinv2_train.data.errors import DataError
from tests.data.samples import pixels


def image(seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(pixels(seed, 24, 24)).permute(2, 0, 1).contiguous()


def augment(policy: str | None, jitter: float = 0.4) -> ColourAugment:
    return ColourAugment(policy, jitter, (24, 24), (0.485, 0.456, 0.406), "bicubic")


def everything_global() -> tuple[object, ...]:
    return random.getstate(), np.random.get_state()[1].tobytes(), torch.get_rng_state().numpy().tobytes()


@pytest.mark.parametrize(
    "policy", ["rand-m9-mstd0.5-inc1", "rand-m9-n3-tweights", "augmix-m5-w4-d2", "original", "3a", None]
)
def test_the_result_depends_only_on_the_generator(policy: str | None) -> None:
    changed = set()
    for seed in range(6):
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        ours = [augment(policy)(image(), np.random.default_rng(s), "x") for s in (1, 1, seed)]
        assert torch.equal(ours[0], ours[1])
        assert (ours[0].dtype, ours[0].shape) == (torch.uint8, (3, 24, 24))
        changed.add(ours[2].numpy().tobytes())
    assert len(changed) > 3, "other generators give other images"
    assert torch.equal(augment(policy)(image(), np.random.default_rng(1), "x"), ours[0])
    before = everything_global()
    augment(policy)(image(), np.random.default_rng(3), "x")
    assert everything_global() == before


def test_the_policy_is_timms_own() -> None:
    """The same draws through timm's `create_transform` settings give the same pixels."""
    from PIL import Image
    from timm.data.transforms_factory import transforms_imagenet_train

    name = "rand-m9-mstd0.5-inc1"
    stages = transforms_imagenet_train(
        24, auto_augment=name, interpolation="bicubic", mean=(0.485, 0.456, 0.406), separate=True
    )
    for seed in range(8):
        with seeded_globals(np.random.default_rng(seed)):
            picture = stages[1](Image.fromarray(image().permute(1, 2, 0).numpy()))
        ours = augment(name)(image(), np.random.default_rng(seed), "x")
        assert (ours.permute(1, 2, 0).numpy() == np.array(picture)).all()


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["rand-m10-n4-p1-inc1", "rand-m0-n4-p1", "v0", "augmix-m10-w3-d3-mstd0", "original"])
def test_every_operation_works_at_both_ends_of_its_range(policy: str) -> None:
    """Includes keeping 0 bits of the colors, which results in a black image."""
    ours = augment(policy)
    found = [ours(image(), np.random.default_rng(seed), "x") for seed in range(150)]
    black = sum(int(one.max() == 0) for one in found)
    assert black > 0 or policy in ("augmix-m10-w3-d3-mstd0", "original")
    assert len({one.numpy().tobytes() for one in found}) > 20


def test_generators_are_put_back_after_an_error() -> None:
    def fail() -> None:
        with seeded_globals(np.random.default_rng(0)):
            raise KeyError(random.random(), np.random.rand(), torch.rand(1))

    before = everything_global()
    with pytest.raises(KeyError):
        fail()
    assert everything_global() == before


def test_nothing_is_done_where_nothing_is_asked_for() -> None:
    wide = torch.zeros(5, 24, 24, dtype=torch.uint16)
    assert augment(None, 0.0)(wide, np.random.default_rng(0), "x") is wide


@pytest.mark.parametrize(("policy", "jitter"), [("rand-m9", 0.0), (None, 0.4)])
def test_images_of_16_bit_are_rejected_with_the_fix(policy: str | None, jitter: float) -> None:
    wide = torch.zeros(3, 24, 24, dtype=torch.uint16)
    with pytest.raises(DataError, match=r"sample cat-1 has 3 channels of 16 bits.*set task\.auto_augment=null"):
        augment(policy, jitter)(wide, np.random.default_rng(0), "cat-1")
