"""Choice of the samples of a figure that every rank draws."""

from __future__ import annotations

from collections.abc import Sequence

from swinv2_train.launch.ranks import Ranks


def same_number(own: Sequence[int], size: int, ranks: Ranks) -> list[int]:
    """Return the samples of a batch to draw: on the main rank `own`, or the first; on the others as many. A collective.

    A task may run a forward pass per sample, which under ZeRO-3 is a collective.

    Args:
        own: numbers of the samples that this rank would draw.
        size: number of samples in the batch.
    """
    count = ranks.broadcast(len(own) or 1)
    order = [*own, *(number for number in range(size) if number not in own)]
    return (order * -(-count // size))[:count]
