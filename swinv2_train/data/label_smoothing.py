"""Label maps that were resized with interpolation although every value in them is a class.

Between regions of classes 3 and 17 such a map has a few pixels of 7, 10, and 14: classes as well, and all wrong. In
rows and columns these are two plateaus (at least two equal pixels) with rising or falling single pixels between them.
Maps that were drawn, or resized with nearest neighbor, have plateaus next to each other instead.

Nothing is concluded from few classes, because their numbers are too close to each other.
"""

from __future__ import annotations

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


def check_borders(labels: np.ndarray, ignore: int) -> None:
    """Check that a label map was not interpolated.

    Args:
        labels: (H, W) class numbers, uint8 or uint16.
        ignore: value of pixels without a class, at which nothing is counted.

    Raises:
        BrokenSample: if it looks like it.
    """
    share = smooth_borders(labels, ignore)
    if share is not None:
        raise BrokenSample(
            f"at {share:.0%} of the borders between two classes it has those numbered between them, as after resizing "
            "with interpolation: resize label maps with nearest neighbor (or, if its values are right, pack them with "
            "--colors and a table that lists them)"
        )


def smooth_borders(labels: np.ndarray, ignore: int) -> float | None:
    """Return the fraction of the borders that are smooth if a label map looks interpolated; None if it does not."""
    if np.count_nonzero(np.bincount(labels.ravel())) < _KINDS + 2:
        return None
    borders = smooth = 0
    values = np.zeros(int(labels.max()) + 1, np.int64)
    for lines in (labels, labels.T):
        counted = _count(np.ascontiguousarray(lines), ignore)
        borders += counted[0]
        smooth += counted[1]
        values += np.bincount(counted[2], minlength=len(values))
    if borders < _LEAST or smooth < _SHARE * borders:
        return None
    if np.count_nonzero(values) < _KINDS or values.max() > _DOMINANT * values.sum():
        return None
    return smooth / borders


def _count(lines: np.ndarray, ignore: int) -> tuple[int, int, np.ndarray]:
    """Count the borders between far plateaus along rows.

    Returns:
        (all of them, smooth ones, the values of the pixels in these).
    """
    height, width = lines.shape
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
