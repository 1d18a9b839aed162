"""Outputs of an extraction of features, kept apart from the files of the user. Torch-free.

An extraction replaces its own table and its own picture, leaves both out of the images in a folder, and removes only
the parts that it has written.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path

from swinv2_train.analysis.feature_table import check_table, is_table
from swinv2_train.config.errors import ConfigError
from swinv2_train.data.samples import IMAGE
from swinv2_train.interop.images import FoundImages, find_images

REQUEST = "request.json"
"""File in the directory of parts that describes their extraction."""
SHEET_MARK = "Software", "swinv2-features"
"""Text in the PNG of a picture of neighbors, by which a rerun knows it."""


def work_directory(out: Path) -> Path:
    """Return the directory with the parts of an unfinished table."""
    return out.with_name(f"{out.name}.parts")


def check_outputs(out: Path, sheet: Path | None = None) -> None:
    """Check that an extraction can write its outputs, and that it replaces only files of its own kind.

    Raises:
        ConfigError: naming the path.
    """
    check_table(out)
    if out.exists() and not is_table(out):
        hint = f"{out} exists and is not a table of features, so it is not replaced; the last path is the output"
        raise ConfigError("", out, f"{hint}, so name a new file there")
    check_parts(work_directory(out))
    if sheet is not None and (sheet.is_dir() or not sheet.parent.is_dir()):
        hint = "is a directory" if sheet.is_dir() else f"{sheet.parent} is not a directory"
        raise ConfigError("sheet", sheet, hint)


def check_parts(place: Path) -> None:
    """Check that a directory of parts is new, empty, or of an extraction.

    Raises:
        ConfigError: if it is not.
    """
    if not place.exists() and not place.is_symlink():
        return
    if not place.is_dir():
        hint = f"{place} is a file, and the parts of the table need a directory of this name"
        raise ConfigError("", place, f"{hint}; remove it, or use another output")
    names = sorted(entry.name for entry in place.iterdir() if not entry.name.endswith(".partial"))
    if names and REQUEST not in names:
        hint = f"{place} holds files that are not parts of a table, such as {names[0]}"
        raise ConfigError("", place, f"{hint}; move them, or use another output")


def remove_parts(place: Path) -> None:
    """Remove what an extraction has written into its directory, and the directory if nothing else is in it."""
    for pattern in ("part-*.npz", ".*.partial", REQUEST):
        for path in place.glob(pattern):
            path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        place.rmdir()


def find_inputs(paths: Sequence[str], out: Path, sheet: Path | None = None, kind: str = IMAGE) -> FoundImages:
    """Find the images or videos as `find_images`, without the outputs of an earlier extraction to the same paths.

    Raises:
        ConfigError: if an output is one of the inputs.
        DataError: as `find_images`.
    """
    found = find_images(paths, own_outputs(out, sheet), kind)
    for output in (out, sheet):
        if output is None or not output.exists():
            continue
        there = output.stat()
        if any(path.exists() and os.path.samestat(path.stat(), there) for path in found.files):
            raise ConfigError("", output, f"{output} is one of the inputs and would be overwritten; use another name")
    return found


def own_outputs(out: Path, sheet: Path | None) -> list[Path]:
    """Return the existing outputs that an extraction to these paths has written, with its directory of parts."""
    own = [out] if is_table(out) else []
    if (work_directory(out) / REQUEST).exists():
        own.append(work_directory(out))
    if sheet is not None and _is_sheet(sheet):
        own.append(sheet)
    return own


def _is_sheet(path: Path) -> bool:
    from PIL import Image

    try:
        with Image.open(path) as picture:
            key, value = SHEET_MARK
            return picture.info.get(key) == value
    except (OSError, ValueError, SyntaxError):
        return False
