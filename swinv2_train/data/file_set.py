"""Image or video files as samples, for loaders that otherwise read shards."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from swinv2_train.data.errors import BrokenSample
from swinv2_train.data.image_files import extension
from swinv2_train.data.raw_sample import RawSample
from swinv2_train.data.samples import IMAGE, VIDEO


class FileSet:
    """Image or video files with the part of the interface of `ShardSet` that reading in a fixed order needs."""

    card = None
    remote = False

    def __init__(self, files: Sequence[Path], kind: str = IMAGE) -> None:
        """`kind` is image or video."""
        self.files, self.kind = list(files), kind
        self.num_samples = len(self.files)

    def key(self, index: int) -> str:
        """Return the path of a file."""
        return str(self.files[index])

    def name(self, index: int) -> str:
        """Return the path of a file, for messages."""
        return self.key(index)

    def read(self, index: int, members: Sequence[str] = (IMAGE,)) -> RawSample:
        """Return a file as the sample with the only member `image`; a video is only named, because it may be long.

        Raises:
            BrokenSample: if it cannot be read.
        """
        path = self.files[index]
        if self.kind == VIDEO:
            return RawSample(str(path), extension(path.name), {}, VIDEO, path)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise BrokenSample(f"it cannot be read ({error.strerror})") from error
        return RawSample(str(path), extension(path.name), {IMAGE: data})

    def close(self) -> None:
        """Do nothing: no file stays open."""
