"""Segmentation as a task: its loss does not depend on how a batch is cut, its metrics come at the original size."""

from __future__ import annotations

import functools
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from swinv2_train.config.compose import compose
from swinv2_train.config.errors import ConfigError
from swinv2_train.config.schema import Config
from swinv2_train.data.batch import Batch, Ragged, select
from swinv2_train.data.card import Card
from swinv2_train.data.card_label_maps import LabelMapFacts
from swinv2_train.tasks.segmentation.task import Segmentation
from tests.evaluated import lively
from tests.segmented import IGNORE, TINY_SEGMENTER, make_scene


@functools.cache
def tiny() -> Config:
    return compose(TINY_SEGMENTER)


def make(model: dict[str, Any] | None = None, names: list[str] | None = None, **task: Any) -> Segmentation:
    config = replace(tiny(), model=replace(tiny().model, **(model or {})), task=replace(tiny().task, **task))
    channels = config.model.in_channels
    return Segmentation(config, [0.5] * channels, [0.25] * channels, class_names=names)


def held_out(sizes: list[tuple[int, int]], channels: int = 3, factor: int = 1) -> Batch:
    """Held-out samples whose images are `factor` times smaller than their label maps."""
    rng = np.random.default_rng(0)
    images, labels = [], []
    for size in sizes:
        image, label = make_scene(rng, size, channels)
        image = image.reshape(*size, channels)[::factor, ::factor]
        images.append(torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))))
        labels.append(torch.from_numpy(label))
    return {
        "image": Ragged(images),
        "label": Ragged(labels),
        "position": torch.arange(len(sizes)),
        "valid": torch.ones(len(sizes), dtype=torch.bool),
    }


def test_the_loss_is_the_sum_of_its_samples_whatever_the_micro_batch() -> None:
    terms = {"dice_weight": 0.5, "class_weights": [0.5, 2, 1], "focal_gamma": 1.0, "dropout": 0.3}
    task = make({"drop_path": 0.3}, **terms)
    model = lively(task.build_model()).train()
    batch = task.example_batch(4)
    batch["size"][1] = torch.tensor([40, 30])  # padded
    batch["position"] += 7
    whole = {name: value.detach() for name, value in task.loss(model, batch).terms.items()}
    assert set(whole) == set(task.config.task.terms())
    assert set(whole) == {"cross_entropy", "auxiliary", "dice"}
    for parts in ([[0], [1], [2], [3]], [[2, 0, 3], [1]]):
        pieces = [select(batch, part) for part in parts]
        losses = [task.loss(model, piece).terms for piece in pieces]
        weights = [task.weights(piece) for piece in pieces]
        for name, value in whole.items():
            total = sum(float(loss[name].detach()) for loss in losses)
            assert total == pytest.approx(float(value), rel=1e-5), name
            assert sum(weight[name] for weight in weights) == task.weights(batch)[name]
    assert task.weights(batch) == {"cross_entropy": 4 * 64 * 32, "auxiliary": 4 * 64 * 32, "dice": 4}
    again = task.loss(model, batch).terms
    assert all(torch.equal(again[name].detach(), value) for name, value in whole.items())  # nothing is drawn globally
    batch["position"] += 1
    assert not torch.equal(task.loss(model, batch).terms["cross_entropy"], whole["cross_entropy"])


def test_the_plain_loss_is_torchs_mean_over_all_pixels() -> None:
    task = make({"drop_path": 0.0}, auxiliary_weight=0.0, dropout=0.0)
    model = lively(task.build_model()).train()
    batch = task.example_batch(2)
    loss = task.loss(model, batch).terms["cross_entropy"] / task.weights(batch)["cross_entropy"]
    logits = F.interpolate(model(task.images(batch))[0], scale_factor=4, mode="bilinear")
    plain = F.cross_entropy(logits, batch["label"].long(), ignore_index=IGNORE, reduction="sum")
    assert float(loss.detach()) == pytest.approx(float(plain.detach()) / batch["label"].numel(), rel=1e-5)


class Painted(nn.Module):
    """Scores from the colors of `make_scene` at full size, as logits of stride 1: nearly the truth."""

    def __init__(self) -> None:
        super().__init__()
        self.anything = nn.Parameter(torch.zeros(()))
        self.calls = 0

    def forward(self, images: Tensor, noise: Tensor | None = None, dropout: Tensor | None = None) -> Any:
        self.calls += 1
        red, blue = images[:, 0], images[:, -1]
        return torch.stack([-4 * red, 2 * blue, 2 * red - 3 * blue], dim=1) + 0 * self.anything, None


@torch.no_grad()
def test_predictions_are_compared_at_the_size_of_the_label_map() -> None:
    task = make({"patch_size": 1})
    batch = held_out([(40, 60), (64, 50), (30, 30)], factor=2)
    batch["valid"][1] = False
    model = Painted().eval()
    found = task.measure(model, batch)
    assert model.calls == 3  # also for the sample that does not count
    confusion, total = np.zeros((3, 3)), 0.0
    for number in (0, 2):
        image, label = batch["image"][number], batch["label"][number].long()
        scores = model((image.float()[None] / 255 - 0.5) / 0.25)[0]
        large = F.interpolate(scores, label.shape, mode="bilinear", align_corners=False)[0]
        counted = label != IGNORE
        np.add.at(confusion, (label[counted].numpy(), large.argmax(dim=0)[counted].numpy()), 1)
        total += float(F.cross_entropy(large[None], label[None], ignore_index=IGNORE, reduction="sum"))
    np.testing.assert_array_equal(found.sums["confusion"], confusion)
    assert found.sums["samples"] == 2
    metrics = task.metrics(found)
    assert metrics["loss"] == pytest.approx(total / confusion.sum(), rel=1e-5)
    assert metrics["miou"] > 0.5  # the model is a good one
    assert set(metrics) == {*task.config.task.metrics(), "samples"}


@torch.no_grad()
def test_an_image_without_a_labeled_pixel_does_not_count_as_a_sample() -> None:
    task, batch = make(), held_out([(32, 32), (40, 32)])
    batch["label"] = Ragged([batch["label"][0], torch.full((40, 32), IGNORE, dtype=torch.uint8)])
    found = task.measure(lively(task.build_model()), batch)
    assert found.sums["samples"] == 1
    assert found.sums["ignored"] == 40 * 32 + 2 * 32


@pytest.mark.parametrize("channels", [1, 4])
def test_figures_of_held_out_and_of_training_samples(channels: int) -> None:
    task = make({"in_channels": channels}, ["ground", "block", "brick"], photometric=False)
    model = lively(task.build_model()).train()
    state = torch.get_rng_state()
    evaluated = task.figure(model, held_out([(40, 60), (64, 50)], channels))
    assert model.training
    batch = task.example_batch(2)
    batch["size"][0] = torch.tensor([33, 30])
    trained = task.figure(model, batch)
    assert torch.equal(torch.get_rng_state(), state)
    assert min(evaluated.size + trained.size) > 300


def test_a_figure_shows_dark_images_of_16_bits() -> None:
    task, batch = make({"in_channels": 1}, photometric=False), held_out([(40, 60)], 1)
    dark = batch | {"image": Ragged([image.to(torch.uint16) for image in batch["image"]])}  # up to 255 of 65,535
    bright = []
    for each in (batch, dark):
        pixels = np.asarray(task.figure(lively(task.build_model()), each)).astype(int)
        bright.append((np.ptp(pixels, axis=2) < 3) & (pixels[..., 0] > 140) & (pixels[..., 0] < 250))
    assert bright[1].mean() > 0.5 * bright[0].mean() > 0.01


def test_images_of_different_sizes_become_one_batch_for_measurements_of_activations() -> None:
    task, batch = make(), held_out([(40, 60), (80, 20)])
    images = task.images(batch)
    assert images.shape == (2, 3, 64, 32)
    expected = (batch["image"][0].float() / 255 - 0.5) / 0.25
    assert torch.allclose(images[0, :, :40], expected[:, :, 14:46], atol=1e-6)
    assert torch.equal(images[0, :, 40:], torch.zeros(3, 24, 32))


def card(ignore: int = IGNORE, **more: Any) -> Card:
    facts = LabelMapFacts(ignore=ignore, pixels=Counter({0: 600, 1: 300}), ignored=5, images=Counter({0: 2, 1: 1}))
    return Card(num_samples=2, class_names=["ground", "block", "brick"], label_maps=facts, **more)


def test_the_card_decides_the_ignored_value_and_the_balanced_weights() -> None:
    def built(found: Card | None, **settings: Any) -> Segmentation:
        config = replace(tiny(), task=replace(tiny().task, **settings))
        return Segmentation.from_data(config, [0.5] * 3, [0.25] * 3, found)

    assert built(None).ignore == 255
    assert built(None, ignore_index=0).ignore == 0
    wide = built(card(65535), class_weights="balanced")
    assert (wide.ignore, wide.class_names) == (65535, ["ground", "block", "brick"])
    assert wide.pixel_loss.class_weights.tolist() == [0.75, 1.5, 0]  # 900 / (2 * 600), 900 / (2 * 300)
    assert wide.example_batch(1)["label"].dtype == torch.int32
    assert built(card(65535), label="other.png").ignore == 255  # the card does not count that member
    for found, settings, message in (
        (card(), {"ignore_index": 0}, "task.ignore_index=0: the packed label maps have 255 .*; set null"),
        (None, {"class_weights": "balanced"}, "the shards have no dataset card that counts the pixels"),
    ):
        with pytest.raises(ConfigError, match=message):
            built(found, **settings)
