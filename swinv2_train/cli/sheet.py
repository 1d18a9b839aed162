"""Output files of predictions: CSV, JSON lines, and sheets of images or videos with bars (HTML and PNG)."""

from __future__ import annotations

import base64
import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from PIL import Image, ImageDraw, ImageFont

from swinv2_train.lettering import fitted, font, wrapped
from swinv2_train.tasks.prediction import PICTURE_SIDE, Prediction
from swinv2_train.text import as_html, counted

_COLUMNS = 4
_CELL, _PAD, _GAP = 300, 14, 18
_PICTURE_HEIGHT = 200
_ROW, _LINE = 24, 17
_MOST_LINES = 4
_PAPER, _CARD, _INK, _DIM = "#F3F4F6", "#FFFFFF", "#111827", "#6B7280"
_BAR, _FIRST_BAR, _TRACK = "#9DB7D5", "#0072B2", "#EEF0F3"
_STYLE = """\
:root{--paper:#f3f4f6;--card:#fff;--ink:#111827;--dim:#6b7280;--bar:#9db7d5;--first:#0072b2;--track:#eef0f3}
@media (prefers-color-scheme:dark){:root{--paper:#101418;--card:#1a2027;--ink:#e8eaed;--dim:#9aa4af;--bar:#3c5a78;
--first:#56b4e9;--track:#252d36}}
*{box-sizing:border-box}
body{margin:0;padding:28px;background:var(--paper);color:var(--ink);font:14px/1.45 system-ui,sans-serif}
h1{font-size:18px;margin:0}
header p{margin:2px 0 22px;color:var(--dim);overflow-wrap:anywhere}
main{display:grid;grid-template-columns:repeat(auto-fill,minmax(250px,1fr));gap:18px}
figure{margin:0;background:var(--card);border-radius:10px;overflow:hidden;box-shadow:0 1px 3px rgb(0 0 0/.14)}
figure img{display:block;width:100%;height:200px;object-fit:contain;background:var(--track)}
figcaption{padding:10px 14px 14px}
.name{color:var(--dim);font-size:12px;margin-bottom:8px;overflow:hidden;text-overflow:ellipsis;white-space:nowrap}
.row{display:grid;grid-template-columns:1fr auto;column-gap:10px;margin-top:6px}
.row span{overflow-wrap:anywhere}
nav{display:flex;flex-wrap:wrap;gap:10px;margin:0 0 22px}
nav a{color:var(--first)}
main+nav{margin:22px 0 0}
.row b{font-weight:400;font-variant-numeric:tabular-nums}
.row i{grid-column:1/3;height:4px;border-radius:2px;background:var(--track);overflow:hidden}
.row i::after{content:"";display:block;height:100%;width:var(--share);border-radius:2px;
background:var(--own,var(--bar))}
.row.first span,.row.first b{font-weight:600}
.row.first i::after{background:var(--own,var(--first))}"""


@dataclass
class Entry:
    """One image on a sheet."""

    path: Path
    jpeg: bytes
    """A thumbnail. Thousands of them are in memory before the sheets are drawn, so they are compressed."""
    bars: list[tuple[str, float]] = field(default_factory=list)
    """Class and probability or share, best first."""
    colors: list[str] | None = None
    """Color of every bar, #RRGGBB; None: those of a ranking."""

    @staticmethod
    def of(path: Path, picture: Image.Image) -> Entry:
        """Return the entry of an image, which is shrunk to a thumbnail."""
        small = picture.convert("RGB")
        small.thumbnail((PICTURE_SIDE, PICTURE_SIDE))
        stream = io.BytesIO()
        small.save(stream, "JPEG", quality=85)
        return Entry(path, stream.getvalue())


def csv_text(found: Sequence[Prediction], kind: type[Prediction] = Prediction) -> str:
    """Return a table of predictions of a kind."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(kind.columns(found))
    for one in found:
        writer.writerows(one.rows())
    return stream.getvalue()


def jsonl_text(found: Sequence[Prediction]) -> str:
    """Return a JSON object per file."""
    return "".join(f"{json.dumps(one.record(), ensure_ascii=False)}\n" for one in found)


def html_sheet(
    entries: Sequence[Entry], line: str, links: Sequence[tuple[str, str]] = (), noun: str = Prediction.NOUN
) -> str:
    """Return a self-contained HTML page.

    Args:
        line: subtitle: the model, and the page.
        links: text and file name of other pages, in the same folder.
        noun: what the entries are.
    """
    cards = "\n".join(map(_card, entries))
    count = counted(len(entries), noun, ",")
    pages = " ".join(f'<a href="{as_html(quote(name, errors="replace"))}">{as_html(text)}</a>' for text, name in links)
    nav = f"\n<nav>{pages}</nav>" if links else ""
    return f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Predictions: {count}</title>
<style>
{_STYLE}
</style>
<header><h1>{count}</h1><p>{as_html(line)}</p></header>{nav}
<main>
{cards}
</main>{nav}
</html>
"""


def _card(entry: Entry) -> str:
    data = base64.b64encode(entry.jpeg).decode()
    name, place = as_html(entry.path.name), as_html(str(entry.path))
    rows = "".join(
        f'<div class="row{" first" if rank == 0 else ""}">'
        f'<span title="{as_html(label)}">{as_html(label)}</span>'
        f'<b>{share:.1%}</b><i style="--share:{share:.2%}{_html_color(entry, rank)}"></i></div>'
        for rank, (label, share) in enumerate(entry.bars)
    )
    return (
        f'<figure><img src="data:image/jpeg;base64,{data}" alt="{name}">'
        f'<figcaption><div class="name" title="{place}">{name}</div>{rows}</figcaption></figure>'
    )


def _html_color(entry: Entry, rank: int) -> str:
    return f";--own:{entry.colors[rank]}" if entry.colors else ""


def png_sheet(entries: Sequence[Entry], line: str) -> Image.Image:
    """Return the same as one image, four images in a row; long names of classes continue on further lines.

    Args:
        line: title: the model, and the page.

    Raises:
        ValueError: without an image.
    """
    if not entries:
        raise ValueError("a sheet needs at least one image")
    letters = font(14)
    cards = [[_card_row(label, share, letters) for label, share in entry.bars] for entry in entries]
    columns = min(_COLUMNS, len(entries))
    height = _PICTURE_HEIGHT + 2 * _PAD + _ROW + max(sum(map(_row_height, rows)) for rows in cards)
    title = wrapped(line, letters, columns * (_CELL + _GAP) - _GAP)
    top = 2 * _GAP + len(title) * _LINE
    size = (_GAP + columns * (_CELL + _GAP), top + math.ceil(len(entries) / columns) * (height + _GAP))
    sheet = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(sheet)
    for number, text in enumerate(title):
        draw.text((_GAP, _GAP + number * _LINE), text, _DIM, letters)
    for index, (entry, rows) in enumerate(zip(entries, cards, strict=True)):
        left, upper = _GAP + index % columns * (_CELL + _GAP), top + index // columns * (height + _GAP)
        draw.rounded_rectangle((left, upper, left + _CELL, upper + height), 10, _CARD)
        _draw_picture(sheet, entry, left, upper)
        _draw_rows(draw, entry, rows, left, upper + _PAD + _PICTURE_HEIGHT + 6)
    return sheet


@dataclass
class _Row:
    """One class on a card of a PNG sheet."""

    lines: list[str]
    share: float


def _card_row(label: str, share: float, letters: ImageFont.FreeTypeFont) -> _Row:
    width = _CELL - 2 * _PAD - letters.getlength("100.0%") - 10
    return _Row(wrapped(label, letters, width, _MOST_LINES), share)


def _row_height(row: _Row) -> int:
    return _ROW + (len(row.lines) - 1) * _LINE


def _draw_picture(sheet: Image.Image, entry: Entry, left: int, upper: int) -> None:
    width = _CELL - 2 * _PAD
    with Image.open(io.BytesIO(entry.jpeg)) as opened:
        picture = opened.convert("RGB")
    factor = min(width / picture.width, _PICTURE_HEIGHT / picture.height)
    sides = (max(1, round(picture.width * factor)), max(1, round(picture.height * factor)))
    picture = picture.resize(sides, Image.Resampling.LANCZOS)
    sheet.paste(picture, (left + (_CELL - sides[0]) // 2, upper + _PAD + (_PICTURE_HEIGHT - sides[1]) // 2))


def _draw_rows(draw: ImageDraw.ImageDraw, entry: Entry, rows: Sequence[_Row], left: int, y: int) -> None:
    """Draw the name of a file, and its classes with their bars, from `y` down."""
    width, right = _CELL - 2 * _PAD, left + _CELL - _PAD
    small, letters = font(12), font(14)
    draw.text((left + _PAD, y), fitted(entry.path.name, small, width, keep_end=True), _DIM, small)
    y += _ROW
    for rank, row in enumerate(rows):
        ink = _INK if rank == 0 else _DIM
        for number, text in enumerate(row.lines):
            draw.text((left + _PAD, y + number * _LINE), text, ink, letters)
        draw.text((right, y), f"{row.share:.1%}", ink, letters, anchor="ra")
        below = y + _row_height(row) - 6
        draw.rectangle((left + _PAD, below, right, below + 3), _TRACK)
        if round(width * row.share) > 0:
            end = left + _PAD + round(width * row.share)
            color = entry.colors[rank] if entry.colors else _FIRST_BAR if rank == 0 else _BAR
            draw.rectangle((left + _PAD, below, end, below + 3), color)
        y += _row_height(row)
