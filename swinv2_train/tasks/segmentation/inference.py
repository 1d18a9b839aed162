"""Scores of a segmenter for images of any size: whole or in sliding windows, at several scales, mirrored or not.

The model returns scores on a grid of one cell per patch. Windows begin at whole cells, so all of them lie on one grid,
on which their scores are blended. Then each view (a scale, mirrored or not) is resized from its grid to the result. All
of it goes from top to bottom: rows of the grid are complete when no further window touches them, and rows of the result
are handed over in strips. Rows that wait for the strip they belong to are in a file if they are many. So memory depends
on the width of the image and the size of a window, not on its height or on the number of views.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from swinv2_train.config.checks import resolution
from swinv2_train.config.schema import Config
from swinv2_train.tasks.segmentation.resampling import Axis, enlarged, reduced_part
from swinv2_train.tasks.segmentation.row_store import Kept, RowStore
from swinv2_train.tasks.segmentation.windows import AxisWindows

_STRIP_BYTES = 64 << 20
_BYTE_CLASSES = 255
"""A label map of up to this many classes has 8 bits; the value 255 remains free for pixels without a class."""
Progress = Callable[[int], None]
"""Called after every forward pass with its number of windows."""


class Source(Protocol):
    """An image that is read in parts."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        ...

    def read(self, top: int, left: int, height: int, width: int) -> Tensor:
        """Return a part that lies in the image, (C, height, width) float32, normalized."""
        ...


@dataclass(frozen=True)
class TensorSource:
    """An image in memory."""

    image: Tensor
    """(C, H, W) float32, normalized."""

    @property
    def size(self) -> tuple[int, int]:
        return self.image.shape[-2], self.image.shape[-1]

    def read(self, top: int, left: int, height: int, width: int) -> Tensor:
        return self.image[:, top : top + height, left : left + width]


@dataclass(frozen=True)
class Inference:
    """Settings for the prediction of an image."""

    stride: int
    """Pixels per cell of the scores: the patch size of the model."""
    window: tuple[int, int] | None = None
    """Height and width in pixels of sliding windows; None: the entire image at once."""
    overlap: float = 0.34
    """Fraction of a window that neighbors share at least."""
    scales: tuple[float, ...] = (1.0,)
    """Factors of the image size; the probabilities of all views are averaged."""
    flip: bool = False
    """Also predict the mirrored image at every scale."""
    batch: int = 1
    """Windows in one forward pass."""

    @classmethod
    def of(cls, config: Config, batch: int = 1) -> Inference:
        """Return the inference that the task section of a config describes."""
        task = config.task
        return cls(
            config.model.patch_size,
            resolution(config) if task.inference == "slide" else None,
            float(task.overlap),
            tuple(float(scale) for scale in task.test_scales),
            bool(task.test_flip),
            batch,
        )

    def views(self, size: tuple[int, int]) -> list[View]:
        """Return the views of an image of this height and width."""
        mirrored = (False, True) if self.flip else (False,)
        return [View.of(self, size, scale, flip) for scale in self.scales for flip in mirrored]

    def num_windows(self, size: tuple[int, int]) -> int:
        """Return the number of windows, over all views, of an image of this height and width."""
        return sum(len(view.rows.starts) * len(view.columns.starts) for view in self.views(size))


@dataclass(frozen=True)
class View:
    """One look at an image: its size there, and its windows."""

    size: tuple[int, int]
    """Height and width in pixels of the resized image."""
    flip: bool
    rows: AxisWindows
    columns: AxisWindows

    @classmethod
    def of(cls, inference: Inference, size: tuple[int, int], scale: float, flip: bool) -> View:
        """Return the view of an image of height and width `size` at a scale."""
        scaled = tuple(max(1, round(side * scale)) for side in size)
        window = inference.window or (None, None)
        axes = [
            AxisWindows.over(
                -(-side // inference.stride), None if part is None else -(-part // inference.stride), inference.overlap
            )
            for side, part in zip(scaled, window, strict=True)
        ]
        return cls((scaled[0], scaled[1]), flip, *axes)

    def window(self, source: Source, place: tuple[int, int], stride: int) -> Tensor:
        """Return the input of the model for the window at a cell, (C, H, W): zero beyond the image, as padding is.

        Args:
            place: first row and column of cells.
        """
        (top, left), (height, width) = (place[0] * stride, place[1] * stride), self.size
        tall, wide = self.rows.window * stride, self.columns.window * stride
        if self.single:  # the model pads an entire image by itself
            tall, wide = height, width
        inside = min(tall, height - top), min(wide, width - left)
        column = width - left - inside[1] if self.flip else left
        part = self._part(source, top, column, *inside)
        if self.flip:
            part = part.flip(-1)
        if inside == (tall, wide):
            return part
        canvas = part.new_zeros(len(part), tall, wide)
        canvas[:, : inside[0], : inside[1]] = part
        return canvas

    @property
    def single(self) -> bool:
        """True if one window covers the image."""
        return len(self.rows.starts) * len(self.columns.starts) == 1

    def _part(self, source: Source, top: int, left: int, height: int, width: int) -> Tensor:
        if source.size == self.size:
            return source.read(top, left, height, width)
        rows = Axis(source.size[0], self.size[0], top, height)
        columns = Axis(source.size[1], self.size[1], left, width)
        return reduced_part(source.read, rows, columns)


def score_strips(
    model: nn.Module,
    source: Source,
    inference: Inference,
    size: tuple[int, int] | None = None,
    progress: Progress | None = None,
) -> Iterator[tuple[int, Tensor]]:
    """Yield the scores of an image in strips from top to bottom: (first row, (K, rows, W) fp32 on the model's device).

    The softmax of scores are probabilities. Those of a single view are the logits, blended where windows overlap; those
    of several views are the logarithm of the mean probability.

    Args:
        model: returns (logits (B, K, ceil(H / stride), ceil(W / stride)), anything) for images (B, C, H, W); in
            evaluation mode.
        size: height and width of the result, such as those of the image before it was resized; None: the source's.

    Raises:
        OSError: if the temporary folder has no space for rows that wait.
    """
    size = size or source.size
    with RowStore() as store:
        grids = [_Grid(model, source, view, inference, store, progress) for view in inference.views(source.size)]
        first, rows = 0, 1  # the first row shows the number of classes
        while first < size[0]:
            last = min(size[0], first + rows)
            parts = (grid.enlarged(first, last, size) for grid in grids)
            scores = next(parts)
            rows = max(1, _STRIP_BYTES // (4 * len(scores) * size[1]))
            yield first, _mean(scores, parts, len(grids))
            first = last


def _mean(scores: Tensor, others: Iterator[Tensor], views: int) -> Tensor:
    if views == 1:
        return scores
    total = scores.softmax(dim=0)
    for other in others:
        total += other.softmax(dim=0)
    # The smallest normal number: a probability may underflow to 0 in every view.
    return (total / views).clamp_min(torch.finfo(torch.float32).tiny).log()


def label_strips(
    model: nn.Module,
    source: Source,
    inference: Inference,
    size: tuple[int, int] | None = None,
    progress: Progress | None = None,
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the most likely class of every pixel: (first row, (rows, W) uint8, or uint16 with more than 255 classes).

    Arguments as for `score_strips`.

    Raises:
        FloatingPointError: if the model's outputs are not finite.
    """
    for first, scores in score_strips(model, source, inference, size, progress):
        values, classes = scores.max(dim=0)
        if not values.isfinite().all():
            raise FloatingPointError("the outputs of the model are not finite")
        yield first, classes.cpu().numpy().astype(label_type(len(scores)))


def label_type(classes: int) -> np.dtype:
    """Return the type of label maps with this many classes."""
    return np.dtype(np.uint8 if classes <= _BYTE_CLASSES else np.uint16)


class _Grid:
    """Scores of one view, whose rows are computed when they are needed."""

    def __init__(
        self,
        model: nn.Module,
        source: Source,
        view: View,
        inference: Inference,
        store: RowStore,
        progress: Progress | None,
    ) -> None:
        self._model, self._source, self._view, self._inference = model, source, view, inference
        self._store, self._progress = store, progress
        self._device = next(model.parameters()).device
        self._rows = self._entire() if view.single else self._bands()
        self._parts: deque[tuple[int, Kept]] = deque()

    def enlarged(self, first: int, last: int, size: tuple[int, int]) -> Tensor:
        """Return rows first to last of the result at height and width `size`, (K, last - first, W).

        Rows must be requested in ascending order.
        """
        stride, (height, width) = self._inference.stride, self._view.size
        rows, columns = self._view.rows.cells, self._view.columns.cells
        # The grid of a mirrored image ends where the image begins.
        begin = width - columns * stride if self._view.flip else 0
        vertical = Axis(rows, size[0], first, last - first, height / size[0] / stride)
        horizontal = Axis(columns, size[1], 0, size[1], width / size[1] / stride, begin / stride)
        low, high = vertical.neighbors_range()
        return enlarged(self._take(low, high).to(self._device).transpose(0, 1), vertical, horizontal, low)

    def _scores(self, places: Sequence[tuple[int, int]]) -> Tensor:
        """Return the scores of windows at these cells, (n, K, rows, columns), as the unmirrored image has them."""
        stride = self._inference.stride
        images = torch.stack([self._view.window(self._source, place, stride) for place in places])
        scores = self._model(images.to(self._device))[0].float()
        if self._progress is not None:
            self._progress(len(places))
        return scores.flip(-1) if self._view.flip else scores

    def _take(self, low: int, high: int) -> Tensor:
        """Return rows low to high of the grid, (high - low, K, columns); those before are forgotten."""
        while self._parts and self._parts[0][0] + self._parts[0][1].shape[0] <= low:
            self._store.release(self._parts.popleft()[1])
        while not self._parts or self._parts[-1][0] + self._parts[-1][1].shape[0] < high:
            first, part = next(self._rows)
            if first + part.shape[0] > low:
                self._parts.append((first, part))
            else:
                self._store.release(part)
        parts = [
            self._store.read(part, max(0, low - first), min(part.shape[0], high - first)) for first, part in self._parts
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _entire(self) -> Iterator[tuple[int, Kept]]:
        """Yield the rows of a view of one window, on its device."""
        yield 0, self._store.keep(self._scores([(0, 0)])[0].transpose(0, 1))

    def _bands(self) -> Iterator[tuple[int, Kept]]:
        """Yield the blended rows from top to bottom: (first row, (n, K, columns)).

        Between two bands, all rows are in the store: with several views, the others compute theirs meanwhile.
        """
        rows = self._view.rows
        down, across = rows.weights(), self._view.columns.weights()
        unfinished: Kept | None = None
        for number, top in enumerate(rows.starts):
            band = self._band(top, across).mul_(down[number][:, None, None])
            if unfinished is not None:
                band[: unfinished.shape[0]] += self._store.read(unfinished, 0, unfinished.shape[0])
                self._store.release(unfinished)
            done = rows.window if top == rows.starts[-1] else rows.starts[number + 1] - top
            finished = self._store.keep(band[:done])
            unfinished = self._store.keep(band[done:]) if done < rows.window else None
            del band
            yield top, finished

    def _band(self, top: int, across: Tensor) -> Tensor:
        """Return the scores of a row of windows, blended from left to right, (rows of a window, K, columns), on the
        host."""
        columns, band = self._view.columns, None
        numbered = enumerate(columns.starts)
        while group := list(itertools.islice(numbered, self._inference.batch)):
            # A mirrored window lies at the mirrored place; the last cells of the grid are the first of the mirrored.
            places = [(top, left) for _, left in group]
            if self._view.flip:
                places = [(top, columns.cells - columns.window - left) for _, left in group]
            for (number, left), scores in zip(group, self._scores(places), strict=True):
                part = (scores * across[number].to(scores.device)).cpu().transpose(0, 1)
                if band is None:
                    band = part.new_zeros(*part.shape[:2], columns.cells)
                band[:, :, left : left + columns.window] += part
        assert band is not None
        return band
