"""SimMIM on clips: the mask is a tube, the target is normalized frame by frame, and every masked pixel counts."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from swinv2_train.config.compose import compose
from swinv2_train.data.batch import select
from swinv2_train.data.raw_sample import RawSample
from swinv2_train.data.sample import Sample
from swinv2_train.data.samples import VIDEO
from swinv2_train.tasks.simmim import SimMIM, normalise_target
from swinv2_train.tracking.figures import image_grid
from tests.data.videos import read_numbers, video
from tests.evaluated import lively
from tests.filmed import TINY_CLIPS

IMAGES = ("model.temporal_patch=0", "data.frames=0")


@functools.cache
def make(*overrides: str) -> SimMIM:
    config = compose([*TINY_CLIPS, "task=simmim", "task.mask_patch_size=8", "model.drop_path=0.3", *overrides])
    return SimMIM(config, [0.5] * 3, [0.25] * 3)


class Zero(nn.Module):
    """Reconstructs nothing, and keeps what it was given."""

    def forward(self, images: Tensor, token_mask: Tensor, noise: Tensor | None = None) -> Tensor:
        self.seen = images, token_mask
        return torch.zeros_like(images)


def test_every_frame_is_normalized_by_itself() -> None:
    clip = torch.randn(2, 3, 4, 32, 32, generator=torch.Generator().manual_seed(0))
    made = normalise_target(clip, 7)
    for number in range(4):
        for part, frame in zip(made, normalise_target(clip[:, :, number], 7), strict=True):
            torch.testing.assert_close(part[:, :, number], frame)


@pytest.mark.parametrize("window", [0, 47])
def test_a_still_clip_has_the_loss_of_its_image_in_every_frame(window: int) -> None:
    clips, images = (make(f"task.norm_target_window={window}", *more) for more in ((), IMAGES))
    batch = images.example_batch(3)
    still = batch | {"image": batch["image"][:, :, None].expand(3, 3, 8, 32, 32).contiguous()}
    one, other = Zero().eval(), Zero().eval()
    loss, alone = clips.loss(one, still).terms["loss"], images.loss(other, batch).terms["loss"]
    torch.testing.assert_close(loss, 8 * alone, rtol=1e-5, atol=0)
    assert clips.weights(still)["loss"] == 8 * images.weights(batch)["loss"]
    assert torch.equal(one.seen[1], other.seen[1])  # a mask of one frame, for all of them
    torch.testing.assert_close(one.seen[0][:, :, 5], other.seen[0])
    metrics = [task.metrics(task.measure(Zero(), each))["loss"] for task, each in ((clips, still), (images, batch))]
    assert metrics[0] == pytest.approx(metrics[1], rel=1e-5)


def test_the_loss_is_the_sum_of_its_samples() -> None:
    task = make()
    model = lively(task.build_model()).train()
    batch = task.example_batch(4)
    assert batch["image"].shape == (4, 3, 8, 32, 32)
    with torch.no_grad():
        whole = float(task.loss(model, batch).terms["loss"])
        parts = [float(task.loss(model, select(batch, part)).terms["loss"]) for part in ([3, 0], [1], [2])]
    assert sum(parts) == pytest.approx(whole, rel=1e-5)


def test_a_sample_is_a_clip_and_a_mask() -> None:
    whole = ("data.augment.scale=[1,1]", "data.augment.ratio=[1,1]", "data.augment.hflip=0", "data.crop_pct=1")
    task = make(*whole, "data.resolution=64")
    sample = Sample(RawSample("key", "mp4", {VIDEO: video(30, size=(64, 64))}, VIDEO), 3)
    trained = task.train_transform(sample, np.random.default_rng(1))
    tested = task.eval_transform(sample, np.random.default_rng(1))
    assert trained["image"].shape == tested["image"].shape == (3, 8, 64, 64)
    assert trained["mask"].shape == (8, 8)
    assert int(trained["mask"].sum()) == 39  # ceil(0.6 * 64)
    numbers = read_numbers(trained["image"])
    assert numbers == list(range(numbers[0], numbers[0] + 8))
    assert read_numbers(tested["image"]) == list(range(11, 19))  # the clip in the middle
    assert "video" in task.train_transform.members


def test_a_figure_has_three_strips_for_each_clip(monkeypatch: pytest.MonkeyPatch) -> None:
    footers = []

    def grid(rows: list[list[Image.Image]], *, footer: str, **texts: Any) -> Image.Image:
        footers.append(footer)
        return image_grid(rows, footer=footer, **texts)

    monkeypatch.setattr("swinv2_train.tasks.simmim.image_grid", grid)
    task = make()
    figure = task.figure(task.build_model().eval(), task.example_batch(2))
    assert figure.width > 8 * 32
    assert figure.height > 6 * 32
    assert footers[0].startswith("mean loss over the masked pixels of these clips: ")
