"""Division of large images into tiles."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Tiling:
    """Tiles that large images are cut into."""

    side: int
    """Height and width of a tile in pixels."""
    overlap: int = 0
    """Pixels that neighboring tiles share at least."""

    def boxes(self, height: int, width: int) -> list[tuple[int, int, int, int]]:
        """Return top, left, height, and width of the tiles of an image, row by row.

        They are spaced by `side - overlap`, and the last ones are moved inside.
        A side shorter than a tile gives tiles as short as it is.
        """
        tall, wide = min(self.side, height), min(self.side, width)
        return [(top, left, tall, wide) for top in self._starts(height, tall) for left in self._starts(width, wide)]

    def _starts(self, length: int, tile: int) -> list[int]:
        step = self.side - self.overlap
        return [*range(0, length - tile, step), length - tile]
