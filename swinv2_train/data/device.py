"""The way of batches to the device: from pinned memory, on a stream of their own, one batch ahead.

Images travel as they were decoded, uint8 or uint16; `augment.normalise` makes them fp32 there.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from functools import cache

import torch

from swinv2_train.data.batch import Batch, tensors, to_device


def on_device(batches: Iterable[Batch], device: torch.device, on_host: Collection[str] = ()) -> Iterator[Batch]:
    """Yield the batches on the device. On a GPU, the next one is copied while one is used.

    The copy does not wait for the computation that is queued before it, so it overlaps with whatever the GPU still has
    to do, such as the optimizer's step. It is asynchronous only from pinned memory, in which the loader puts batches if
    there is a GPU. On other devices, nothing is taken from `batches` in advance.

    Args:
        on_host: entries that stay on the host, see `Transform.on_host`.
    """
    if device.type != "cuda":
        for batch in batches:
            yield to_device(batch, device, on_host)
        return
    ahead: _Copy | None = None
    for batch in batches:
        following = _Copy(batch, device, on_host)
        if ahead is not None:
            yield ahead.arrived()
        ahead = following
    if ahead is not None:
        yield ahead.arrived()


class _Copy:
    """A batch that is being copied to a GPU."""

    def __init__(self, batch: Batch, device: torch.device, on_host: Collection[str]) -> None:
        stream = _stream(device)
        self._device = device
        with torch.cuda.stream(stream):
            self._batch = to_device(batch, device, on_host)
            self._done = stream.record_event()

    def arrived(self) -> Batch:
        """Return the batch, for work that is queued on the current stream from now on."""
        current = torch.cuda.current_stream(self._device)
        current.wait_event(self._done)
        for tensor in tensors(self._batch):
            # The memory belongs to the other stream, which must not reuse it before this one is done with it.
            if tensor.device.type == "cuda":
                tensor.record_stream(current)
        return self._batch


@cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)
