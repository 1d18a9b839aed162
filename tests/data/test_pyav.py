"""Without a package that decodes videos, everything that opens videos says what to install."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from swinv2_train.config.data import DataConfig
from swinv2_train.data.configured import open_training
from swinv2_train.data.errors import DataError
from swinv2_train.data.pack_video_sources import open_videos
from swinv2_train.data.pyav import load_av
from swinv2_train.data.samples import VIDEO
from swinv2_train.interop.images import find_images
from tests.data.filmed import film
from tests.data.samples import write_tar


@pytest.mark.parametrize(
    "opens",
    [
        lambda place: open_videos(str(place)),
        lambda place: open_training(DataConfig(shards=str(place / "a.tar"), frames=2, cache_dir=str(place / "cache"))),
        lambda place: find_images([str(place / "a.tar")], kind=VIDEO),
    ],
    ids=["pack", "train", "predict"],
)
def test_a_missing_package_is_named_before_anything_is_decoded(
    opens: Callable[[Path], object], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    write_tar(tmp_path / "a.tar", [("a.mp4", film(3))])
    opens(tmp_path)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(DataError, match=r"which is not installed: pip install av$"):
        opens(tmp_path)


def test_a_package_that_cannot_be_imported_is_named_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "av").mkdir()
    (tmp_path / "av" / "__init__.py").write_text("raise ImportError('libavcodec.so.1: cannot open shared object')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "av")
    with pytest.raises(DataError, match=r"cannot be imported \(libavcodec.so.1: .*--force-reinstall av$"):
        load_av()
