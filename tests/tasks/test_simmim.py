"""SimMIM: numbers of the official implementation, masks, and a loss that does not depend on how a batch is split."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from swinv2_train.config.compose import compose
from swinv2_train.config.schema import Config
from swinv2_train.models.heads import MaskedImageModel
from swinv2_train.tasks.simmim import (
    SimMIM,
    enlarge_mask,
    local_statistics,
    masked_pixels,
    normalise_target,
    random_mask,
)
from swinv2_train.tasks.task import NORMALISER_EPSILON
from swinv2_train.tracking.figures import image_grid
from tests.models import golden

TINY = [
    "+experiment=simmim_demo", "data.resolution=64", "model.embed_dim=16", "model.num_heads=[1,2,4,8]",
    "model.depths=[1,2,1,1]", "model.window=4", "task.mask_patch_size=32",
]  # fmt: skip


def make(*overrides: str) -> tuple[Config, SimMIM]:
    config = compose([*TINY, *overrides])
    channels = config.model.in_channels
    return config, SimMIM(config, [0.5] * channels, [0.25] * channels)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("window", "loss", "norm", "parts"),
    [
        (0, 1.1227491903, 1.3921624661, (0.2013150880, 0.0007042744, 0.0424249296, 0.1929390195)),
        (47, 1.1413355203, 1.4221576669, (0.2007827762, 0.0004710283, 0.0419214179, 0.1921392301)),
    ],
)
@pytest.mark.parametrize("backend", ["reference", "sdpa", "sequential"])
def test_loss_and_gradients_are_the_official_ones(
    window: int, loss: float, norm: float, parts: tuple[float, ...], backend: str
) -> None:
    """Computed with the official implementation in float64: see tests/models/golden.py for the filling rule."""
    config = compose([*TINY, f"task.norm_target_window={window}"])
    config.model = golden.golden_config(attention=backend)
    model = MaskedImageModel(config.model).double().eval()
    golden.fill_parameters(model)
    images = golden.golden_images(64)
    mask = torch.tensor([[[True, False], [False, True]]])
    task = SimMIM(config, [0.0] * 3, [1.0] * 3)
    reconstruction = model(images, enlarge_mask(mask, 8, 16, 16))
    total = task.summed_loss(images, reconstruction, mask).sum() / (
        masked_pixels(mask, 32, 64, 64) + NORMALISER_EPSILON
    )
    total.backward()
    named = dict(model.named_parameters())
    assert total.item() == pytest.approx(loss, abs=2e-7)
    gradients = torch.stack([parameter.grad.norm() for parameter in named.values()])
    assert gradients.norm().item() == pytest.approx(norm, rel=2e-6)
    names = (
        "mask_token",
        "encoder.layers.0.blocks.1.attn.logit_scale",
        "encoder.layers.1.blocks.0.attn.cpb_mlp.0.weight",
        "decoder.0.weight",
    )
    for name, expected in zip(names, parts, strict=True):
        assert named[name].grad.norm().item() == pytest.approx(expected, rel=2e-5), name


@pytest.mark.parametrize(("side", "count"), [(192, 22), (224, 30)])
def test_mask_count_is_rounded_up_as_officially(side: int, count: int) -> None:
    patches = side // 32
    mask = random_mask(patches, patches, 0.6, np.random.default_rng(0))
    assert int(mask.sum()) == count


def test_masks_cover_every_patch_alike() -> None:
    masks = torch.stack([random_mask(4, 4, 0.6, np.random.default_rng(i)) for i in range(2000)]).float()
    share = math.ceil(0.6 * 16) / 16
    assert (masks.mean(0) - share).abs().max() < 5 * math.sqrt(share * (1 - share) / 2000)


def test_local_statistics_equal_a_direct_count() -> None:
    torch.manual_seed(0)
    images = torch.rand(2, 3, 13, 9, dtype=torch.float64)
    mean, variance = local_statistics(images, 5)
    for row in (0, 1, 6, 12):
        for column in (0, 4, 8):
            patch = images[:, :, max(0, row - 2) : row + 3, max(0, column - 2) : column + 3].flatten(2)
            torch.testing.assert_close(mean[:, :, row, column], patch.mean(2))
            torch.testing.assert_close(variance[:, :, row, column], patch.var(2, unbiased=True))


def test_a_flat_image_has_a_finite_target() -> None:
    target, _, _ = normalise_target(torch.full((1, 3, 64, 64), 0.3), 47)
    assert torch.isfinite(target).all()


@pytest.mark.parametrize(("height", "width"), [(64, 64), (70, 100), (33, 64)])
def test_masked_pixels_counts_what_the_enlarged_mask_covers(height: int, width: int) -> None:
    grid = (-(-height // 32), -(-width // 32))
    mask = torch.stack([random_mask(*grid, 0.6, np.random.default_rng(i)) for i in range(3)])
    assert masked_pixels(mask, 32, height, width) == int(enlarge_mask(mask, 32, height, width).sum())


@pytest.mark.slow
@pytest.mark.parametrize("cut", [(6,), (3, 3), (1, 2, 3), (1,) * 6])
def test_the_loss_does_not_depend_on_how_the_batch_is_split(cut: tuple[int, ...]) -> None:
    """With drop path, the branches that a sample drops depend on its position and not on its neighbors."""
    _, task = make("model.drop_path=0.5")
    torch.manual_seed(0)
    model = task.build_model()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    batch = task.example_batch(6)

    def step_loss(sizes: tuple[int, ...]) -> tuple[torch.Tensor, list[torch.Tensor]]:
        model.zero_grad()
        parts = list(zip(*(value.split(sizes) for value in batch.values()), strict=True))
        parts = [dict(zip(batch, part, strict=True)) for part in parts]
        weight = sum(task.weights(part)["loss"] for part in parts) + NORMALISER_EPSILON
        total = torch.zeros(())
        for part in parts:
            loss = task.loss(model, part).terms["loss"] / weight
            loss.backward()
            total += loss.detach()
        return total, [parameter.grad.clone() for parameter in model.parameters()]

    whole, gradients = step_loss((6,))
    pieces, cut_gradients = step_loss(cut)
    torch.testing.assert_close(pieces, whole, rtol=1e-5, atol=0)
    for a, b in zip(gradients, cut_gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_any_channels_and_sixteen_bit(channels: int) -> None:
    _, task = make(f"model.in_channels={channels}", "data.resolution=[70,100]")
    model = task.build_model()
    batch = task.example_batch(2)
    loss = task.loss(model, batch).terms["loss"]
    assert torch.isfinite(loss)
    wide = dict(batch, image=(batch["image"].to(torch.int32) * 257).to(torch.uint16))
    torch.testing.assert_close(task.loss(model, wide).terms["loss"], loss, rtol=1e-4, atol=0)
    figure = task.figure(model.eval(), batch)
    assert min(figure.size) > 70


@pytest.mark.parametrize(("window", "says"), [(0, "the model's, colors included"), (47, "47x47")])
def test_a_figure_has_the_loss_and_the_source_of_its_colors(
    window: int, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, task = make(f"task.norm_target_window={window}")
    model, batch, written = task.build_model().eval(), task.example_batch(3), {}

    def grid(*rows: Any, **texts: Any) -> Any:
        written.update(texts)
        return image_grid(*rows, **texts)

    monkeypatch.setattr("swinv2_train.tasks.simmim.image_grid", grid)
    task.figure(model, batch)
    with torch.no_grad():
        losses = [
            task.metrics(task.evaluate(model, [{key: value[start:stop] for key, value in batch.items()}]))["loss"]
            for start, stop in ((0, 3), (0, 1), (1, 2), (2, 3))
        ]
    assert written["row_titles"] == [f"loss\n{loss:.4f}" for loss in losses[1:]]
    first, second = written["footer"].splitlines()
    assert first.endswith(f"{losses[0]:.4f}")
    assert says in second
    assert ("only the structure is the model's" in second) == bool(window)


def test_a_figure_shows_dark_images_of_16_bits() -> None:
    _, task = make()
    batch = task.example_batch(2)
    dark = dict(batch, image=batch["image"].to(torch.uint16))  # up to 255 of 65,535
    shown = [np.asarray(task.figure(task.build_model().eval(), each).convert("L")) for each in (batch, dark)]
    bright = [((pixels > 150) & (pixels < 240)).mean() for pixels in shown]
    assert bright[1] > 0.5 * bright[0] > 0.01


def test_padded_samples_do_not_count_in_the_evaluation() -> None:
    _, task = make()
    model = task.build_model().eval()
    batch = task.example_batch(4)
    first = {key: value[:3] for key, value in batch.items()}
    padded = dict(batch, valid=torch.tensor([True, True, True, False]))
    with torch.no_grad():
        a, b = task.metrics(task.evaluate(model, [first])), task.metrics(task.evaluate(model, [padded]))
    assert a["samples"] == b["samples"] == 3
    assert a["loss"] == pytest.approx(b["loss"], rel=1e-6)


@pytest.mark.slow
def test_a_perfect_reconstruction_is_drawn_as_the_image() -> None:
    """The figure reverses the target normalization: a model that predicts the target exactly shows the original."""
    _, task = make("task.norm_target_window=47", "task.mask_patch_size=16")

    class Oracle(torch.nn.Module):
        def forward(self, images: torch.Tensor, token_mask: torch.Tensor, noise: object = None) -> torch.Tensor:
            return task.target(images)

    batch = task.example_batch(1)
    pixels = torch.linspace(40, 200, 64).view(1, 1, 1, 64).expand(1, 3, 64, 64).round().to(torch.uint8)
    drawn = np.asarray(task.figure(Oracle().eval(), dict(batch, image=pixels))).astype(int)
    tile = pixels[0].permute(1, 2, 0).numpy().astype(int)
    scale = 1
    while True:  # the grid may enlarge small images by a whole factor
        block = tile.repeat(scale, 0).repeat(scale, 1)
        hits = [
            (y, x)
            for y in range(drawn.shape[0] - block.shape[0] + 1)
            for x in range(drawn.shape[1] - block.shape[1] + 1)
            if abs(drawn[y, x, :3] - block[0, 0]).max() <= 2
            and abs(drawn[y : y + block.shape[0], x : x + block.shape[1], :3] - block).max() <= 2
        ]
        if hits or scale == 8:
            break
        scale += 1
    assert len(hits) == 2, "original and reconstruction should both show the image"
