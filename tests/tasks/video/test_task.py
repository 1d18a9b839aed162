"""Video classification as a task: its loss does not depend on how a batch is cut, views count as one video."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from swinv2_train.config.compose import compose
from swinv2_train.config.schema import Config
from swinv2_train.data.batch import TOGETHER, Batch, select
from swinv2_train.tasks.measured import Measured
from swinv2_train.tasks.metrics import classification_sums
from swinv2_train.tasks.task import Task
from swinv2_train.tasks.video.task import HEAD_STD, Video
from tests.evaluated import lively
from tests.filmed import TINY_VIDEO


@functools.cache
def tiny() -> Config:
    return compose(TINY_VIDEO)


def make(names: list[str] | None = None, drop_path: float = 0.0, **task: Any) -> Video:
    config = replace(tiny(), model=replace(tiny().model, drop_path=drop_path), task=replace(tiny().task, **task))
    return Video(config, [0.5] * 3, [0.25] * 3, class_names=names)


def held_out(task: Video, count: int, views: int) -> Batch:
    """Held-out samples with several views."""
    clips = [task.example_batch(count)["image"].roll(number, dims=-1) for number in range(views)]
    return task.example_batch(count) | {"image": torch.stack(clips, dim=1)}


def test_the_loss_is_the_sum_of_its_samples_whatever_the_micro_batch() -> None:
    task = make(drop_path=0.3)
    model = lively(task.build_model()).train()
    batch = task.example_batch(4)
    batch["position"] += 7
    whole = task.loss(model, batch).terms["loss"].detach()
    assert task.weights(batch) == {"loss": 4.0}
    for parts in ([[0], [1], [2], [3]], [[2, 0, 3], [1]]):
        pieces = [select(batch, part) for part in parts]
        total = sum(float(task.loss(model, piece).terms["loss"].detach()) for piece in pieces)
        assert total == pytest.approx(float(whole), rel=1e-5)
    assert torch.equal(task.loss(model, batch).terms["loss"].detach(), whole)  # nothing is drawn globally
    moved = task.loss(model, batch | {"position": batch["position"] + 1}).terms["loss"]
    assert not torch.equal(moved.detach(), whole)


def test_dropout_keeps_the_mean_of_the_features_and_differs_between_samples() -> None:
    task = make(dropout=0.5)
    model = task.build_model().train()
    seen: list[Tensor] = []
    model.head.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].detach()))
    batch = task.example_batch(1)
    alike = {name: value.expand(64, *value.shape[1:]) for name, value in batch.items()} | {"position": torch.arange(64)}
    with torch.no_grad():
        task.loss(model, alike)
        task.loss(model.eval(), alike)
    dropped, kept = seen
    zero = dropped == 0
    assert float(zero.float().mean()) == pytest.approx(0.5, abs=0.03)
    assert not torch.equal(zero[0], zero[1])
    torch.testing.assert_close(dropped[~zero], 2 * kept[~zero])


def test_the_head_starts_small() -> None:
    head = make(num_classes=300).build_model().head
    assert float(head.weight.detach().std()) == pytest.approx(HEAD_STD, rel=0.05)
    assert not head.bias.detach().any()


class ByView(nn.Module):
    """Logits that depend on the brightness of a clip, from a table."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.table, self.calls = table, []

    def forward(self, clips: Tensor, noise: Tensor | None = None, dropout_noise: Tensor | None = None) -> Tensor:
        assert noise is None
        assert dropout_noise is None
        self.calls.append(tuple(clips.shape))
        rows = ((clips.mean(dim=(1, 2, 3, 4)) * 0.25 + 0.5) * 255).round().long()
        return self.table[rows]


def numbered(task: Video, count: int, views: int) -> Batch:
    """A batch in which the value of all pixels of view v of video b is b * views + v."""
    values = torch.arange(count * views, dtype=torch.uint8).view(count, views, 1, 1, 1, 1)
    return task.example_batch(count) | {"image": values.expand(count, views, 3, 8, 32, 32).contiguous()}


@torch.no_grad()
def test_probabilities_of_views_are_averaged_and_each_video_counts_once() -> None:
    task, count, views = make(num_classes=7), 5, 4
    table = 3 * torch.randn(count * views, 7, generator=torch.Generator().manual_seed(0))
    batch = numbered(task, count, views)
    batch["valid"][3] = False
    model = ByView(table).eval()
    found = task.measure(model, batch)
    assert model.calls == [(count, 3, 8, 32, 32)] * views  # as many clips at a time as there are videos
    model.calls.clear()
    for name, value in task.measure(model, batch | {TOGETHER: 7}).sums.items():
        np.testing.assert_array_equal(found.sums[name], value, err_msg=name)
    assert [shape[0] for shape in model.calls] == [7, 7, 6]
    shares = table.view(count, views, 7).softmax(dim=2)
    expected = classification_sums(shares.mean(dim=1).log(), batch["label"], batch["valid"])
    metrics = task.metrics(found)
    assert metrics["samples"] == 4
    for name, value in expected.items():
        np.testing.assert_allclose(found.sums[name], value, rtol=1e-5, err_msg=name)
    right = (shares.argmax(dim=2) == batch["label"][:, None])[batch["valid"]]
    assert metrics["clip_top1"] == pytest.approx(float(right.float().mean()))
    assert metrics["top1"] == float(expected["correct_1"]) / 4
    assert set(metrics) == {*task.task.metrics(), "samples"}
    one = task.measure(model, batch | {"image": batch["image"][:, :1]})
    plain = classification_sums(table.view(count, views, 7)[:, 0], batch["label"], batch["valid"])
    np.testing.assert_allclose(one.sums["total"], plain["total"], rtol=1e-5)
    assert task.metrics(one)["clip_top1"] == task.metrics(one)["top1"]
    trained = task.measure(model, batch | {"image": batch["image"][:, 0]})  # as `example_batch`, which tools measure
    assert trained.sums["total"] == one.sums["total"]


@torch.no_grad()
def test_with_several_labels_the_probability_of_each_class_is_averaged() -> None:
    task = make(num_classes=7, multi_label=True)
    table = 3 * torch.randn(6, 7, generator=torch.Generator().manual_seed(1))
    logits = task.logits(ByView(table).eval(), numbered(task, 2, 3))
    torch.testing.assert_close(logits.sigmoid(), table.view(2, 3, 7).sigmoid().mean(dim=1))
    metrics = task.metrics(task.measure(ByView(table).eval(), numbered(task, 2, 3)))
    assert set(metrics) == {"loss", "mAP", "f1", "samples"}


@pytest.mark.parametrize("several", [False, True])
def test_figures_are_film_strips_of_held_out_and_of_training_samples(several: bool) -> None:
    task = make(["left", "right", "down"], multi_label=several)
    model = lively(task.build_model())
    state = torch.get_rng_state()
    for batch in (task.example_batch(2), held_out(task, 2, 3)):
        figure = task.figure(model, batch)
        assert figure.width > 960  # eight frames side by side, two videos one below the other
        assert 2 * 960 / 8 < figure.height < 500
    assert torch.equal(torch.get_rng_state(), state)


def test_the_confusion_matrix_counts_videos() -> None:
    report = make().report(Measured({"confusion": np.array([[2.0, 1.0], [0.0, 1.0]])}), {}, ["left", "right"])
    (axes, *_) = report.charts()["confusion.png"].figure.axes
    assert axes.get_title() == "4 videos"


def test_clips_are_normalized_frame_by_frame() -> None:
    task = make()
    batch = held_out(task, 2, 3)
    images = task.images(batch)
    assert images.is_contiguous()
    torch.testing.assert_close(images, (batch["image"][:, 0].float() / 255 - 0.5) / 0.25)
    torch.testing.assert_close(task.images(task.example_batch(2)), images)


class Plain(Video):
    """As a task of a user that overrides nothing of this."""

    images, figure, example_batch = Task.images, Task.figure, Task.example_batch


def test_tasks_of_users_get_clips_by_default() -> None:
    task = Plain(tiny(), [0.5] * 3, [0.25] * 3)
    batch = task.example_batch(2)
    assert batch["image"].shape == (2, 3, 8, 32, 32)
    torch.testing.assert_close(task.images(batch), (batch["image"].float() / 255 - 0.5) / 0.25)
    assert task.figure(nn.Identity(), batch).width > 8 * 32
