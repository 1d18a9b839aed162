"""Choice of the candidates that a loss counts, with randomness as an input, like stochastic depth in `drop_path.py`.

An image draws the same candidates for any number of ranks and any micro-batch. Rounding may still change which
candidates there are.
"""

from __future__ import annotations

from torch import Tensor

from swinv2_train.models.detection.matching import BACKGROUND
from swinv2_train.models.drop_path import uniform_noise

_FIRST = 2
"""Counters from 2**33 on belong to detection; stochastic depth and dropped channels have lower ones."""


def candidate_noise(seed: Tensor, draw: int, count: int) -> Tensor:
    """Return uniform numbers for the candidates of one image.

    Args:
        seed: int64 scalar, of the sample.
        draw: number of the draw in a training step; each has its own numbers.

    Returns:
        (count,) float32 in [0, 1).
    """
    return uniform_noise(seed.view(1), (_FIRST + draw) << 32, count)[0]


def branch_noise(seeds: Tensor) -> Tensor:
    """Return uniform numbers for both branches of the block of global attention: (B,) int64 -> (B, 2) float32."""
    return uniform_noise(seeds, 1 << 40, 2)


def sample(matched: Tensor, noise: Tensor, count: int, share: float) -> tuple[Tensor, Tensor]:
    """Choose at most `count` candidates, of which at most the fraction `share` has an object; background fills up.

    Args:
        matched: (A,), see `match`.
        noise: (A,): the candidates with the smallest numbers are chosen.

    Returns:
        Indices of the chosen candidates with an object, and of those of the background, each increasing.
    """
    positives = _smallest(matched >= 0, noise, int(count * share))
    return positives, _smallest(matched == BACKGROUND, noise, count - len(positives))


def _smallest(among: Tensor, noise: Tensor, count: int) -> Tensor:
    """Return the indices of the `count` smallest numbers, of equal ones the first."""
    places = among.nonzero().flatten()
    if len(places) <= count:
        return places
    return places[noise[places].argsort(stable=True)[:count]].sort().values
