"""Sliding windows over an image: their places, and the weights that blend their scores."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class AxisWindows:
    """Windows along one axis, in cells of the map that the model returns."""

    cells: int
    """Length of the map."""
    window: int
    """Length of every window; at most `cells`."""
    starts: tuple[int, ...]
    """First cell of each window, ascending; together they cover the map."""

    @classmethod
    def over(cls, cells: int, window: int | None, overlap: float) -> AxisWindows:
        """Return evenly spaced windows.

        Args:
            window: length of a window; None, or one that exceeds the map: a single window.
            overlap: fraction of a window that neighbors share at least, below 1.
        """
        if window is None or window >= cells:
            return cls(cells, cells, (0,))
        step = max(1, math.floor(window * (1 - overlap)))
        count = math.ceil((cells - window) / step) + 1
        starts = tuple(round(number * (cells - window) / (count - 1)) for number in range(count))
        return cls(cells, window, starts)

    def weights(self) -> Tensor:
        """Return the weight of every cell in every window, (windows, window) float32.

        A weight falls off linearly toward a border that another window covers. The weights of all windows that cover a
        cell add up to 1, and so it does not matter in which order they are added.
        """
        place = torch.arange(self.window, dtype=torch.float64) + 0.5
        raw = torch.ones(len(self.starts), self.window, dtype=torch.float64)
        for number, (start, following) in enumerate(zip(self.starts, self.starts[1:], strict=False)):
            shared = start + self.window - following
            if shared > 0:
                raw[number] = torch.minimum(raw[number], (self.window - place) / shared)
                raw[number + 1] = torch.minimum(raw[number + 1], place / shared)
        total = torch.zeros(self.cells, dtype=torch.float64)
        for start, row in zip(self.starts, raw, strict=True):
            total[start : start + self.window] += row
        for start, row in zip(self.starts, raw, strict=True):
            row /= total[start : start + self.window]
        return raw.to(torch.float32)
