"""The shards of a set as columns: 20,000 of them take a few MiB in every process, and travel to other ranks as such."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import overload

import numpy as np

from swinv2_train.data.remote_file import RemoteFile
from swinv2_train.data.samples import LeftOut
from swinv2_train.data.shard import Shard


class ShardTable(Sequence[Shard]):
    """A sequence of shards that makes each `Shard` when it is asked for."""

    def __init__(self, shards: Iterable[Shard]) -> None:
        shards = list(shards)
        files = [shard.file for shard in shards]
        self.sizes = np.array([shard.size for shard in shards], np.int64)
        """Bytes of every tar."""
        self.num_samples = np.array([shard.num_samples for shard in shards], np.int64)
        self._urls = _Texts(shard.url for shard in shards)
        self._fingerprints = _Texts(shard.fingerprint for shard in shards)
        self._hashes = _Texts(shard.sha256 for shard in shards)
        self._left_out = _Texts(json.dumps(shard.left_out.to_json()) if shard.left_out else "" for shard in shards)
        self._truncated = {number: shard.truncated for number, shard in enumerate(shards) if shard.truncated}
        self._remote = np.array([file is not None for file in files], bool)
        self._listed = np.array([file is not None and file.from_manifest for file in files], bool)
        self._packed = np.array(
            [file is not None and _is_packed(shard, file) for shard, file in zip(shards, files, strict=True)], bool
        )
        """True for remote files whose version and hash are those of their shard, so that they are stored once."""
        others = [None if packed else file for packed, file in zip(self._packed, files, strict=True)]
        self._versions = _Texts(file.version if file else "" for file in others)
        self._file_hashes = _Texts(file.sha256 if file else "" for file in others)
        self._modified = _Texts(file.modified if file else "" for file in files)

    @property
    def any_remote(self) -> bool:
        return bool(self._remote.any())

    def is_remote(self, number: int) -> bool:
        return bool(self._remote[number])

    def __len__(self) -> int:
        return len(self.sizes)

    @overload
    def __getitem__(self, number: int) -> Shard: ...

    @overload
    def __getitem__(self, number: slice) -> list[Shard]: ...

    def __getitem__(self, number: int | slice) -> Shard | list[Shard]:
        if isinstance(number, slice):
            return [self[i] for i in range(*number.indices(len(self)))]
        number = range(len(self))[number]  # negative numbers, and the IndexError that ends an iteration
        left_out = self._left_out[number]
        return Shard(
            self._urls[number],
            int(self.sizes[number]),
            int(self.num_samples[number]),
            self._truncated.get(number),
            self.file(number),
            self._fingerprints[number],
            self._hashes[number],
            LeftOut.from_json(json.loads(left_out)) if left_out else None,
        )

    def file(self, number: int) -> RemoteFile | None:
        """Return the file to fetch; None for a local shard."""
        if not self._remote[number]:
            return None
        versions, hashes = self._versions, self._file_hashes
        if self._packed[number]:
            versions, hashes = self._fingerprints, self._hashes
        return RemoteFile(
            self._urls[number],
            int(self.sizes[number]),
            versions[number],
            bool(self._listed[number]),
            hashes[number],
            self._modified[number],
        )


def _is_packed(shard: Shard, file: RemoteFile) -> bool:
    return (file.version, file.sha256) == (shard.fingerprint, shard.sha256)


class _Texts:
    """A column of texts in one block of bytes."""

    def __init__(self, texts: Iterable[str]) -> None:
        parts = [text.encode("utf-8", "surrogatepass") for text in texts]
        self._ends = np.cumsum([0, *map(len, parts)], dtype=np.int64)
        self._block = b"".join(parts)

    def __getitem__(self, number: int) -> str:
        return self._block[self._ends[number] : self._ends[number + 1]].decode("utf-8", "surrogatepass")
