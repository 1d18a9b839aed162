"""Remarks of image decoders that do not break an image, such as an unknown tag: counted by kind, not printed per image.

Pillow warns, imagecodecs and tifffile log, and libjpeg and libtiff print from C. All of them are collected while an
image is decoded. Decoding processes pass their counts on with their results.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import re
import tempfile
import threading
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)
_PACKAGES = ("imagecodecs", "tifffile")
_NUMBER = re.compile(r"0x[0-9a-fA-F]+|\d+")
_OF_DECODERS = re.compile(
    rb"(Corrupt JPEG data|Premature end of JPEG|Inconsistent|Invalid|Warning|TIFF|LZW|Fax|ZIP|lib\w+)"
)
"""Beginnings of the lines that libjpeg, libpng, and libtiff print. Others are passed on to stderr."""
_counts: Counter[str] = Counter()
_lock = threading.Lock()
_inside = 0
_stderr = -1
_held = -1


class _Counting(logging.Handler):
    """Counts what a package logs."""

    def emit(self, record: logging.LogRecord) -> None:
        note(record.getMessage())


def note(text: str) -> None:
    """Count a remark; remarks that differ only in their numbers are of one kind."""
    add({_NUMBER.sub("N", " ".join(text.split())): 1})


def add(counts: Mapping[str, int]) -> None:
    """Add counts by kind. The main process of the main rank names every kind once, when it first appears."""
    with _lock:
        new = [kind for kind in counts if kind not in _counts]
        _counts.update(counts)
    if multiprocessing.parent_process() is None and os.environ.get("RANK", "0") == "0":
        for kind in new:
            logger.warning("an image decoder reports: %s; this is not an error, and is only counted from now on", kind)


def taken() -> dict[str, int]:
    """Return the counts so far and forget them, to pass them on to another process."""
    with _lock:
        found = dict(_counts)
        _counts.clear()
    return found


def lines() -> list[str]:
    """Return a line for every kind that occurred more than once, most frequent first."""
    return [f"image decoders reported {count:,} times: {kind}" for kind, count in _counts.most_common() if count > 1]


@contextlib.contextmanager
def collected() -> Iterator[None]:
    """Count what decoders print inside this block, unless it ends with an error, which has a message of its own."""
    _begin()
    failed = True
    try:
        yield
        failed = False
    finally:
        _end(failed=failed)


def _begin() -> None:
    """Redirect stderr, once for all threads that decode."""
    global _inside, _stderr, _held
    with _lock:
        _inside += 1
        if _inside > 1:
            return
        _hook()
        try:
            if _held < 0:
                _held, name = tempfile.mkstemp()  # it stays open for the life of the process
                os.unlink(name)
            _stderr = os.dup(2)
            os.dup2(_held, 2)
        except OSError:  # no room or no descriptors: decoding matters more
            _stderr = -1


def _end(*, failed: bool) -> None:
    global _inside, _stderr
    with _lock:
        _inside -= 1
        if _inside or _stderr < 0:
            return
        os.dup2(_stderr, 2)
        os.close(_stderr)
        _stderr = -1
        size = os.fstat(_held).st_size
        printed = os.pread(_held, size, 0) if size else b""
        if size:
            os.ftruncate(_held, 0)
            os.lseek(_held, 0, os.SEEK_SET)
    for line in printed.splitlines(keepends=True):
        if not _OF_DECODERS.match(line):
            with contextlib.suppress(OSError):
                os.write(2, line)
        elif not failed:
            note(line.decode(errors="replace"))


def _hook() -> None:
    """Count the warnings of Pillow and the logs of the other packages in this process, instead of printing them."""
    for name in _PACKAGES:
        package = logging.getLogger(name)
        if not any(isinstance(handler, _Counting) for handler in package.handlers):
            package.addHandler(_Counting(logging.WARNING))
            package.propagate = False
    if not getattr(warnings.showwarning, "counts", False):
        warnings.filterwarnings("always", module=r"PIL\.")
        warnings.showwarning = _counting(warnings.showwarning)


def _counting(show: Any) -> Any:
    def counted(message: Any, category: Any, filename: str, *rest: Any, **options: Any) -> None:
        if "PIL" in Path(filename).parts:
            note(str(message))
        else:
            show(message, category, filename, *rest, **options)

    counted.counts = True  # type: ignore[attr-defined]
    return counted
