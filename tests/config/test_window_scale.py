"""`test_window`: windows of all stages in proportion to those of the training."""

from __future__ import annotations

import pytest

from swinv2_train.config.errors import ConfigError
from swinv2_train.config.model import ModelConfig, windows
from swinv2_train.config.window_scale import largest_window, parse_test_window, scaled_windows, with_test_window


@pytest.mark.parametrize(
    ("trained", "window", "expected"),
    [
        (8, 16, [(16, 16)] * 4),
        ([40, 40, 40, 20], 56, [(56, 56)] * 3 + [(28, 28)]),
        ([[8, 16], 8, 8, 4], 32, [(16, 32), (16, 16), (16, 16), (8, 8)]),
        ([12, 12, 12, 6], 1, [(1, 1)] * 4),
    ],
)
def test_windows_keep_their_proportions(trained: object, window: int, expected: list[tuple[int, int]]) -> None:
    model = ModelConfig(window=trained)
    assert largest_window(model) == max(max(pair) for pair in windows(model))
    assert windows(ModelConfig(window=scaled_windows(model, window))) == expected
    (item,) = with_test_window(model, [f"test_window={window}"])
    key, _, text = item.partition("=")
    assert key == "model.window"
    assert " " not in text


def test_a_list_is_used_as_it_is() -> None:
    found = with_test_window(ModelConfig(), ["a=1", "test_window=[56,56,56,28]"])
    assert found == ["a=1", "model.window=[56,56,56,28]"]
    assert with_test_window(ModelConfig(), ["model.window=9"]) == ["model.window=9"]


@pytest.mark.parametrize("text", ["0", "-4", "8.5", "big", "[8,8]", "[8,8,8,0]", ""])
def test_other_values_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"test_window.*such as"):
        parse_test_window(text)


def test_one_way_to_set_the_window() -> None:
    for items in (["test_window=8", "model.window=9"], ["test_window=8", "test_window=9"]):
        with pytest.raises(ConfigError, match=r"set one of them|set it once"):
            with_test_window(ModelConfig(), items)
