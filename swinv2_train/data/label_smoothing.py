"""Label maps that look as if they were resized with interpolation, although every value in them is a class.

Between regions of classes 3 and 17 such a map has a few pixels of 7, 10, and 14: classes as well, and all wrong. In
rows and columns these are two plateaus (at least two equal pixels) with rising or falling single pixels between them.
Maps that were drawn, or resized with nearest neighbor, have plateaus next to each other instead.

Classes that follow each other by their nature, such as those of heights or distances, can look the same. Therefore it
is only a warning. Nothing is concluded from few classes, because their numbers are too close to each other.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence

import numpy as np

from swinv2_train.data.errors import BrokenSample

_FAR = 4
"""Least difference of the numbers of two plateaus: three other classes are between them."""
_STEP = 2
"""Least average step from pixel to pixel: smaller ones are the classes of a slope, such as of heights."""
_LEAST = 40
"""Borders between such plateaus below which nothing is concluded."""
_SHARE = 0.4
"""Fraction of these borders that are smooth in a map that was interpolated."""
_KINDS = 4
_DOMINANT = 0.45
"""Smooth borders of an interpolated map have at least `_KINDS` different values, none with more than this fraction of
the pixels. A class that is drawn as an outline has one value, an outline of two pixels two."""
_PIECE = (512, 2048)
"""Height and width of the parts in which borders are counted, which bound the memory."""
_ENOUGH, _MOST = 2000, 1 << 26
"""Borders, and pixels, that suffice of a large map."""
_SPREAD = 0.618
"""Multiples of the golden section, without their integers, are spread evenly however many there are."""
_SHOWN = 3


def is_smooth(labels: np.ndarray, ignore: int) -> bool:
    """Return whether a label map looks as if it was resized with interpolation.

    Args:
        labels: (H, W) class numbers, uint8 or uint16.
        ignore: value of pixels without a class, at which nothing is counted.
    """

    def read(box: tuple[int, int, int, int]) -> np.ndarray:
        top, left, height, width = box
        return labels[top : top + height, left : left + width]

    return is_smooth_scene((labels.shape[0], labels.shape[1]), read, ignore)


def is_smooth_scene(
    size: tuple[int, int], read: Callable[[tuple[int, int, int, int]], np.ndarray], ignore: int
) -> bool:
    """Return the same for a label map of any size, of which parts are read; a large one is judged by some of its rows.

    Args:
        size: height and width.
        read: returns the part of a box (top, left, height, width). Parts with BrokenSample do not count.
    """
    (height, width), (tall, wide) = size, _PIECE
    borders = smooth = pixels = 0
    values = np.zeros(1 << 16, np.int64)
    for top in sorted(range(0, height, tall), key=lambda top: top // tall * _SPREAD % 1):
        for left in range(0, width, wide):
            box = top, left, min(tall, height - top), min(wide, width - left)
            pixels += box[2] * box[3]
            with contextlib.suppress(BrokenSample):
                part = read(box)
                for lines in (part, part.T):
                    counted = _count(np.ascontiguousarray(lines), ignore)
                    borders += counted[0]
                    smooth += counted[1]
                    values += np.bincount(counted[2], minlength=len(values))
        if borders >= _ENOUGH or pixels >= _MOST:
            break
    if borders < _LEAST or smooth < _SHARE * borders:
        return False
    return np.count_nonzero(values) >= _KINDS and bool(values.max() <= _DOMINANT * values.sum())


def smooth_warning(names: Sequence[str]) -> str:
    """Return the warning about label maps that look interpolated, which names the first of them."""
    count = "1 label map looks as if it was" if len(names) == 1 else f"{len(names):,} label maps look as if they were"
    more = ", ..." if names[_SHOWN:] else ""
    return (
        f"{count} resized with interpolation ({', '.join(names[:_SHOWN])}{more}): between two classes are those "
        "numbered between them; resize label maps with nearest neighbor, or ignore this if the numbers are an order, "
        "such as that of heights"
    )


def _count(lines: np.ndarray, ignore: int) -> tuple[int, int, np.ndarray]:
    """Count the borders between far plateaus along rows.

    Returns:
        (all of them, smooth ones, the values of the pixels in these).
    """
    height, width = lines.shape
    if int(lines.max()) - int(lines.min()) < _FAR:
        return 0, 0, np.zeros(0, np.int32)
    first = np.ones((height, width), bool)
    np.not_equal(lines[:, 1:], lines[:, :-1], out=first[:, 1:])
    starts = np.flatnonzero(first)
    runs = lines.ravel()[starts].astype(np.int32)
    plateau = np.diff(starts, append=lines.size) > 1
    places = np.flatnonzero(plateau)
    left, right = places[:-1], places[1:]
    low, high = np.minimum(runs[left], runs[right]), np.maximum(runs[left], runs[right])
    far = high - low >= np.maximum(_FAR, _STEP * (right - left))
    far &= starts[left] // width == starts[right] // width
    far &= (runs[left] != ignore) & (runs[right] != ignore)
    singles = np.flatnonzero(~plateau)
    after = np.searchsorted(places, singles) - 1  # the plateau that each follows
    singles, after = (each[(after >= 0) & (after < len(far))] for each in (singles, after))
    inside = (runs[singles] > low[after]) & (runs[singles] < high[after])
    # Steps between the single pixels have the same sign as the border: the sum of the signs is their number.
    signs = np.concatenate([[0], np.cumsum(np.sign(np.diff(runs)))])
    rising = (signs[right - 1] - signs[left + 1]) * np.sign(runs[right] - runs[left]) == right - left - 2
    smooth = far & rising & (np.bincount(after[inside], minlength=len(far)) > 0)
    return int(far.sum()), int(smooth.sum()), runs[singles[inside & smooth[after]]]
