"""The line of the log about the decoder."""

from __future__ import annotations

from pathlib import Path

import pytest

from swinv2_train.config.compose import compose
from swinv2_train.data import jpeg_part
from swinv2_train.engine.start import decoder_line


@pytest.mark.slow
def test_the_log_names_the_decoder_and_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def line(*overrides: str) -> str:
        return decoder_line(compose(["data.shards=x", *overrides]))

    if reason := jpeg_part.prepare():
        pytest.skip(reason)
    parts = "JPEG decoder: libjpeg-turbo, only the parts that crops need"
    scaled = ", at a fraction of their size if twice the input size remains"
    assert line() == parts
    assert line("data.scaled_decoding=true") == parts + scaled
    whole = "JPEG decoder: torchvision, entire images"
    assert line("data.crop_decoding=false") == f"{whole}: data.crop_decoding=false"
    assert line("task=classification", "task.repeats=3") == f"{whole}: every image is cropped 3 times (task.repeats)"
    monkeypatch.setattr(jpeg_part, "CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    jpeg_part.prepare.cache_clear()
    assert line() == f"{whole}: there is no C compiler; {jpeg_part.HEADERS}"
    assert line("data.scaled_decoding=true").startswith(
        f"{whole}{scaled} (then PIL); parts are not decoded: there is no"
    )
    jpeg_part.prepare.cache_clear()
