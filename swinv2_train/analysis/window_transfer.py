"""Accuracy over test-time windows (paper, table 1): weights trained with one window, evaluated with others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from swinv2_train.analysis.evaluate import EvalOptions, Progress, evaluate
from swinv2_train.analysis.window_sizes import check_windows, host_memory, window_sizes
from swinv2_train.config.checks import resolution
from swinv2_train.config.model import table_windows
from swinv2_train.config.schema import Config
from swinv2_train.config.window_scale import largest_window, scaled_windows
from swinv2_train.interop.load import source_config
from swinv2_train.interop.metadata import plain_windows
from swinv2_train.interop.source import open_source
from swinv2_train.launch.failures import together
from swinv2_train.launch.ranks import Ranks


@dataclass(frozen=True)
class Point:
    """One evaluation of a curve."""

    window: int
    """Longest side over all stages; the windows of the stages are in proportion to those of the training."""
    resolution: tuple[int, int] | None
    """(height, width) in pixels; None: images have their own sizes, times `scale`."""
    metrics: dict[str, float]
    images_per_second: float
    samples: int
    """Number of samples that were evaluated."""
    scale: float | None = None
    """Factor of the sizes of images that have their own; None: they have `resolution`."""


@dataclass(frozen=True)
class Curve:
    """One model over all windows."""

    config: Config
    """Configuration that the model was trained with."""
    source: Path
    step: int | None
    points: list[Point]


def window_curve(
    options: EvalOptions,
    test_windows: Sequence[int],
    resolutions: Sequence[int] | None,
    ranks: Ranks,
    progress: Progress | None = None,
) -> Curve:
    """Evaluate one model with every window. A collective.

    Args:
        options: its overrides apply to all evaluations.
        resolutions: sides of the input in pixels, one per window; None: `resolution_for` each. Images that keep their
            own size are scaled in the same proportion.

    Raises:
        ConfigError, DataError, CheckpointError, RunError: as for `evaluate`.
    """

    def trained() -> Config:
        with open_source(options.checkpoint, which=options.which, ema=options.ema) as source:
            config = source_config(source, options.overrides)
        memory = host_memory() if ranks.device.type == "cpu" else None
        element = 4 if options.precision == "fp32" else 2
        check_windows(config, test_windows, resolutions, batch=options.batch, element=element, memory=memory)
        return config

    config = together(ranks, trained)
    sizes = window_sizes(config, test_windows, resolutions)
    if resolutions is None:
        factors = [window / largest_window(config.model) for window in test_windows]
    else:
        factors = [side / min(resolution(config)) for side in resolutions]
    # Fix the training windows before the sweep changes window and resolution.
    before = f"model.pretrained_window={plain_windows(table_windows(config.model, resolution(config)))}"
    points = []
    for window, (height, width), factor in zip(test_windows, sizes, factors, strict=True):
        chosen = f"model.window={scaled_windows(config.model, window)}"
        scaled = config.task.scaled_images(config, factor)
        overrides = [*options.overrides, before, chosen, f"data.resolution=[{height},{width}]", *(scaled or [])]
        found = evaluate(replace(options, overrides=overrides), ranks, progress)
        size, scale = ((height, width), None) if scaled is None else (None, factor)
        points.append(Point(window, size, found.metrics, found.images_per_second, found.samples, scale))
    return Curve(config, found.source, found.step, points)
