"""Output of `swinv2-analyze`: tables, charts, and the numbers behind them."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swinv2_train.cli.checkpoint_display import table
from swinv2_train.launch.status import write_text
from swinv2_train.redact import redacted

if TYPE_CHECKING:  # these import torch
    from swinv2_train.analysis.window_transfer import Curve, Point
    from swinv2_train.models.activations import BlockActivations
    from swinv2_train.tracking.charts import Chart

BIAS_NAMES = {"log-cpb": "log-spaced CPB", "linear-cpb": "linear CPB", "table": "parameterised bias"}
NORM_NAMES = {"res-post": "res-post-norm", "pre": "pre-norm", "post": "post-norm", "sandwich": "sandwich norm"}


def model_name(source: Path) -> str:
    """Return the default name of a model: its run, or its file."""
    if source.parent.name == "checkpoints":
        return source.parent.parent.resolve().name
    return source.stem if source.is_file() else source.resolve().name


def labels(given: Sequence[str | None], kinds: Sequence[str], sources: Sequence[Path]) -> list[str]:
    """Return distinct names for all curves: as given, else by the difference of the models, else by run or file."""
    different = len(set(kinds)) == len(kinds) > 1
    chosen = [
        name or (kind if different else model_name(source))
        for name, kind, source in zip(given, kinds, sources, strict=True)
    ]
    seen: Counter[str] = Counter()
    for number, name in enumerate(chosen):
        seen[name] += 1
        if seen[name] > 1:
            chosen[number] = f"{name} ({seen[name]})"
    return chosen


def main_metric(curves: Sequence[Curve]) -> str:
    """Return the metric to plot: the first of the first model's task that all models have.

    Raises:
        ValueError: if the models have none in common.
    """
    for name in curves[0].config.task.METRICS:
        if all(name in point.metrics for curve in curves for point in curve.points):
            return name
    raise ValueError("the models have no metric in common")


def _of(curves: Mapping[str, Curve]) -> tuple[str, str, int]:
    """Return the metric of curves: its name, its title, and the factor for display."""
    listed = list(curves.values())
    name = main_metric(listed)
    metric = listed[0].config.task.METRICS[name]
    words = metric.title or name
    return (name, f"{words} (%)", 100) if metric.share else (name, words, 1)


def size_text(point: Point, unit: str = "I{}") -> str:
    """Return the resolution of an evaluation for display, or the factor of the images if they have their own sizes.

    Args:
        unit: frame of a resolution.
    """
    if point.resolution is None:
        return f"x{point.scale:.3g}"
    height, width = point.resolution
    return unit.format(height if height == width else f"{height}x{width}")


def windows_text(curves: Mapping[str, Curve]) -> str:
    """Return a table with a row per model and a column per window, with the sizes of the images."""
    metric, words, factor = _of(curves)
    listed = list(curves.values())
    same = len({tuple(size_text(point) for point in curve.points) for curve in listed}) == 1
    sizes = [f" {size_text(point)}" if same else "" for point in listed[0].points]
    rows = [(words, *(f"W{point.window}{size}" for point, size in zip(listed[0].points, sizes, strict=True)))]
    for name, curve in curves.items():
        values = [f"{factor * point.metrics[metric]:.2f}" for point in curve.points]
        own = ["" if same else f" at {size_text(point)}" for point in curve.points]
        rows.append((name, *(value + size for value, size in zip(values, own, strict=True))))
    return table(rows)


def write_windows(directory: Path, curves: Mapping[str, Curve], data: Any) -> list[Path]:
    """Write windows.png, .pdf, .csv, and .json.

    Raises:
        OSError: if one cannot be written.
    """
    write_text(directory / "windows.csv", _windows_csv(curves))
    write_text(directory / "windows.json", json.dumps(redacted(_windows_json(curves, data)), indent=2) + "\n")
    written = windows_chart(curves).save(directory / "windows.png")
    return [*written, directory / "windows.csv", directory / "windows.json"]


def windows_chart(curves: Mapping[str, Curve]) -> Chart:
    """Plot the metric over test-time windows, with the number of samples and the windows of the training."""
    from swinv2_train.tracking.charts import Series, line_chart

    metric, words, factor = _of(curves)
    series = [
        Series(
            name,
            [point.window for point in curve.points],
            [factor * point.metrics[metric] for point in curve.points],
            mark=_trained_window(curve),
        )
        for name, curve in curves.items()
    ]
    sizes: dict[int, set[str]] = {}
    for curve in curves.values():
        for point in curve.points:
            sizes.setdefault(point.window, set()).add(size_text(point, "{} px"))
    same = all(len(texts) == 1 for texts in sizes.values())
    ticks = [(window, f"{window}\n{min(texts)}" if same else str(window)) for window, texts in sorted(sizes.items())]
    scaled = all(point.resolution is None for curve in curves.values() for point in curve.points)
    size = f" and {'factor of the images' if scaled else 'resolution'}" if same else ""
    name = f"{series[0].name}, " if len(series) == 1 else ""
    return line_chart(
        series,
        x_label=f"test-time window (tokens){size}",
        y_label=words,
        title=f"{name}{_samples_text(curves)}",
        x_ticks=ticks,
    )


def _trained_window(curve: Curve) -> tuple[float, str]:
    """Return position and name of the mark of a model's training window, the longest of its stages."""
    from swinv2_train.config.window_scale import largest_window

    window = largest_window(curve.config.model)
    return window, f"trained window: {window}"


def _samples_text(curves: Mapping[str, Curve]) -> str:
    counts = sorted({point.samples for curve in curves.values() for point in curve.points})
    return f"{counts[0]:,}{f' to {counts[-1]:,}' if len(counts) > 1 else ''} samples"


def _windows_csv(curves: Mapping[str, Curve]) -> str:
    names = sorted({name for curve in curves.values() for point in curve.points for name in point.metrics})
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["model", "window", "height", "width", "scale", *names])
    for model, curve in curves.items():
        for point in curve.points:
            size = ["", "", point.scale] if point.resolution is None else [*point.resolution, ""]
            writer.writerow([model, point.window, *size, *(point.metrics.get(name, "") for name in names)])
    return stream.getvalue()


def _windows_json(curves: Mapping[str, Curve], data: Any) -> dict[str, Any]:
    models = [
        {
            "name": name,
            "checkpoint": str(curve.source.resolve()),
            "step": curve.step,
            "position_bias": curve.config.model.position_bias,
            "trained_window": curve.config.model.window,
            "trained_resolution": curve.config.data.resolution,
            "points": [vars(point) for point in curve.points],
        }
        for name, curve in curves.items()
    ]
    return {"data": data, "models": models}


def signal_text(models: Mapping[str, Sequence[BlockActivations]]) -> str:
    """Return a table with a row per model."""
    from swinv2_train.analysis.activations import activation_metrics

    rows = [("model", "blocks", "largest amplitude", "largest / smallest")]
    for name, blocks in models.items():
        metrics = activation_metrics(blocks)
        numbers = (f"{metrics['signal/largest']:.4g}", f"{metrics['signal/discrepancy']:.4g}")
        rows.append((name, str(len(blocks)), *numbers))
    return table(rows)


def write_signal(
    directory: Path, models: Mapping[str, Sequence[BlockActivations]], facts: Sequence[Mapping[str, Any]], images: Any
) -> list[Path]:
    """Write signal.png, .pdf, and .json.

    Args:
        facts: known facts about each model, in the order of `models`.
        images: what the amplitudes were measured on.

    Raises:
        OSError: if one cannot be written.
    """
    from swinv2_train.analysis.activations import activation_chart, activation_metrics

    described = [
        {"name": name, **fact, "metrics": activation_metrics(blocks), "blocks": [vars(block) for block in blocks]}
        for (name, blocks), fact in zip(models.items(), facts, strict=True)
    ]
    content = {"images": images, "amplitude": "average channel variance", "models": described}
    write_text(directory / "signal.json", json.dumps(redacted(content), indent=2) + "\n")
    return [*activation_chart(models).save(directory / "signal.png"), directory / "signal.json"]
