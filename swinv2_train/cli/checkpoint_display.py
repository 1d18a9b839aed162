"""Output of `swinv2-checkpoint`: tables as plain text, so that they can be piped, and JSON."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Collection, Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from swinv2_train.checkpoint.layout import KINDS, Manifest
from swinv2_train.checkpoint.survey import Entry

_SHOWN_VALUES = 8
_AGES = ((86400, "d"), (3600, "h"), (60, "min"))


def size_text(size: float) -> str:
    """Return a number of bytes for display."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def _written_text(seconds: float, now: float) -> str:
    age = max(0.0, now - seconds)
    count, unit = next(((int(age // length), unit) for length, unit in _AGES if age >= length), (int(age), "s"))
    return f"{time.strftime('%Y-%m-%d %H:%M', time.localtime(seconds))} ({count} {unit} ago)"


def metrics_text(metrics: dict[str, float]) -> str:
    """Return the metrics on one line."""
    return ", ".join(f"{name} {value:.5g}" for name, value in metrics.items())


def table(rows: Sequence[Sequence[str]]) -> str:
    """Return rows with aligned columns; the first row contains the titles, and empty columns are omitted."""
    columns = [column for column in zip(*rows, strict=True) if any(column[1:])]
    widths = [max(len(cell) for cell in column) for column in columns]
    lines = zip(*columns, strict=True)
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def entries_text(entries: Sequence[Entry], best: Path | None) -> str:
    """Return a table of checkpoints, newest first."""
    now = time.time()
    rows = [("step", "written", "size", "ranks", "ema", "metrics", "mark", "state")]
    for index, entry in enumerate(entries):
        manifest = entry.manifest
        marks = ["newest"] * (index == 0) + ["best"] * (entry.path == best)
        rows.append(
            (
                "?" if entry.step is None else str(entry.step),
                _written_text(entry.written, now),
                size_text(entry.size),
                str(manifest.world_size) if manifest else "?",
                "?" if manifest is None else "yes" if manifest.has_ema else "no",
                metrics_text(manifest.metrics) if manifest else "",
                ", ".join(marks),
                f"{entry.state}: {entry.damage}" if entry.damage else entry.state,
            )
        )
    return table(rows)


def entries_json(directory: Path, entries: Sequence[Entry], left: Sequence[tuple[Path, int]], best: Path | None) -> str:
    """Return the output of `ls` for scripts. Metrics that are not finite are null."""
    return json.dumps(
        {
            "path": str(directory),
            "checkpoints": [
                {
                    "step": entry.step,
                    "path": str(entry.path),
                    "written": datetime.fromtimestamp(entry.written, UTC).isoformat(timespec="seconds"),
                    "bytes": entry.size,
                    "ranks": entry.manifest.world_size if entry.manifest else None,
                    "ema": entry.manifest.has_ema if entry.manifest else None,
                    "metrics": _finite(entry.manifest.metrics) if entry.manifest else {},
                    "state": entry.state,
                    "reason": entry.damage,
                    "newest": index == 0,
                    "best": entry.path == best,
                }
                for index, entry in enumerate(entries)
            ],
            "leftovers": [{"path": str(path), "bytes": size} for path, size in left],
        },
        indent=1,
        allow_nan=False,
    )


def _finite(metrics: dict[str, float]) -> dict[str, float | None]:
    return {name: value if math.isfinite(value) else None for name, value in metrics.items()}


def fact_rows(entry: Entry, manifest: Manifest) -> list[tuple[str, str]]:
    """Return the facts of a manifest as (name, value)."""
    rows = [
        ("checkpoint", str(entry.path)),
        ("state", f"damaged: {entry.damage}" if entry.damage else "complete (hashes not checked)"),
        ("step", f"{manifest.step:,}"),
        ("written", _written_text(entry.written, time.time())),
        ("ranks", str(manifest.world_size)),
        ("parameters", _tally(manifest, manifest.shapes.keys() - set(manifest.buffers))),
        *((kind, _tally(manifest, names)) for kind, names in _fixed(manifest) if names),
        ("format", str(manifest.format_version)),
        *((f"version of {name}", version) for name, version in manifest.versions.items()),
        *((name, f"{value:.6g}") for name, value in manifest.metrics.items()),
    ]
    for kind in KINDS:
        records = [record for record in manifest.files if record.path.startswith(f"{kind}/")]
        if records:
            plural = "s" if len(records) > 1 else ""
            size = size_text(sum(record.size for record in records))
            rows.append((f"size of {kind}", f"{size} in {len(records)} file{plural}"))
    return rows


def _fixed(manifest: Manifest) -> list[tuple[str, list[str]]]:
    return [("frozen", manifest.frozen), ("buffers", manifest.buffers)]


def _tally(manifest: Manifest, names: Collection[str]) -> str:
    plural = "s" if len(names) != 1 else ""
    return f"{_count(manifest.shapes[name] for name in names):,} in {len(names):,} tensor{plural}"


def _count(shapes: Iterable[Sequence[int]]) -> int:
    return sum(math.prod(shape) for shape in shapes)


def flat_rows(values: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Return nested values as rows with dotted names."""
    rows = []
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            rows.extend(flat_rows(value, f"{name}."))
        else:
            rows.append((name, _value_text(value)))
    return rows


def _value_text(value: Any) -> str:
    if isinstance(value, list) and len(value) > _SHOWN_VALUES:
        return f"{json.dumps(value[:_SHOWN_VALUES])[:-1]}, ...] ({len(value)} values)"
    return value if isinstance(value, str) else json.dumps(value)


def tensors_text(manifest: Manifest) -> str:
    """Return a table of the parameters and buffers."""
    rows = [("parameter", "shape", "elements", "kind")]
    kinds = {name: kind.removesuffix("s") for kind, names in _fixed(manifest) for name in names}
    for name, shape in manifest.shapes.items():
        sides = " x ".join(map(str, shape)) or "scalar"
        rows.append((name, sides, f"{math.prod(shape):,}", kinds.get(name, "")))
    rows.append(("all", "", f"{_count(manifest.shapes.values()):,}", ""))
    return table(rows)
