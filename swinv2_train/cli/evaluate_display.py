"""Output of `swinv2-eval`: tables, `results.json`, and the files and charts of the task's report."""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swinv2_train.cli.checkpoint_display import table
from swinv2_train.config.checks import clip_frames, resolution
from swinv2_train.config.model import stage_geometry, temporal_windows, windows
from swinv2_train.config.tasks import Metric
from swinv2_train.data.label_map import NAMES, NUMBERS
from swinv2_train.launch.status import write_text
from swinv2_train.redact import redacted
from swinv2_train.text import counted
from swinv2_train.writing import write_bytes

if TYPE_CHECKING:  # the first imports torch
    from swinv2_train.analysis.evaluate import EvalOptions, Evaluated
    from swinv2_train.config.schema import Config

_PROBES = {
    "probe/knn_top1": Metric("max", "k-NN top-1 accuracy", share=True),
    "probe/linear_top1": Metric("max", "linear probe top-1 accuracy", share=True),
}
_SHOWN_BROKEN = 10
_LONGEST_NAME = 150
_STRIPS = "strips.png"


def metric_text(metric: Metric, value: float) -> str:
    """Return the value of a metric for display: fractions in percent, and nan, such as of absent classes, as "none"."""
    if math.isnan(value):
        return "none"
    return f"{value:.2%}" if metric.share else f"{value:.4f}"


def result_text(found: Evaluated, options: EvalOptions) -> str:
    """Return the complete result for display."""
    known = {**found.config.task.METRICS, **_PROBES}
    rows = [
        (metric.title or name, metric_text(metric, found.metrics[name]))
        for name, metric in known.items()
        if name in found.metrics
    ]
    parts = [table([("", ""), *_facts(found, options)]).lstrip("\n"), table([("", ""), *rows]).lstrip("\n")]
    parts += [table(more) for more in found.report.tables()]
    if found.broken:
        parts.append("\n".join(f"broken: {name}: {reason}" for name, reason in found.broken[:_SHOWN_BROKEN]))
        if len(found.broken) > _SHOWN_BROKEN:
            parts.append(f"... and {len(found.broken) - _SHOWN_BROKEN} more, in results.json")
    return "\n\n".join(parts)


def _facts(found: Evaluated, options: EvalOptions) -> list[tuple[str, str]]:
    data, step = found.config.data, "" if found.step is None else f", step {found.step}"
    height, width = resolution(found.config)
    crops = {"squash": "squashed", "native": "center in its own size"}
    crop = crops.get(data.crop_mode, f"center crop {data.crop_pct:g}")
    shown = found.config.task.preparation(found.config) or f"{height}x{width} pixels, {crop}"
    ranks = f"{found.ranks} ranks on {found.device}" if found.ranks > 1 else found.device
    broken = f", {len(found.broken):,} broken" if found.broken else ""
    samples = "videos" if data.frames else "images"
    return [
        ("weights", f"{found.source}{step}{', moving average' if options.ema else ''}"),
        ("data", f"{options.data}: {counted(found.samples, 'sample', ',')}{broken}"),
        ("input", f"{shown}, {window_text(found.config)}"),
        (
            "computed",
            f"{options.precision}, {ranks}, {found.images_per_second:,.1f} {samples}/s including reading and decoding",
        ),
    ]


def window_text(config: Config) -> str:
    """Return the attention windows for display, with those in use if the maps of the input are smaller."""
    model = config.model
    text = f"window {model.window}"
    if model.temporal_patch:
        text += f", over {model.temporal_window} tokens in time"
    if config.task.SIZES_DIFFER:  # the maps of every image are others
        return text
    stages = stage_geometry(model, *resolution(config), clip_frames(config))
    times = temporal_windows(model) if model.temporal_patch else [1] * len(stages)
    used = [(stage.time_window, *stage.window) for stage in stages]
    if used == [(time, *pair) for time, pair in zip(times, windows(model), strict=True)]:
        return text
    sides = ("x".join(map(str, window if model.temporal_patch else window[1:])) for window in used)
    return f"{text}, limited by the maps to {', '.join(sides)}"


def result_json(found: Evaluated, options: EvalOptions) -> dict[str, Any]:
    """Return the complete result for programs; fractions are from 0 to 1, and unknown values are null."""
    from swinv2_train.interop.model_card import evaluated_input

    data = found.config.data
    metrics = {name: value if math.isfinite(value) else None for name, value in found.metrics.items()}
    return {
        "checkpoint": str(found.source.resolve()),
        "step": found.step,
        "ema": options.ema,
        "task": found.config.task.name,
        "data": options.data,
        "samples": found.samples,
        "metrics": metrics,
        "input": evaluated_input(found.config, data.mean, data.std),
        "overrides": list(options.overrides),
        "label_map": options.label_map,
        "real_labels": None if options.real_labels is None else str(options.real_labels),
        "max_samples": options.max_samples,
        "probe": None if options.probe is None else vars(options.probe),
        "precision": options.precision,
        "device": found.device,
        "ranks": found.ranks,
        "batch": options.batch,
        "seconds": round(found.seconds, 3),
        "images_per_second": round(found.images_per_second, 2),
        "broken": [{"sample": name, "reason": reason} for name, reason in found.broken],
        "warnings": found.warnings,
        **found.report.details(),
    }


def output_root(checkpoint: str) -> Path:
    """Return the directory for evaluations of a checkpoint: `evaluations` in its run, or here for a file without
    one."""
    path = Path(checkpoint)
    for candidate in (path, *path.absolute().parents[:2]):
        if (candidate / "resolved.yaml").is_file() and (candidate / "checkpoints").is_dir():
            return candidate / "evaluations"
    return Path()


def output_name(found: Evaluated, options: EvalOptions, root: Path) -> str:
    """Return a name that identifies weights and data, and ends in a digest of everything that the numbers depend on.
    The same evaluation replaces an earlier one, and no other does."""
    stem = found.source.stem if found.source.is_file() else found.source.name
    first = options.data[0] if isinstance(options.data, list) else str(options.data)
    places = [part for part in first.partition("?")[0].split("/") if part and not set(part) & set("*{[")]
    data = Path(places[-1]).name.removesuffix(".tar") if places else "data"
    changes = [_without_section(item).replace("=", "-") for item in options.overrides]
    pieces = [stem, "ema" if options.ema else "", data, *changes]
    pieces += ["label-map" if options.label_map else "", "real" if options.real_labels else ""]
    pieces += [f"first-{options.max_samples}" if options.max_samples else ""]
    pieces += [options.precision if options.precision != "fp32" else ""]
    name = "-".join(piece for piece in pieces if piece)
    cleaned = "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in name)[:_LONGEST_NAME]
    return f"{'' if root.name == 'evaluations' else 'evaluation-'}{cleaned}-{_digest(found, options)}"


def _without_section(item: str) -> str:
    """Return an override without its section: window=24 of model.window=24."""
    key, equals, value = item.partition("=")
    return f"{key.partition('.')[2] or key}{equals}{value}"


def _digest(found: Evaluated, options: EvalOptions) -> str:
    """Return a digest of everything that the numbers depend on; the speed of the computation is excluded."""
    labels = None if options.label_map in (None, NAMES, NUMBERS) else os.path.abspath(options.label_map)
    request = [
        str(found.source.resolve()),
        options.ema,
        _absolute(options.data),
        dict(item.partition("=")[::2] for item in options.overrides),
        labels or options.label_map,
        options.real_labels and os.path.abspath(options.real_labels),
        options.max_samples,
        options.precision,
        options.probe and {**vars(options.probe), "shards": _absolute(options.probe.shards), "eval_shards": ""},
    ]
    return hashlib.sha256(json.dumps(request, sort_keys=True, default=str).encode()).hexdigest()[:6]


def _absolute(shards: Any) -> list[str]:
    """Return shards in one spelling, independent of the working directory."""
    listed = shards if isinstance(shards, list) else [str(shards)]
    return [place if "://" in place else os.path.abspath(os.path.expanduser(place)) for place in listed]


def write_outputs(directory: Path, found: Evaluated, options: EvalOptions) -> list[Path]:
    """Write all files of an evaluation and return their paths.

    Raises:
        OSError: if one cannot be written.
    """
    directory.mkdir(parents=True, exist_ok=True)
    report, written = found.report, []
    for name, text in report.files().items():
        write_text(directory / name, text)
        written.append(directory / name)
    for name, chart in report.charts().items():
        written += chart.save(directory / name)
    if found.figure is not None:
        stream = io.BytesIO()
        found.figure.save(stream, "PNG")
        write_bytes(directory / _STRIPS, stream.getvalue())
        written.append(directory / _STRIPS)
    # Write it last, so that a results.json always belongs to a complete evaluation.
    write_text(directory / "results.json", json.dumps(redacted(result_json(found, options)), indent=2) + "\n")
    return [directory / "results.json", *written]
