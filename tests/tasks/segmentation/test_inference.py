"""Inference of segmenters: sliding windows, views, and strips give what whole images and plain formulas give."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from swinv2_train.tasks.segmentation import inference as module
from swinv2_train.tasks.segmentation import row_store
from swinv2_train.tasks.segmentation.inference import (
    Inference,
    TensorSource,
    label_strips,
    label_type,
    score_strips,
)
from swinv2_train.tasks.segmentation.resampling import Axis, reduced_part
from swinv2_train.tasks.segmentation.windows import AxisWindows
from tests.models.memory import LiveBytes
from tests.tasks.segmentation.scores import predict_labels, predict_scores

K = 5


class Local(nn.Module):
    """A model like a segmenter, whose scores depend on a few pixels around their patch, or on their patch alone."""

    def __init__(self, reach: int = 1) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.embed = nn.Parameter(torch.randn(8, 3, 4, 4, generator=generator) / 7)
        self.mix = nn.Parameter(torch.randn(K, 8, 2 * reach + 1, 2 * reach + 1, generator=generator) / (3 * reach + 3))
        self.reach, self.calls = reach, []

    def forward(self, images: Tensor) -> tuple[Tensor, None]:
        self.calls.append(tuple(images.shape))
        height, width = images.shape[-2:]
        padded = F.pad(images, (0, -width % 4, 0, -height % 4))
        return F.conv2d(F.conv2d(padded, self.embed, stride=4).tanh(), self.mix, padding=self.reach), None


def _image(height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(height * 1000 + width)
    coarse = torch.randn(1, 3, max(2, height // 9), max(2, width // 9), generator=generator)
    return F.interpolate(coarse, (height, width), mode="bicubic") + 0.1 * torch.randn(
        1, 3, height, width, generator=generator
    )


@torch.no_grad()
def _whole(model: nn.Module, image: Tensor) -> Tensor:
    """The scores of an entire image, enlarged by torch."""
    logits = model(image)[0]
    padded = F.interpolate(logits, scale_factor=4, mode="bilinear", align_corners=False)
    return padded[..., : image.shape[-2], : image.shape[-1]]


@pytest.fixture(autouse=True)
def _without_gradients():
    with torch.inference_mode():
        yield


@pytest.mark.parametrize("size", [(32, 48), (33, 47), (3, 2), (30, 64)])
@pytest.mark.parametrize("window", [None, (64, 64), (400, 64)])
def test_one_window_is_the_whole_image(size: tuple[int, int], window: tuple[int, int] | None) -> None:
    model, image = Local(), _image(*size)
    torch.testing.assert_close(predict_scores(model, image, Inference(4, window)), _whole(model, image))
    assert model.calls[0] == (1, 3, *size)  # not padded


def test_scores_at_the_original_size_are_interpolated_once() -> None:
    model, image = Local(), _image(32, 48)
    found = predict_scores(model, image, Inference(4), (51, 75))
    expected = F.interpolate(model(image)[0], (51, 75), mode="bilinear", align_corners=False)
    torch.testing.assert_close(found, expected)
    labels = predict_labels(model, image, Inference(4), (51, 75))
    assert labels.dtype == np.uint8
    assert np.array_equal(labels, expected[0].argmax(0).numpy())


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("overlap", [0.0, 0.34, 0.7])
@pytest.mark.parametrize("size", [(81, 67), (20, 90)])
def test_windows_of_a_model_that_sees_single_patches_are_exact(
    size: tuple[int, int], overlap: float, flip: bool
) -> None:
    """Such a model's scores do not depend on the window, so any blending must return them: weights that add up to 1."""
    model, image = Local(reach=0), _image(*size)
    inference = Inference(4, (32, 24), overlap, flip=flip)
    expected = _whole(model, image)
    found = predict_scores(model, image, inference)
    if flip:
        mirrored = _whole(model, image.flip(-1)).flip(-1)
        expected = ((expected.softmax(1) + mirrored.softmax(1)) / 2).log()
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)
    assert sum(call[0] for call in model.calls[:-1]) >= inference.num_windows(size)


@pytest.mark.parametrize("cells", [10, 11, 37])
@pytest.mark.parametrize("overlap", [0.0, 0.3, 0.5, 0.9])
def test_weights_fall_off_linearly_and_add_up_to_one(cells: int, overlap: float) -> None:
    axis = AxisWindows.over(cells, 8, overlap)
    weights, total = axis.weights(), torch.zeros(cells)
    for start, row in zip(axis.starts, weights, strict=True):
        total[start : start + 8] += row
        assert (row > 0).all()
    torch.testing.assert_close(total, torch.ones(cells))
    assert axis.starts[0] == 0
    assert axis.starts[-1] + 8 == cells
    steps = np.diff(axis.starts)
    assert steps.max() <= max(1, math.floor(8 * (1 - overlap)))  # neighbors share at least the overlap
    if len(steps) and steps.min() > 4:
        shared = 8 - int(steps[0])
        torch.testing.assert_close(weights[0, 8 - shared :], 1 - (torch.arange(shared) + 0.5) / shared)


def test_borders_of_windows_are_invisible() -> None:
    """A model that sees the patches around each one: near a border of a window it misses some. Blended, this hardly
    shows; windows that only touch have a seam."""
    model, image = Local(), _image(128, 128)
    whole = _whole(model, image)
    seams, equal = {}, {}
    for overlap in (0.0, 0.34):
        found = predict_scores(model, image, Inference(4, (64, 64), overlap))
        seams[overlap] = float((found - whole).abs().max() / whole.abs().max())
        equal[overlap] = float((found.argmax(1) == whole.argmax(1)).float().mean())
    assert seams[0.0] > 0.4
    assert seams[0.34] < 0.05
    assert equal[0.0] < 0.97
    assert equal[0.34] > 0.99


@pytest.mark.parametrize("flip", [False, True])
def test_batches_of_windows_and_strips_change_nothing(flip: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model, image = Local(), _image(70, 66)
    expected = predict_scores(model, image, Inference(4, (32, 32), 0.4, (1.0, 1.5), flip))
    counts: list[int] = []
    inference = Inference(4, (32, 32), 0.4, (1.0, 1.5), flip, batch=3)
    for strip_bytes in (1, 20_000):
        monkeypatch.setattr(module, "_STRIP_BYTES", strip_bytes)
        strips = list(score_strips(model, TensorSource(image[0]), inference, progress=counts.append))
        firsts = [first for first, _ in strips]
        assert firsts == np.cumsum([0] + [part.shape[1] for _, part in strips[:-1]]).tolist()
        assert len(strips) > 2
        torch.testing.assert_close(torch.cat([part for _, part in strips], 1)[None], expected)
    assert sum(counts) == 2 * inference.num_windows((70, 66))
    assert max(counts) == 3


def test_memory_does_not_grow_with_the_number_of_views(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of many classes in a small result, so that rows of windows are most of the memory."""
    model, image = Local(), _image(96, 256)
    model.mix = nn.Parameter(model.mix.repeat(8, 1, 1, 1))
    single = Inference(4, (64, 64), 0.25)
    several = replace(single, scales=(1.0, 0.75), flip=True)
    peaks, results = {}, []
    for views, limit in ((single, 0), (several, 0), (several, 1 << 30)):
        monkeypatch.setattr(row_store, "MEMORY_BYTES", limit)
        with LiveBytes() as live:
            strips = list(score_strips(model, TensorSource(image[0]), views, (12, 32)))
        peaks[len(views.scales), limit] = live.peak
        results.append(torch.cat([part for _, part in strips], dim=1))
    assert torch.equal(results[1], results[2])
    assert peaks[2, 0] < 1.3 * peaks[1, 0]
    assert peaks[2, 1 << 30] > 1.8 * peaks[1, 0]


def test_several_scales_average_probabilities() -> None:
    model, image = Local(), _image(40, 56)
    found = predict_scores(model, image, Inference(4, scales=(0.5, 1.0, 1.25), flip=True), (80, 112))
    total = torch.zeros(1, K, 80, 112)
    for size in ((20, 28), (40, 56), (50, 70)):
        view = F.interpolate(image, size, mode="bilinear", align_corners=False, antialias=True)
        for mirrored in (False, True):
            logits = model(view.flip(-1) if mirrored else view)[0]
            height, width = size
            # One interpolation from the grid to the result, with the coordinates of both.
            rows = Axis(logits.shape[-2], 80, 0, 80, height / 80 / 4)
            columns = Axis(logits.shape[-1], 112, 0, 112, width / 112 / 4)
            grid = torch.stack(
                torch.meshgrid(
                    columns.centers().float() / logits.shape[-1] * 2 - 1,
                    rows.centers().float() / logits.shape[-2] * 2 - 1,
                    indexing="xy",
                ),
                -1,
            )
            sampled = F.grid_sample(logits, grid[None], align_corners=False, padding_mode="border")
            total += (sampled.flip(-1) if mirrored else sampled).softmax(1)
    torch.testing.assert_close(found.exp(), total / 6, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("target", [(20, 31), (64, 50), (40, 50), (3, 90)])
def test_a_part_of_a_resized_image_is_the_part_of_the_whole(target: tuple[int, int]) -> None:
    image = _image(40, 50)[0]
    whole = F.interpolate(image[None], target, mode="bilinear", align_corners=False, antialias=True)[0]
    source = TensorSource(image)
    (height, width) = target
    half = height // 2
    for top, left, tall, wide in ((0, 0, height, width), (half, 3, height - half, width - 7), (1, 0, 1, 2)):
        rows, columns = Axis(40, height, top, tall), Axis(50, width, left, wide)
        found = reduced_part(source.read, rows, columns)
        torch.testing.assert_close(found, whole[:, top : top + tall, left : left + wide], atol=1e-5, rtol=1e-5)


def test_many_classes_have_16_bits_and_broken_weights_are_reported() -> None:
    assert label_type(255) == np.uint8
    assert label_type(256) == np.uint16
    model, image = Local(), _image(16, 16)
    model.mix[0, 0] = float("nan")
    with pytest.raises(FloatingPointError):
        list(label_strips(model, TensorSource(image[0]), Inference(4)))
