"""Detection as a task: its loss does not depend on how a batch is cut, its results are in pixels of the originals."""

from __future__ import annotations

import functools
import io
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from swinv2_train.config.compose import compose
from swinv2_train.config.errors import ConfigError
from swinv2_train.config.schema import Config
from swinv2_train.data.batch import Batch, Ragged, collate, select
from swinv2_train.data.card import Card
from swinv2_train.data.card_objects import Category, ObjectFacts
from swinv2_train.models.detection import Detections
from swinv2_train.tasks.detection.task import Detection
from tests.detected import TINY_DETECTOR
from tests.evaluated import lively
from tests.tasks.detection.test_transform import BLOCKS, content, sample, scene

SHORT = {"scaling": "short", "short_sides": [32, 40], "long_side": 64}
SEMANTIC = {"detector": "htc", "semantic_classes": 4, "class_agnostic": True, "global_attention": True}
OTHER = [(4, 4, 30, 50), (10, 60, 44, 84)]


@functools.cache
def tiny() -> Config:
    return compose([*TINY_DETECTOR, "task.num_classes=3", "task.masks=true", "model.drop_path=0.3", "optim.steps=4"])


def make(card: Card | None = None, **task: Any) -> Detection:
    config = replace(tiny(), task=replace(tiny().task, **task))
    made = Detection.from_data(config, [0.5] * 3, [0.25] * 3, card)
    assert isinstance(made, Detection)
    return made


def samples() -> list[Any]:
    """Lying and upright images, one with a crowd region, one without objects."""
    crowded = content()
    crowded["objects"][0]["iscrowd"] = 1
    boxes = [
        (scene(), content(rle=(1,))), (scene(), crowded), (scene([]), content([])),
        (scene(OTHER, (90, 60)), content(OTHER, (90, 60))),
    ]  # fmt: skip
    labels = io.BytesIO()
    Image.fromarray(np.arange(60 * 90, dtype=np.uint8).reshape(60, 90) % 4).save(labels, "PNG")
    turned = io.BytesIO()
    Image.fromarray(np.full((90, 60), 255, np.uint8)).save(turned, "PNG")
    made = [sample(image, objects) for image, objects in boxes]
    for one in made:
        one.raw.members["seg.png"] = (turned if one is made[-1] else labels).getvalue()
    return made


def trained(task: Detection, first: int = 8) -> Batch:
    """A training batch of `samples`, at these positions."""
    entries = []
    for number, one in enumerate(samples()):
        one.position = first + number
        entries.append(task.train_transform(one, np.random.default_rng(one.position)))
    batch = collate(entries, images=task.train_transform.images, ragged=task.train_transform.ragged)
    return batch | {"position": torch.arange(first, first + len(entries))}


def held_out(task: Detection) -> Batch:
    entries = []
    for number, one in enumerate(samples()):
        one.position = number
        entries.append(task.eval_transform(one, np.random.default_rng(0)))
    batch = collate(entries, images=task.eval_transform.images, ragged=task.eval_transform.ragged)
    return batch | {"position": torch.arange(len(entries)), "valid": torch.ones(len(entries), dtype=torch.bool)}


@pytest.mark.slow
@pytest.mark.parametrize("settings", [SHORT | SEMANTIC, {"detector": "mask_rcnn"}, {"masks": False}])
def test_the_loss_is_the_sum_of_its_samples_whatever_the_micro_batch(settings: dict[str, Any]) -> None:
    task = make(**settings)
    model = task.build_model().train()
    batch = trained(task)
    whole = {name: value.detach() for name, value in task.loss(model, batch).terms.items()}
    assert list(whole) == list(task.config.task.terms())
    assert len(set(batch["canvas"])) == (2 if "scaling" in settings else 1)
    for parts in ([[0], [1], [2], [3]], [[3, 0], [2, 1]]):
        pieces = [select(batch, part) for part in parts]
        losses = [task.loss(model, piece).terms for piece in pieces]
        for name, value in whole.items():
            total = sum(float(loss[name].detach()) for loss in losses)
            assert total == pytest.approx(float(value), rel=1e-4, abs=1e-6), name
        assert sum(task.weights(piece)["rpn_box"] for piece in pieces) == task.weights(batch)["rpn_box"] == 4
    state = torch.get_rng_state()
    again = task.loss(model, batch).terms
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(again[name].detach(), value) for name, value in whole.items())
    batch["position"] += 1
    assert not torch.equal(task.loss(model, batch).terms["rpn_class"], whole["rpn_class"])


def test_sharded_weights_need_as_many_forward_passes_on_every_rank() -> None:
    for scaling, stage, expected in (("short", 3, 4), ("short", 2, 2), ("jitter", 3, 1)):
        task = make(**SHORT | {"scaling": scaling})
        task.config = replace(task.config, engine=replace(task.config.engine, zero_stage=stage))
        assert len(task._together(trained(task))) == expected


def test_an_image_is_zero_beyond_its_size() -> None:
    """The mean color after normalization; a canvas of black pixels would be about -2."""
    task, seen = make(scale=[0.5, 0.5]), []

    class Watching(nn.Module):
        def forward(self, images: Tensor, sizes: Tensor, targets: Any, **_: Any) -> dict[str, Tensor]:
            seen.append((images, sizes, targets))
            return {name: images.sum() for name in task.config.task.terms()}

    task.loss(Watching().eval(), trained(task))
    ((images, sizes, targets),) = seen
    assert images.shape == (4, 3, 64, 48)
    for image, (height, width) in zip(images, sizes.tolist(), strict=True):
        assert max(height / 64, width / 48) == pytest.approx(0.5, abs=0.02)
        assert not image[:, height:].any()
        assert not image[:, :, width:].any()
        assert (image[:, :height, :width] != 0).all()
    assert [len(target.crowd) for target in targets] == [0, 1, 0, 0]


class Painted(nn.Module):
    """Finds the objects of `scene` by their channel, a pixel too small, with masks that fill the boxes."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[list[list[int]]] = []

    def forward(self, images: Tensor, sizes: Tensor, targets: Any = None) -> list[Detections]:
        self.sizes.append(sizes.tolist())
        found = []
        for image in images:
            boxes, classes = [], []
            for channel, pixels in enumerate(image > 0):
                rows, columns = (pixels.any(dim=axis).nonzero().flatten().tolist() for axis in (1, 0))
                if rows:
                    boxes.append([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
                    classes.append(channel)
            scores = torch.linspace(0.9, 0.8, len(boxes))
            masks = torch.ones(len(boxes), 28, 28)
            found.append(
                Detections(torch.tensor(boxes).view(-1, 4).float(), scores, torch.tensor(classes).long(), masks)
            )
        return found


@pytest.mark.parametrize(
    "test", [{}, {"test_flip": True, "test_scales": [0.75, 1.5]}, {"test_flip": True, "soft_nms": True}]
)
def test_detections_are_compared_in_pixels_of_the_original(test: dict[str, Any]) -> None:
    task, model = make(test_short=50, test_long=70, **test), Painted().eval()
    batch = held_out(task)
    batch["valid"][3] = False
    found = task.measure(model, batch)
    views = len(task.task.test_scales) * (1 + task.task.test_flip)
    assert len(model.sizes) == 4 * views  # also for the sample that does not count
    sizes = [[35, 52], [35, 52], [70, 105], [70, 105]] if "test_scales" in test else [[47, 70]] * views
    assert [size for (size,) in model.sizes[:views]] == sizes
    assert sorted(found.records) == [0, 1, 2]
    first = found.records[0]
    assert first.size == (60, 90)
    best = first.found.scores > 0.5
    assert sorted(first.found.classes[best].tolist()) == [0, 1, 2]
    for box, number in zip(first.found.boxes[best], first.found.classes[best], strict=True):
        assert np.abs(box - np.array(BLOCKS[number])).max() < 1.5
    assert first.found.masks[0]["size"] == [60, 90]
    assert len(found.records[2].found) == 0
    metrics = task.metrics(found)
    assert metrics["samples"] == 3
    assert set(metrics) == {*task.config.task.metrics(), "samples"}
    assert metrics["box_ap50"] == pytest.approx(1.0)
    assert metrics["mask_ap50"] == pytest.approx(1.0)
    report = task.report(found, metrics)
    assert report.scores is task.report(found, metrics).scores  # evaluated once
    assert task.report(task.measure(model, batch), metrics).scores is not report.scores


@pytest.mark.slow
@torch.no_grad()
def test_figures_of_held_out_and_of_training_samples() -> None:
    task = make()
    model = lively(task.build_model()).train()
    state = torch.get_rng_state()
    evaluated, shown = task.figure(model, held_out(task)), task.figure(model, trained(task))
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)
    assert min(evaluated.size + shown.size) > 300
    images = task.images(held_out(task))  # for measurements of activations
    assert images.shape == (4, 3, 64, 48)
    deep = held_out(task)
    dark = [image.to(torch.int32).mul(9).to(torch.uint16) for image in deep["image"]]  # of 12 bits
    bright, drawn = np.asarray(evaluated), np.asarray(task.figure(model, deep | {"image": Ragged(dark)}))
    vivid, seen = (int(((one.max(axis=2) > 200) & (one.min(axis=2) < 30)).sum()) for one in (bright, drawn))
    assert seen > 0.7 * vivid > 0  # stretched: its brightest pixel is at 3% of the range
    boxes = make(masks=False)
    assert boxes.figure(lively(boxes.build_model()), trained(boxes)).width > 300


def test_the_example_batch_is_one_of_training() -> None:
    for settings in ({}, SEMANTIC, {"masks": False}):
        task = make(**settings)
        batch = task.example_batch(2)
        real = set(task.train_transform.ragged)
        assert real == set(batch) - {"position", "valid"}
        terms = task.loss(task.build_model(), batch).terms
        assert all(bool(value.isfinite()) for value in terms.values())


def card(names: list[tuple[Any, str]], **counts: Any) -> Card:
    facts = ObjectFacts([Category(*one) for one in names], objects=Counter({0: 40, 1: 60}), images=9, **counts)
    return Card(class_names=[name for _, name in names], objects=facts)


def test_the_card_names_the_classes_and_their_original_ids() -> None:
    table = [(2, "tile"), (None, "brick"), (90, "kite")]
    task = make(card(table))
    assert [(one.id, one.name) for one in task.categories] == [(2, "tile"), (1, "brick"), (90, "kite")]
    assert [one.id for one in make().categories] == [1, 2, 3]
    assert [one.name for one in make(card(table), label="boxes.json").categories] == ["class 0", "class 1", "class 2"]
    assert [one.id for one in make(card(table[:2])).categories] == [1, 2, 3]  # it does not name every class


def test_data_that_does_not_fit_is_refused_or_reported() -> None:
    with pytest.raises(ConfigError, match="no dataset card with categories: set their number"):
        make(None, num_classes=0)
    table = [(2, "tile"), (7, "brick"), (90, "kite")]
    full = card(table, masks=100, largest=1001)
    assert make().warnings(None) == []
    assert make().warnings(card(table, masks=100, largest=1000)) == []
    assert "an image of data.shards has 1,001 objects" in make().warnings(full)[0]
    named = card(table, masks=100, largest=1001, largest_image="harbor/7")
    assert "the image harbor/7 of data.shards has 1,001 objects" in make().warnings(named)[0]
    partial = make().warnings(card(table, masks=99))
    assert partial == [
        "task.masks=true: 99 of the 100 objects of data.shards have a mask; the others train only boxes, and held-out "
        "images with such objects are skipped"
    ]
    assert make(masks=False).warnings(card(table, masks=99)) == []
    nothing = card(table, crowd=3)
    assert nothing.objects is not None
    nothing.objects.objects.clear()
    assert make().warnings(nothing) == ["data.shards: no object can be learned: there are only crowd regions (3)"]
