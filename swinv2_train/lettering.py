"""Text in images: one font, and text that is truncated to a width."""

from __future__ import annotations

import functools
from pathlib import Path

from PIL import ImageFont

from swinv2_train.text import printable


@functools.cache
def font(size: int) -> ImageFont.FreeTypeFont:
    """Return DejaVu Sans, which comes with matplotlib and covers most alphabets.

    It has no Chinese, Japanese, or Korean characters and no emoji; these appear as boxes. PIL's own font is ASCII only.
    """
    import matplotlib

    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", size)


def fitted(text: str, letters: ImageFont.FreeTypeFont, width: float, *, keep_end: bool = False) -> str:
    """Return a text on one line, with an ellipsis in place of its end, or its beginning, if it is wider than `width`.

    Args:
        letters: font that the text is drawn with.
        width: in pixels.
    """
    text = " ".join(printable(text).split())
    if letters.getlength(text) <= width:
        return text
    while text and letters.getlength(f"{text}…") > width:
        text = text[1:] if keep_end else text[:-1]
    return f"…{text}" if keep_end else f"{text}…"


def wrapped(text: str, letters: ImageFont.FreeTypeFont, width: float, most: int | None = None) -> list[str]:
    """Return the lines of a text, each at most `width` wide; breaks are between words, or in words that are wider.

    Args:
        letters: font that the text is drawn with.
        width: in pixels.
        most: maximum number of lines; the last one then ends with an ellipsis if the text is longer. None: no limit.
    """
    rest = " ".join(printable(text).split())
    lines: list[str] = []
    while rest and letters.getlength(rest) > width:
        if most is not None and len(lines) == most - 1:
            return [*lines, fitted(rest, letters, width)]
        end = _fitting(rest, letters, width)
        space = rest.rfind(" ", 0, end + 1)
        end = space if space > 0 else end
        lines.append(rest[:end].rstrip())
        rest = rest[end:].lstrip()
    return [*lines, rest]


def _fitting(text: str, letters: ImageFont.FreeTypeFont, width: float) -> int:
    """Return the number of letters at the start of a text that fit into a width, at least one."""
    low, high = 1, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if letters.getlength(text[:middle]) <= width else (low, middle - 1)
    return low
