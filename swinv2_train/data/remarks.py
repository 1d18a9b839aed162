"""Remarks of image decoders that do not break an image, such as an unknown tag: counted by kind, not printed per image.

Pillow warns, and imagecodecs and tifffile log: both are counted in every process. libjpeg and libtiff print from C.
These lines are counted only in processes that do nothing but decode, one image at a time, because stderr has to be
redirected for it. Decoding processes pass their counts on with their results.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import re
import sys
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
    rb"Corrupt JPEG data: |Premature end of JPEG file$|Inconsistent progression sequence for component "
    rb"|Invalid SOS parameters for sequential JPEG$|Unknown Adobe color transform code |Warning: unknown JFIF revision "
    rb"|Application transferred too many scanlines$|libpng (?:warning|error): "
    rb"|_?(?:TIFF|JPEG|OJPEG|LZW|ZIP|Fax|PackBits|Pixar|LogLuv|LZMA|ZSTD|WebP|LERC)\w*: .*\.$",
    re.MULTILINE,
)
"""Lines of libjpeg (the warnings in its jerror.h), libpng, and libtiff. Others are passed on to stderr."""
_counts: Counter[str] = Counter()
_lock = threading.Lock()
_redirects = False
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


def only_decodes() -> None:
    """Declare that this process does nothing but decode, one image at a time, so that its stderr can be redirected.

    What Python prints still gets to stderr at once, from every thread, even if the process ends while it decodes.
    """
    global _redirects
    if not _redirects:
        sys.stderr = os.fdopen(os.dup(2), "w", buffering=1, errors="backslashreplace")
        _redirects = True


@contextlib.contextmanager
def collected() -> Iterator[None]:
    """Count the remarks of decoders inside this block; lines from C only if it ends without an error.

    An error has a message of its own.
    """
    with _lock:
        _hook()
    before = _redirect() if _redirects else None
    failed = True
    try:
        yield
        failed = False
    finally:
        if before is not None:
            _restore(before, failed=failed)


def _redirect() -> int | None:
    """Send stderr to a file; return a descriptor of the stderr before, or None if that is impossible."""
    global _held
    try:
        if _held < 0:
            _held, name = tempfile.mkstemp()  # it stays open for the life of the process
            os.unlink(name)
        before = os.dup(2)
        os.dup2(_held, 2)
    except OSError:  # no room or no descriptors: decoding matters more
        return None
    return before


def _restore(before: int, *, failed: bool) -> None:
    os.dup2(before, 2)
    os.close(before)
    size = os.fstat(_held).st_size
    if not size:
        return
    printed = os.pread(_held, size, 0)
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
