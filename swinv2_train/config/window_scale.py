"""Attention windows of finished weights other than those of their training: `test_window`."""

from __future__ import annotations

from collections.abc import Sequence

from swinv2_train.config.errors import ConfigError
from swinv2_train.config.model import NUM_STAGES, ModelConfig, windows
from swinv2_train.config.override_text import plain_text, split_list

TEST_WINDOW = "test_window"
"""The change `test_window=N` for finished weights; `model.window` is set from it."""


def largest_window(model: ModelConfig) -> int:
    """Return the longest side of the windows of all stages: the one that `test_window=N` replaces."""
    return max(side for pair in windows(model) for side in pair)


def scaled_windows(model: ModelConfig, window: int) -> list[list[int]]:
    """Return the windows [height, width] of all stages, in proportion to those of the training.

    Args:
        model: with the windows of the training, such as [40,40,40,20].
        window: new longest side; 56 gives 56, 56, 56, and 28.
    """
    own = largest_window(model)
    return [[max(1, round(side * window / own)) for side in pair] for pair in windows(model)]


def with_test_window(model: ModelConfig, overrides: Sequence[str]) -> list[str]:
    """Return the overrides with `test_window=N` replaced by the `model.window` that it means.

    Args:
        model: with the windows of the training.

    Raises:
        ConfigError: if it is not a window, or `model.window` is set as well.
    """
    rest = [item for item in overrides if item.partition("=")[0] != TEST_WINDOW]
    given = [item.partition("=")[2] for item in overrides if item.partition("=")[0] == TEST_WINDOW]
    if not given:
        return rest
    if len(given) > 1:
        raise ConfigError(TEST_WINDOW, ", ".join(given), "is set more than once; set it once")
    (text,) = given
    if any(item.partition("=")[0] == "model.window" for item in rest):
        raise ConfigError(TEST_WINDOW, text, "model.window is set as well; set one of them")
    found = parse_test_window(text)
    chosen = scaled_windows(model, found) if isinstance(found, int) else found
    return [*rest, f"model.window={str(chosen).replace(' ', '')}"]


def parse_test_window(text: str) -> int | list[int]:
    """Return one side, or a list of one per stage.

    Raises:
        ConfigError: for anything else.
    """
    plain = text.strip()
    listed = plain.startswith("[") and plain.endswith("]")
    parts = [plain_text(part) for part in split_list(plain[1:-1])] if listed else [plain_text(plain)]
    whole = all(part.isascii() and part.isdecimal() and int(part) > 0 for part in parts)
    if not whole or (listed and len(parts) != NUM_STAGES):
        raise ConfigError(TEST_WINDOW, text, "must be a side in tokens, or one per stage, such as [56,56,56,28]")
    return [int(part) for part in parts] if listed else int(parts[0])
