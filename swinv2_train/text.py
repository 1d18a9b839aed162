"""Texts for display: names from outside, such as class and file names, that are safe to show; counted nouns."""

from __future__ import annotations

import html
import re

_MARKDOWN = re.compile(r"([\\`*\[\]|])")


def printable(text: str) -> str:
    """Return a text on one line that every encoding of Unicode can hold.

    File names need not be UTF-8. Python keeps their other bytes as lone surrogates, which no file or font accepts.
    """
    whole = text.encode("utf-8", "surrogateescape").decode("utf-8", "replace") if not text.isascii() else text
    return "".join(sign if sign.isprintable() else " " for sign in whole)


def counted(count: float, noun: str, form: str = "") -> str:
    """Return a number and a noun that is regular in the plural: 1 image, 2 images, 0.5 images.

    Args:
        form: format of the number, such as "," for 1,000.
    """
    return f"{count:{form}} {noun if count == 1 else f'{noun}s'}"


def as_html(text: str) -> str:
    """Return a text for the content or a quoted attribute of HTML."""
    return html.escape(printable(text))


def as_markdown(text: str) -> str:
    """Return a text for a line or a table cell of Markdown, with all markup and HTML escaped."""
    return _MARKDOWN.sub(r"\\\1", html.escape(printable(text), quote=False))


def as_label(text: str) -> str:
    """Return a text for a Matplotlib chart, which interprets text between dollar signs as math.

    Matplotlib also leaves out of legends what begins with an underscore; a space before it prevents that.
    """
    escaped = printable(text).replace("$", r"\$")
    return f" {escaped}" if escaped.startswith("_") else escaped
