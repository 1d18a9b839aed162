"""Remote files and parts of them, as the cache knows them."""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass, replace


def is_remote(url: str) -> bool:
    return "://" in url and not url.startswith("file://")


@dataclass(frozen=True)
class RemoteFile:
    """One version of a remote file, or a part of it."""

    url: str
    size: int
    """Bytes of the entire file."""
    version: str = ""
    """Changes with the content: the packer's fingerprint, an ETag, or a date; empty if nothing is known."""
    from_manifest: bool = False
    """True if the version is the packer's fingerprint."""
    sha256: str = ""
    """Hash of its bytes, if the manifest has it."""
    modified: str = ""
    """Date of its last change as reported by an HTTP server; empty if unknown."""

    start: int = 0
    """First byte of the part."""
    stop: int | None = None
    """End of the part; None: it is the entire file."""

    def part(self, start: int, stop: int) -> RemoteFile:
        """Return the bytes start..stop of the file as a part."""
        return replace(self, start=start, stop=None if (start, stop) == (0, self.size) else stop)

    @property
    def whole(self) -> RemoteFile:
        return replace(self, start=0, stop=None)

    @property
    def end(self) -> int:
        return self.size if self.stop is None else self.stop

    @property
    def num_bytes(self) -> int:
        """Bytes of the part."""
        return self.end - self.start

    @functools.cached_property
    def digest(self) -> str:
        """Its name in the cache."""
        part = "" if self.stop is None else f"\n{self.start}-{self.stop}"
        return hashlib.sha256(f"{self.url}\n{self.version}{part}".encode()).hexdigest()[:20]


def server_of(file: RemoteFile) -> str:
    """Return the scheme and the host of a file."""
    return "/".join(file.url.split("/", 3)[:3])
