"""Sizes of the images for test-time windows, and whether a machine can evaluate them. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import psutil

from swinv2_train.config.checks import clip_frames, resolution
from swinv2_train.config.errors import ConfigError
from swinv2_train.config.model import attention_backends, stage_geometry, total_stride
from swinv2_train.config.schema import Config
from swinv2_train.config.window_scale import largest_window, scaled_windows

_CONTAINER_LIMIT = Path("/sys/fs/cgroup/memory.max")
_CHUNKED = "sequential"
"""Backend that never holds the bias of all pairs of tokens."""
_GIB = 2**30


def resolution_for(config: Config, window: int) -> tuple[int, int]:
    """Return the input (height, width) with the same number of windows as in training, as in the paper.

    A side that is not an integer number of pixels is rounded to whole tokens of the last stage.
    """
    stride, own = total_stride(config.model), largest_window(config.model)

    def scaled(side: int) -> int:
        whole, rest = divmod(side * window, own)
        return whole if not rest else max(1, round(side * window / own / stride)) * stride

    height, width = resolution(config)
    return scaled(height), scaled(width)


def window_sizes(config: Config, windows: Sequence[int], resolutions: Sequence[int] | None) -> list[tuple[int, int]]:
    """Return the input (height, width) for each window: a given side, or `resolution_for`."""
    if resolutions is None:
        return [resolution_for(config, window) for window in windows]
    return [(side, side) for side in resolutions]


def check_windows(
    config: Config,
    windows: Sequence[int],
    resolutions: Sequence[int] | None,
    *,
    batch: int,
    element: int,
    memory: int | None,
) -> None:
    """Check that the windows can be evaluated: the pixels of their images, and the memory of a forward pass.

    Args:
        config: of the training.
        resolutions: sides in pixels, one per window; None: in proportion to the windows.
        batch: images in a forward pass.
        element: bytes of a number of the model.
        memory: bytes of this machine; None: they are not compared.

    Raises:
        ConfigError: naming the window and the size of its images.
    """
    for window, (height, width) in zip(windows, window_sizes(config, windows, resolutions), strict=True):
        needs = f"window {window} needs images of {width} x {height} pixels"
        if height * width > config.data.max_pixels:
            hint = f"{needs}, above the limit of {config.data.max_pixels:,} pixels (data.max_pixels); use smaller ones"
            raise ConfigError("windows", window, hint)
        images = 1 if config.task.SIZES_DIFFER else batch
        needed = _least_bytes(config, window, (height, width), images, element)
        if memory is not None and needed > memory:
            size = f"{needs}, and batch={images} of them at least {needed / _GIB:,.1f} GiB"
            fix = f"{'' if images == 1 else 'lower batch, or '}use smaller windows"
            raise ConfigError("windows", window, f"{size}, but this machine has {memory / _GIB:,.1f} GiB: {fix}")


def host_memory() -> int:
    """Return the bytes of memory that this machine or container has."""
    total = psutil.virtual_memory().total
    try:
        return min(total, int(_CONTAINER_LIMIT.read_text()))
    except (OSError, ValueError):  # not a container, or without a limit
        return total


def _least_bytes(config: Config, window: int, size: tuple[int, int], images: int, element: int) -> int:
    """Return bytes that are certainly in memory at one moment of a forward pass.

    These are the images, and of one attention its input, queries, keys, and values, and the bias of every pair of
    tokens in a window.
    """
    model, frames = replace(config.model, window=scaled_windows(config.model, window)), clip_frames(config)
    most = 0
    for stage, backend in zip(stage_geometry(model, *size, frames), attention_backends(model), strict=True):
        bias = 0 if backend == _CHUNKED else stage.num_heads * stage.window_tokens**2
        most = max(most, 4 * images * stage.tokens * stage.dim + bias)
    return element * (images * model.in_channels * max(frames, 1) * size[0] * size[1] + most)
