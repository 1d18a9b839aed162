"""Batches: samples collated, selected from, and moved between processes and devices.

An entry of a batch is stacked (a tensor, batch first) or ragged (`Ragged`: one value per sample, such as boxes, masks,
or texts). Anything else, such as the loader's list `broken`, belongs to the batch as a whole.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from swinv2_train.data.pixels import same_depth

Batch = dict[str, Any]
"""A micro-batch: entries by name; always `position`."""

SIZE = "size"
"""Entry int64 (B, 2): height and width of each image on its padded canvas, see `geometry.pad`."""

TOGETHER = "together"
"""Entry int: the most inputs of the model in a forward pass of an evaluation, if a sample has several inputs."""


def has_deep_images(batch: Batch) -> bool:
    """Return True if the images of a batch have 16 bits, so that pictures of them need to be stretched."""
    images = batch["image"]
    pixels = images.flat if isinstance(images, Ragged) else images
    return pixels is not None and pixels.dtype == torch.uint16


class Ragged:
    """One value per sample, not stacked: tensors of one dtype and any shapes, or any other values.

    Tensors are stored end to end in one flat tensor. Separate values in shared memory would cost a file descriptor and
    a copy to the device per sample. Values are views of it: writing into one changes the batch.
    """

    def __init__(self, values: Sequence[Any]) -> None:
        """Raises TypeError if tensors and other values, or tensors of several dtypes, are mixed."""
        tensors = [value for value in values if isinstance(value, Tensor)]
        self._flat: Tensor | None = None
        self._shapes: tuple[torch.Size, ...] = ()
        self._others: tuple[Any, ...] = ()
        if not tensors:
            self._others = tuple(values)
            return
        dtypes = sorted({str(tensor.dtype) for tensor in tensors})
        if len(tensors) < len(values) or len(dtypes) > 1:
            mixed = ", ".join(dtypes) if len(tensors) == len(values) else "tensors and other values"
            raise TypeError(f"the values of a ragged entry must be of one type, not {mixed}")
        self._shapes = tuple(tensor.shape for tensor in tensors)
        self._flat = torch.cat([tensor.reshape(-1) for tensor in tensors])

    def __len__(self) -> int:
        return len(self._others) if self._flat is None else len(self._shapes)

    def __iter__(self) -> Iterator[Any]:
        if self._flat is None:
            return iter(self._others)
        parts = self._flat.split([shape.numel() for shape in self._shapes])
        return iter([part.view(shape) for part, shape in zip(parts, self._shapes, strict=True)])

    def __getitem__(self, index: int) -> Any:
        return list(self)[index]

    @property
    def flat(self) -> Tensor | None:
        """The tensor that holds all values end to end; None for other values."""
        return self._flat

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors; 0 for other values."""
        return 0 if self._flat is None else self._flat.nbytes

    def __repr__(self) -> str:
        return f"Ragged({list(self)!r})"

    def select(self, indices: Sequence[int]) -> Ragged:
        """Return the values of some samples, in this order."""
        values = list(self)
        return Ragged([values[index] for index in indices])

    def pin_memory(self) -> Ragged:
        """Return the same values in pinned memory; the loader's pinning thread calls this by its name."""
        return self._with(lambda flat: flat.pin_memory())

    def to(self, device: torch.device) -> Ragged:
        """Return the same values with tensors on the device."""
        return self._with(lambda flat: flat.to(device, non_blocking=True))

    def _with(self, change: Callable[[Tensor], Tensor]) -> Ragged:
        changed = Ragged(())
        changed._shapes, changed._others = self._shapes, self._others
        changed._flat = None if self._flat is None else change(self._flat)
        return changed


def collate(
    samples: Sequence[Mapping[str, Any]], *, images: Sequence[str] = ("image",), ragged: Sequence[str] = ()
) -> Batch:
    """Combine the entries of samples into those of a batch.

    Args:
        images: entries that are images. If 8 and 16 bit images meet, the 8 bit ones are scaled to 16 bits. In any other
            entry, such as a label map, 8 bit numbers keep their value.
        ragged: entries that are not stacked.

    Raises:
        ValueError: if an entry cannot be stacked, because it is not a tensor or differs in shape; it is named.
    """
    batch: Batch = {}
    for name in samples[0]:
        values = _of_one_depth([sample[name] for sample in samples], is_image=name in images)
        batch[name] = Ragged(values) if name in ragged else _stacked(name, values)
    return batch


def _of_one_depth(values: list[Any], *, is_image: bool) -> list[Any]:
    """Convert values of 8 bits to 16 bits if both meet."""
    if {getattr(value, "dtype", None) for value in values} != {torch.uint8, torch.uint16}:
        return values
    if is_image:
        return same_depth(values)
    # torch promotes no uint16. The values are numbers, such as classes, so they are not scaled.
    return [value.to(torch.int32).to(torch.uint16) for value in values]


def _stacked(name: str, values: list[Any]) -> Tensor:
    if any(not isinstance(value, Tensor) for value in values):
        raise ValueError(f"the entry {name} is not a tensor: name it in Transform.ragged")
    if len(shapes := {tuple(value.shape) for value in values}) > 1:
        seen = " and ".join(str(shape) for shape in sorted(shapes)[:2])
        raise ValueError(f"the entry {name} differs in shape between samples ({seen}): name it in Transform.ragged")
    return torch.stack(values)


def select(batch: Batch, indices: Sequence[int] | Tensor) -> Batch:
    """Return a batch of some samples of another one, in the order of `indices`.

    Entries that belong to the entire batch, such as `broken`, are dropped.

    Args:
        indices: sample numbers, or a bool tensor (B,) that is True for the samples to keep.
    """
    if isinstance(indices, Tensor):
        indices = (indices.nonzero()[:, 0] if indices.dtype == torch.bool else indices).tolist()
    indices = list(indices)
    selected: Batch = {}
    for name, value in batch.items():
        if isinstance(value, Tensor):
            selected[name] = value[indices]
        elif isinstance(value, Ragged):
            selected[name] = value.select(indices)
    return selected


def to_device(batch: Batch, device: torch.device, on_host: Collection[str] = ()) -> Batch:
    """Return the batch with its tensors on the device; pinned ones are copied without waiting.

    Args:
        on_host: entries that stay where they are.
    """
    return {
        name: value
        if name in on_host
        else value.to(device, non_blocking=True)
        if isinstance(value, Tensor)
        else value.to(device)
        if isinstance(value, Ragged)
        else value
        for name, value in batch.items()
    }


def tensors(batch: Batch) -> Iterator[Tensor]:
    """Yield the tensors of a batch, those of a ragged entry as the one that holds them all."""
    for value in batch.values():
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, Ragged) and value.flat is not None:
            yield value.flat


def share_memory(batch: Batch) -> None:
    """Move the tensors of a batch to shared memory, in place.

    Raises:
        RuntimeError: if there is no room, or too many files are open.
        OSError: the same, by the operating system.
    """
    for tensor in tensors(batch):
        tensor.share_memory_()
