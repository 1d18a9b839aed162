"""Texts for display: numbers with their nouns, and values as a command line has them."""

from __future__ import annotations

import pytest

from swinv2_train.config.errors import ConfigError
from swinv2_train.text import counted


@pytest.mark.parametrize(
    ("count", "form", "text"),
    [(1, "", "1 image"), (0, "", "0 images"), (1200, ",", "1,200 images"), (0.5, ".4g", "0.5 images"),
     (1.0, "g", "1 image")],
)  # fmt: skip
def test_a_noun_follows_its_number(count: float, form: str, text: str) -> None:
    assert counted(count, "image", form) == text


@pytest.mark.parametrize(("value", "text"), [(None, "a=null: b"), (True, "a=true: b"), (1, "a=1: b"), ("x", "a=x: b")])
def test_errors_show_values_of_a_command_line(value: object, text: str) -> None:
    assert str(ConfigError("a", value, "b")) == text
