"""What happens to a sample between its bytes and a batch: the contract between the loaders and the tasks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from swinv2_train.data.shards import RawSample


@dataclass(frozen=True)
class Decoded:
    """A sample with its image decoded."""

    image: Tensor
    """(C, H, W) uint8, or uint16 for 16 bit images."""
    raw: RawSample
    """As it lies in the shard; with its text members where the transform asks for them."""


class Transform:
    """Decoded sample -> the entries of a batch, each of the same shape for every sample. Sent to the workers.

    All randomness comes from the generator that is handed in, which hangs on the seed and the position of the sample
    alone. That is what makes a step the same for any number of ranks, workers and micro-batches.

    A transform that mixes samples (mixup, cutmix) names the partner of a position with `partner` and has it blended in
    by `mix`; the loader brings both together wherever they are decoded.
    """

    texts: bool = False
    """Whether `RawSample.texts` is needed: labels, captions."""

    def __call__(self, sample: Decoded, rng: np.random.Generator) -> dict[str, Tensor]:
        """Raises BrokenSample for a sample that cannot be used, which then is named, counted and replaced."""
        raise NotImplementedError

    def partner(self, position: int) -> int | None:
        """The position that is mixed into this one, a fixed function of it inside its global batch; None: no mixing."""
        return None

    def mix(self, own: dict[str, Tensor], other: dict[str, Tensor], rng: np.random.Generator) -> dict[str, Tensor]:
        """Blend the partner's entries into a sample's own; neither may be changed.

        `rng` is another stream of the sample's randomness than `__call__` had.
        """
        raise NotImplementedError
