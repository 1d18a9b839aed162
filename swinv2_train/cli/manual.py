"""The last lines of `--help`: exit status, and the page of the manual."""

from __future__ import annotations

import textwrap
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]


def filled(text: str) -> str:
    """Return a paragraph broken into lines, for `RawDescriptionHelpFormatter`."""
    return textwrap.fill(text, 100)


def manual(page: str, status: str = "") -> str:
    """Return the end of a help text.

    Args:
        page: folder of the package whose README.md describes the command; `conf` for that of the configs.
        status: meaning of the exit codes, on one line.
    """
    path = next((path for path in (_PACKAGE / page, _PACKAGE.parent / page) if path.is_dir()), _PACKAGE)
    return "\n\n".join(filter(None, (filled(status), f"manual: {path / 'README.md'}")))
