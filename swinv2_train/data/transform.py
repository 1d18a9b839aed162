"""Contract between the loaders and the tasks: the conversion of a sample from its bytes to the entries of a batch."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from swinv2_train.data.sample import Sample


class Transform:
    """Sample -> the entries of a batch. Sent to the workers.

    An entry is a tensor of the same shape for every sample, unless it is named in `ragged`.

    All randomness comes from the generator that is passed in, which depends only on the seed and the position of the
    sample. This makes a step the same for any number of ranks, workers and micro-batches. Members are decoded when they
    are first used, so a transform may draw a crop or a clip and then decode no more than that. Decoded members are
    shared between the repeats of a sample: never change them in place.

    A transform that mixes samples (mixup, cutmix) returns the partner of a position from `partner` and blends it in
    with `mix`; the loader brings both together wherever they are decoded.
    """

    members: tuple[str, ...] = ("image",)
    """Members of a sample to read from the shard, by extension: `image` (whatever its format), seg.png, npy, json, cls.

    Others cannot be used. A sample need not have all of them: using one that is missing or damaged breaks the sample.
    """
    images: tuple[str, ...] = ("image",)
    """Entries that are images: if 8 and 16 bit images meet in a batch, the former are scaled to 16 bits."""
    ragged: tuple[str, ...] = ()
    """Entries that are not stacked, such as boxes, masks, and texts; see `batch.Ragged`."""
    on_host: tuple[str, ...] = ()
    """Entries that an evaluation leaves on the host, because the task moves them to the device part by part."""

    def __call__(self, sample: Sample, rng: np.random.Generator) -> dict[str, Any]:
        """Return the entries of a sample.

        Raises:
            BrokenSample: if the sample cannot be used. It is then named, counted, and replaced.
        """
        raise NotImplementedError

    def partner(self, position: int) -> int | None:
        """Return the position that is mixed into this one, or None for no mixing.

        It must be a fixed function of the position and lie inside the same global batch.
        """
        return None

    def mix(self, own: dict[str, Tensor], other: dict[str, Tensor], rng: np.random.Generator) -> dict[str, Tensor]:
        """Blend the partner's entries into a sample's own; neither may be changed.

        `rng` is a different stream of the sample's randomness than the one of `__call__`.
        """
        raise NotImplementedError
