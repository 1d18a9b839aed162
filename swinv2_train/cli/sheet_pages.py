"""Pages of a sheet of predictions: files with a bounded number of images each."""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from swinv2_train.writing import write_bytes

if TYPE_CHECKING:  # imports PIL
    from swinv2_train.cli.sheet import Entry

ON_PAGE = {".html": 500, ".png": 60}
"""Images on one page, by suffix; more would not open in reasonable time."""
MOST_PAGES = 20
"""Default of the largest number of pages."""


def page_paths(path: Path, images: int, most: int) -> list[Path]:
    """Return the files of a sheet: FILE.html, FILE-2.html, and so on.

    Args:
        path: the first page.
        images: number of images to show.
        most: maximum number of pages.
    """
    count = min(most, max(1, math.ceil(images / ON_PAGE[path.suffix])))
    return [path, *(path.with_name(f"{path.stem}-{number}{path.suffix}") for number in range(2, count + 1))]


def earlier_pages(path: Path, written: Sequence[Path]) -> list[Path]:
    """Return the pages of an earlier, longer sheet that are still next to the one that was written, in order.

    Args:
        path: the first page.
        written: all pages of the sheet.
    """
    found = []
    for number in itertools.count(len(written) + 1 if written else 2):
        page = path.with_name(f"{path.stem}-{number}{path.suffix}")
        if not page.is_file():
            return found
        found.append(page)
    raise AssertionError("unreachable")


def write_pages(
    path: Path, entries: Sequence[Entry], model: str, total: int, most: int, noun: str = "image"
) -> list[Path]:
    """Write a sheet and return its files; a PNG sheet without an image is not written.

    Args:
        path: the first page.
        entries: the images; those that do not fit on the pages are counted in the title of the last one.
        model: for the title.
        total: number of images that were predicted.
        most: maximum number of pages.
        noun: what the entries are.

    Raises:
        OSError: if a file cannot be written.
    """
    from swinv2_train.cli.sheet import html_sheet, png_sheet

    size = ON_PAGE[path.suffix]
    entries = entries[: most * size]
    if not entries and path.suffix == ".png":
        return []
    paths = page_paths(path, len(entries), most)
    links = [(f"page {number}", page.name) for number, page in enumerate(paths, 1)]
    for number, page in enumerate(paths, 1):
        first = (number - 1) * size
        shown = entries[first : first + size]
        place = f", {noun}s {first + 1:,} to {first + len(shown):,}, page {number} of {len(paths)}"
        left = total - len(entries) if number == len(paths) else 0
        line = f"{model}{place if len(paths) > 1 else ''}{f' (and {left:,} more {noun}s)' if left else ''}"
        if path.suffix == ".html":
            others = [link for link in links if link[1] != page.name]
            write_bytes(page, html_sheet(shown, line, others, noun).encode())
        else:
            stream = io.BytesIO()
            png_sheet(shown, line).save(stream, "PNG")
            write_bytes(page, stream.getvalue())
    return paths
