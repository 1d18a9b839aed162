"""Output files of predictions: CSV, JSON lines, and sheets of images with bars (HTML and PNG)."""

from __future__ import annotations

import base64
import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image, ImageDraw

from swinv2_train.cli.prediction import Prediction
from swinv2_train.lettering import fitted, font
from swinv2_train.text import as_html

_COLUMNS = 4
_CELL, _PAD, _GAP = 300, 14, 18
_PICTURE_HEIGHT = 200
_ROW = 24
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
.row span{overflow:hidden;text-overflow:ellipsis;white-space:nowrap}
.row b{font-weight:400;font-variant-numeric:tabular-nums}
.row i{grid-column:1/3;height:4px;border-radius:2px;background:var(--track);overflow:hidden}
.row i::after{content:"";display:block;height:100%;width:var(--share);background:var(--bar);border-radius:2px}
.row.first span,.row.first b{font-weight:600}
.row.first i::after{background:var(--first)}"""


@dataclass
class Entry:
    """One image on a sheet."""

    path: Path
    picture: Image.Image
    bars: list[tuple[str, float]] = field(default_factory=list)
    """Class and probability, best first."""


def csv_text(found: Sequence[Prediction]) -> str:
    """Return a line per image and class: image, rank, class number, class, probability."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(("image", "rank", "class_number", "class", "probability"))
    for one in found:
        for rank, (number, name, share) in enumerate(one.classes, 1):
            writer.writerow((one.path, rank, number, name, f"{share:.6f}"))
    return stream.getvalue()


def jsonl_text(found: Sequence[Prediction]) -> str:
    """Return a JSON object per image."""
    lines = (
        {
            "image": str(one.path),
            "classes": [
                {"number": number, "name": name, "probability": round(share, 6)} for number, name, share in one.classes
            ],
        }
        for one in found
    )
    return "".join(f"{json.dumps(line, ensure_ascii=False)}\n" for line in lines)


def html_sheet(entries: Sequence[Entry], line: str) -> str:
    """Return a self-contained HTML page.

    Args:
        line: subtitle: the model.
    """
    cards = "\n".join(map(_card, entries))
    count = f"{len(entries):,} image{'' if len(entries) == 1 else 's'}"
    return f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Predictions: {count}</title>
<style>
{_STYLE}
</style>
<header><h1>{count}</h1><p>{as_html(line)}</p></header>
<main>
{cards}
</main>
</html>
"""


def _card(entry: Entry) -> str:
    stream = io.BytesIO()
    entry.picture.convert("RGB").save(stream, "JPEG", quality=85)
    data = base64.b64encode(stream.getvalue()).decode()
    name, place = as_html(entry.path.name), as_html(str(entry.path))
    rows = "".join(
        f'<div class="row{" first" if rank == 0 else ""}">'
        f'<span title="{as_html(label)}">{as_html(label)}</span>'
        f'<b>{share:.1%}</b><i style="--share:{share:.2%}"></i></div>'
        for rank, (label, share) in enumerate(entry.bars)
    )
    return (
        f'<figure><img src="data:image/jpeg;base64,{data}" alt="{name}">'
        f'<figcaption><div class="name" title="{place}">{name}</div>{rows}</figcaption></figure>'
    )


def png_sheet(entries: Sequence[Entry], line: str) -> Image.Image:
    """Return the same as one image file, four images in a row.

    Args:
        line: title: the model.

    Raises:
        ValueError: without an image.
    """
    if not entries:
        raise ValueError("a sheet needs at least one image")
    columns = min(_COLUMNS, len(entries))
    height = _PICTURE_HEIGHT + 2 * _PAD + _ROW + _ROW * max(len(entry.bars) for entry in entries)
    top = _GAP + 2 * _ROW
    size = (_GAP + columns * (_CELL + _GAP), top + math.ceil(len(entries) / columns) * (height + _GAP))
    sheet = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(sheet)
    letters = font(14)
    draw.text((_GAP, _GAP), fitted(line, letters, size[0] - 2 * _GAP), _DIM, letters)
    for index, entry in enumerate(entries):
        left, upper = _GAP + index % columns * (_CELL + _GAP), top + index // columns * (height + _GAP)
        _draw_card(sheet, draw, entry, left, upper, height)
    return sheet


def _draw_card(sheet: Image.Image, draw: ImageDraw.ImageDraw, entry: Entry, left: int, upper: int, height: int) -> None:
    draw.rounded_rectangle((left, upper, left + _CELL, upper + height), 10, _CARD)
    box = (_CELL - 2 * _PAD, _PICTURE_HEIGHT)
    picture = entry.picture.convert("RGB")
    factor = min(box[0] / picture.width, box[1] / picture.height)
    sides = (max(1, round(picture.width * factor)), max(1, round(picture.height * factor)))
    picture = picture.resize(sides, Image.Resampling.LANCZOS)
    middle = (left + (_CELL - sides[0]) // 2, upper + _PAD + (_PICTURE_HEIGHT - sides[1]) // 2)
    sheet.paste(picture, middle)
    y = upper + _PAD + _PICTURE_HEIGHT + 6
    small, letters = font(12), font(14)
    draw.text((left + _PAD, y), fitted(entry.path.name, small, box[0]), _DIM, small)
    y += _ROW
    for rank, (label, share) in enumerate(entry.bars):
        text = f"{share:.1%}"
        width = letters.getlength(text)
        ink = _INK if rank == 0 else _DIM
        draw.text((left + _PAD, y), fitted(label, letters, box[0] - width - 10), ink, letters)
        draw.text((left + _CELL - _PAD, y), text, ink, letters, anchor="ra")
        track = (left + _PAD, y + 18, left + _CELL - _PAD, y + 21)
        draw.rectangle(track, _TRACK)
        if round(box[0] * share) > 0:
            end = left + _PAD + round(box[0] * share)
            draw.rectangle((*track[:2], end, track[3]), _FIRST_BAR if rank == 0 else _BAR)
        y += _ROW
