"""Rows of score maps that wait for their use: in memory up to a limit, the others in a file of the temporary folder."""

from __future__ import annotations

import math
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from typing import IO

import torch
from torch import Tensor

MEMORY_BYTES = 512 << 20
"""Rows in memory at a time, over all views of an image: enough for those of ADE20K at 640 pixels in six scales."""
_WRITE_BYTES = 16 << 20
"""Rows that leave the device at a time."""


@dataclass
class Kept:
    """A block of rows, (n, K, columns) fp32, in memory or in the file."""

    shape: torch.Size
    block: Tensor | None
    """None: it is in the file."""
    space: tuple[int, int] = (0, 0)
    """Bytes and place of its space in the file."""

    @property
    def bytes(self) -> int:
        """Size of the rows."""
        return 4 * math.prod(self.shape)


class RowStore:
    """Blocks of rows of all views of an image. The space of released blocks in the file is used again.

    Close it after use: the file, which has no name, is then deleted.
    """

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._file: IO[bytes] | None = None
        self._end, self._in_memory = 0, 0
        self._free: list[tuple[int, int]] = []
        """Bytes and place of the unused spaces of the file."""

    def __enter__(self) -> RowStore:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def keep(self, rows: Tensor) -> Kept:
        """Store a copy of rows, (n, K, columns) fp32; in memory, it stays on their device.

        Raises:
            OSError: with the temporary folder, if the file cannot be written, such as on a full disk.
        """
        kept = Kept(rows.shape, None)
        if self._in_memory + kept.bytes <= MEMORY_BYTES:
            self._in_memory += kept.bytes
            kept.block = rows.clone(memory_format=torch.contiguous_format)
            return kept
        try:
            kept.space = self._write(rows, kept.bytes)
        except OSError as error:
            reason = f"{error.strerror}, for the scores of large images; the variable TMPDIR sets this folder"
            raise OSError(error.errno, reason, tempfile.gettempdir()) from error
        return kept

    def read(self, kept: Kept, first: int, last: int) -> Tensor:
        """Return rows first to last of a block, (last - first, K, columns), which must not be changed."""
        if kept.block is not None:
            return kept.block[first:last]
        assert self._file is not None
        rows = torch.empty(last - first, *kept.shape[1:])
        self._file.seek(kept.space[1] + first * kept.bytes // kept.shape[0])
        view = memoryview(rows.numpy()).cast("B")
        while view:
            count = self._file.readinto(view)  # type: ignore[attr-defined] # a raw file has it
            if not count:
                raise OSError("the file of waiting scores in the temporary folder has been cut off")
            view = view[count:]
        return rows

    def release(self, kept: Kept) -> None:
        """Forget a block."""
        if kept.block is not None:
            self._in_memory -= kept.bytes
            kept.block = None
        else:
            self._free.append(kept.space)

    def _write(self, rows: Tensor, size: int) -> tuple[int, int]:
        """Write rows of `size` bytes in all to the file; return the bytes and place of their space."""
        if self._file is None:
            self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - most images need no file
            self._stack.callback(self._file.close)
        space = self._space(size)
        self._file.seek(space[1])
        for part in rows.split(max(1, _WRITE_BYTES * len(rows) // size)):  # it may be a view of a larger block
            data = memoryview(part.cpu().contiguous().numpy()).cast("B")
            while data:
                data = data[self._file.write(data) :]
        return space

    def _space(self, wanted: int) -> tuple[int, int]:
        """Return size and place of unused bytes in the file: the smallest space that is large enough, or its end."""
        self._free.sort()
        for number, (size, place) in enumerate(self._free):
            if size >= wanted:
                del self._free[number]
                return size, place
        place, self._end = self._end, self._end + wanted
        return wanted, place
