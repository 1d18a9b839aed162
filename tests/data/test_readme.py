"""The commands and programs of the page on data run, in order, in a folder with images in it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.documents import blocks, run_block
from tests.runs import make_images

PAGE = Path(__file__).resolve().parents[2] / "swinv2_train" / "data" / "README.md"


def test_every_block_of_the_page_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_images(tmp_path / "my-images", 20, 0)
    monkeypatch.setenv("HOME", str(tmp_path))  # where the cache is
    monkeypatch.setattr("swinv2_train.data.parallel.available_cores", lambda: 0)  # no processes for 20 images
    for block in blocks(PAGE):
        run_block(block, tmp_path, monkeypatch)
    programs = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(programs) == 2
    for program in programs:
        exec(compile(program, str(PAGE), "exec", dont_inherit=True), {"__name__": "__main__"})
    assert "torch.Size([4, 3, 64, 64]) [1, 1, 1, 1]" in capsys.readouterr().out


def test_the_page_is_linked_and_leads_somewhere() -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", PAGE.read_text()):
        assert (PAGE.parent / target).exists(), target
    root = PAGE.parents[2]
    assert "swinv2_train/data/README.md" in (root / "README.md").read_text()
