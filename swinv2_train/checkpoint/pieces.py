"""Reading of parameter elements from a checkpoint, from the files of any number of ranks.

Uses plain file reads, in slices of bounded size. A memory map would count toward a job's memory, and would turn a
failing disk into a crash.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from swinv2_train.checkpoint.errors import CheckpointError
from swinv2_train.checkpoint.layout import KIND_OF, FragmentRecord, Manifest, rank_file, tensor_key
from swinv2_train.checkpoint.tensor_file import Header, read_exactly, read_header

SLICE_ELEMENTS = 1 << 22
"""Maximum number of elements in memory at a time: 16 MiB in fp32."""
_MAX_OPEN = 64
"""Number of files open at a time: 512 ranks could exceed the limit of a process, and opening is slow on a file system
that many ranks share."""


def overlapping(records: Sequence[FragmentRecord], start: int, stop: int) -> Iterator[tuple[FragmentRecord, int, int]]:
    """Yield the records that contain elements from `start` to `stop`, each with the first and the end of its range.

    A parameter has as many records as ranks that own a part of it; only the necessary ones are examined.

    Args:
        records: those of one parameter, sorted by their first element, without gaps or overlaps.
    """
    index = max(0, bisect_right(records, start, key=lambda record: record.start) - 1)
    while index < len(records) and (record := records[index]).start < stop:
        low, high = max(start, record.start), min(stop, record.start + record.count)
        if low < high:
            yield record, low, high
        index += 1


class Pieces:
    """Reader of the parameters of a checkpoint, slice by slice; a context manager that closes the files. The files must
    be verified already."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self._path, self._world_size, self._fixed = path, manifest.world_size, manifest.fixed
        self._headers: dict[str, Header] = {}
        self._files: OrderedDict[str, BinaryIO] = OrderedDict()
        self._records: dict[str, list[FragmentRecord]] = {}
        for record in sorted(manifest.fragments, key=lambda record: (record.start, record.count)):
            self._records.setdefault(record.name, []).append(record)

    def __enter__(self) -> Pieces:
        return self

    def __exit__(self, *error: object) -> None:
        while self._files:
            self._files.popitem()[1].close()

    def slices(self, name: str, part: str, start: int, stop: int) -> Iterator[bytearray]:
        """Yield the elements from `start` to `stop` of a flattened tensor, in order: raw little-endian fp32.

        Args:
            part: weight, exp_avg, exp_avg_sq, or ema; the average of an untrained tensor is its weight.

        Raises:
            CheckpointError: if an element is not in the checkpoint, or a file contradicts the manifest.
        """
        if part == "ema" and name in self._fixed:
            part = "weight"
        end = start
        for record, low, high in overlapping(self._records.get(name, ()), start, stop):
            if low != end:
                break
            for first in range(low, high, SLICE_ELEMENTS):
                yield self._read(record, part, first, min(first + SLICE_ELEMENTS, high))
            end = high
        if end != stop:
            raise CheckpointError(
                f"{self._path} has {end - start} of the {stop - start} elements of {name} that start at {start}"
            )

    def _read(self, record: FragmentRecord, part: str, first: int, last: int) -> bytearray:
        relative = rank_file(KIND_OF[part], record.rank, self._world_size)
        key = tensor_key(record.name, record.start, part)
        try:
            file = self._opened(relative)
            if relative not in self._headers:
                self._headers[relative] = read_header(file)
            entry = self._headers[relative].entries[key]
            if entry.dtype != "F32" or entry.end - entry.begin != 4 * record.count:
                raise ValueError(f"{key} is not {record.count} fp32 numbers")
            file.seek(entry.begin + 4 * (first - record.start))
            return read_exactly(file, 4 * (last - first))
        except OSError as error:
            raise CheckpointError(f"{self._path / relative} cannot be read ({error.strerror})") from error
        except KeyError as error:
            raise CheckpointError(f"{self._path / relative} lacks {error}") from error
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"{self._path / relative} is broken ({error})") from error

    def _opened(self, relative: str) -> BinaryIO:
        if relative not in self._files:
            if len(self._files) == _MAX_OPEN:
                self._files.popitem(last=False)[1].close()
            self._files[relative] = (self._path / relative).open("rb", buffering=0)
        self._files.move_to_end(relative)
        return self._files[relative]
