"""Reading of a remote file in parts, with a check that every part is the requested one.

Proxies, login pages and servers that replace a file in the middle of a download answer with something else of the
right length. Over HTTP the answer says what it is, and all of it is compared: status, range, length, type, version.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from swinv2_train.data.errors import DataError
from swinv2_train.data.retries import WrongAnswerError

_VERSION_KEYS = ("ETag", "etag", "LastModified", "Last-Modified", "mtime", "updated")  # as fsspec's backends call it
_CONTENT_RANGE = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19}|\*)")
_FEW_TRIES = 2
"""Retries if a web page arrives instead of a file: a login page does not go away."""


class ReplacedError(Exception):
    """The file on the server changed while it was read. `str(error)` describes the evidence."""


def filesystem(url: str) -> tuple[Any, str]:
    """Return fsspec's file system for a URL; looked up in every process, as its connections do not survive a fork."""
    import fsspec

    try:
        return fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise DataError(f"{url} cannot be read: {error}") from None


def version_of(info: Mapping[str, Any]) -> str:
    """Return a string that changes with the content, from fsspec's description of a file; empty if nothing is known."""
    return next((str(info[key]) for key in _VERSION_KEYS if info.get(key)), "")


def is_web_page(body: bytes) -> bool:
    """Return whether a body is HTML or XML, which no shard, index or manifest is."""
    return body[:256].lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<")


@dataclass(frozen=True)
class _Answer:
    """An HTTP response."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class PartReader:
    """Reads parts of one version of a remote file.

    Args:
        url: the file.
        size: its size in bytes.
        version: its ETag or date as the server gave it before; empty if it is not known.
        modified: its date as the server gave it before; empty if it is not known.
    """

    def __init__(self, url: str, size: int, version: str = "", modified: str = "") -> None:
        self._url, self._size, self._version, self._modified = url, size, version, modified
        self._first: tuple[str, str] | None = None
        """ETag and date of the first answer."""

    def read(self, start: int, stop: int) -> bytes:
        """Return bytes start..stop, or start..size from a server that knows no ranges.

        Raises:
            WrongAnswerError: if something else came.
            ReplacedError: if the answer is of another version of the file than the first.
        """
        from fsspec.implementations.http import HTTPFileSystem

        fs, path = filesystem(self._url)
        if isinstance(fs, HTTPFileSystem):
            return self._checked(_get(fs, path, start, stop), start, stop)
        data = fs.cat_file(path, start=start, end=stop)
        if len(data) == stop - start:
            return data
        if len(data) == self._size:
            return data[start:]
        raise WrongAnswerError(f"{len(data)} bytes came instead of {stop - start}")

    def _checked(self, answer: _Answer, start: int, stop: int) -> bytes:
        headers = answer.headers
        kind = headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if kind in ("text/html", "application/xhtml+xml"):
            raise WrongAnswerError("a web page came instead, such as a login form or the page of a proxy", _FEW_TRIES)
        encoding = headers.get("Content-Encoding", "identity").strip().lower()
        if encoding not in ("identity", ""):
            raise WrongAnswerError(f"the server sends it encoded ({encoding}), though it was asked not to", _FEW_TRIES)
        if answer.status == 206:
            match = _CONTENT_RANGE.fullmatch(headers.get("Content-Range", "").strip())
            if match is None:
                raise WrongAnswerError(f"a part came that does not say which (Content-Range is {match})")
            first, last, total = match.groups()
            if total not in ("*", str(self._size)):
                raise ReplacedError(f"it has {total} bytes now, and {self._size} before")
            if (int(first), int(last) + 1) != (start, stop):
                raise WrongAnswerError(f"bytes {first} to {last} came instead of {start} to {stop - 1}")
            expected, body = stop - start, answer.body
        else:
            expected, body = self._size, answer.body
        if len(body) != expected:
            raise WrongAnswerError(f"{len(body)} bytes came instead of {expected}")
        self._check_version(headers)
        return body if answer.status == 206 else body[start:]

    def _check_version(self, headers: Mapping[str, str]) -> None:
        tag, date = headers.get("ETag", ""), headers.get("Last-Modified", "")
        # The nodes of some clusters give the same file different tags, but the same date.
        known = (self._version, self._modified) if date else (self._version,)
        if self._version and tag and not {tag, date}.intersection(known):
            raise ReplacedError(f"its version is {tag} now, and {self._version} before")
        first = self._first = self._first or (tag, date)
        if tag != first[0] and (not date or date != first[1]):
            raise ReplacedError(f"its version is {tag or date} now, and {first[0] or first[1]} before")


def _get(fs: Any, url: str, start: int, stop: int) -> _Answer:
    """Ask for a part the way fsspec's `cat_file` does, which does not tell what came."""
    import fsspec

    async def ask() -> _Answer:
        options = dict(fs.kwargs)
        headers = {**options.pop("headers", {}), "Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"}
        session = await fs.set_session()
        async with session.get(fs.encode_url(url), headers=headers, **options) as response:
            response.raise_for_status()
            return _Answer(response.status, response.headers, await response.read())

    return fsspec.asyn.sync(fs.loop, ask)
