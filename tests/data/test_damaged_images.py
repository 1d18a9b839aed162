"""A small part of scripts/bench/fuzz_images.py: damaged files are decoded, or refused with one line."""

from __future__ import annotations

import pytest

from swinv2_train.data.decode import decode
from swinv2_train.data.errors import BrokenSample
from tests.data.damaged_images import FORMATS, damaged, intact


@pytest.mark.parametrize("kind", FORMATS)
def test_damaged_files_are_decoded_or_refused_with_one_line(kind: str) -> None:
    for data in intact(kind):
        decode(data)
    reasons = []
    for number in range(12):
        data = damaged(kind, number)
        assert data == damaged(kind, number)
        try:
            image = decode(data)
        except BrokenSample as error:
            reasons.append(error.reason)
        else:
            assert image.ndim == 3
            assert 0 not in image.shape
    assert reasons
    for reason in reasons:
        assert 0 < len(reason) < 300
        assert "\n" not in reason
        assert " object at 0x" not in reason


def test_every_damaged_png_is_refused_before_it_reaches_a_decoder() -> None:
    for number in range(100):
        data = damaged("png", number, seed=1)
        if data not in intact("png"):
            with pytest.raises(BrokenSample, match=r"png|not a JPEG|empty"):
                decode(data)
