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
