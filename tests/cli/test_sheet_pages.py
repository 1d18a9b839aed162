"""Pages of a sheet: every image on one of them, links between them, and nothing of the user's overwritten."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from swinv2_train.cli.prediction_files import Targets
from swinv2_train.cli.sheet import Entry
from swinv2_train.cli.sheet_pages import MOST_PAGES, ON_PAGE, earlier_pages, page_paths, write_pages
from swinv2_train.config.errors import ConfigError


@pytest.fixture
def entries(monkeypatch: pytest.MonkeyPatch) -> list[Entry]:
    """Five images, for pages of two."""
    for suffix in (".html", ".png"):
        monkeypatch.setitem(ON_PAGE, suffix, 2)
    one = Entry.of(Path("x.jpg"), Image.new("RGB", (400, 300), "red"))
    return [replace(one, path=Path(f"image-{number}.jpg"), bars=[("cat", 0.5)]) for number in range(5)]


def test_every_image_is_on_a_page_with_links_to_the_others(entries: list[Entry], tmp_path: Path) -> None:
    written = write_pages(tmp_path / "my sheet.html", entries, "model", 5, MOST_PAGES)
    assert [path.name for path in written] == ["my sheet.html", "my sheet-2.html", "my sheet-3.html"]
    texts = [path.read_text() for path in written]
    assert [re.findall(r'alt="(image-\d)', text) for text in texts] == [
        ["image-0", "image-1"], ["image-2", "image-3"], ["image-4"],
    ]  # fmt: skip
    assert "model, images 3 to 4, page 2 of 3" in texts[1]
    links = re.findall(r'<a href="([^"]+)">(page \d)</a>', texts[1])
    assert set(links) == {("my%20sheet.html", "page 1"), ("my%20sheet-3.html", "page 3")}
    with Image.open(write_pages(tmp_path / "sheet.png", entries, "model", 5, MOST_PAGES)[2]) as last:
        assert last.width < 400


def test_a_limit_of_pages_is_reported_on_the_last(entries: list[Entry], tmp_path: Path) -> None:
    written = write_pages(tmp_path / "sheet.html", entries, "model", 9, 2)
    assert len(written) == 2
    assert "(and 5 more images)" in written[1].read_text()
    assert "more images" not in written[0].read_text()
    assert earlier_pages(tmp_path / "sheet.html", written) == []
    shorter = write_pages(tmp_path / "sheet.html", entries[:2], "model", 2, MOST_PAGES)
    assert earlier_pages(tmp_path / "sheet.html", shorter) == [written[1]]
    assert earlier_pages(tmp_path / "sheet.png", []) == []
    (single,) = write_pages(tmp_path / "one.html", entries[:2], "model", 2, MOST_PAGES)
    assert "page" not in re.sub(r"(?s)<style>.*</style>", "", single.read_text())
    assert write_pages(tmp_path / "none.png", [], "model", 0, MOST_PAGES) == []


def test_further_pages_do_not_replace_images_or_folders(entries: list[Entry], tmp_path: Path) -> None:
    inputs = [tmp_path / f"{name}.png" for name in ("a", "b", "sheet-2")]
    targets = {"csv": [], "jsonl": [], "sheet": [tmp_path / "sheet.png"]}
    assert page_paths(targets["sheet"][0], 3, 20) == [tmp_path / "sheet.png", tmp_path / "sheet-2.png"]
    with pytest.raises(ConfigError, match=r"sheet-2\.png is one of the inputs and would be overwritten"):
        Targets(targets, MOST_PAGES).check(inputs)
    Targets(targets, 1).check(inputs)
    (tmp_path / "sheet-2.png").mkdir()
    with pytest.raises(ConfigError, match=r"sheet-2\.png is a directory"):
        Targets(targets, MOST_PAGES).check(inputs[:2] + inputs[:1])
