"""Every command block of the README runs, in order, in an empty folder with images in it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.documents import blocks, run_block
from tests.runs import losses, make_images

ROOT = Path(__file__).resolve().parent.parent
BLOCKS = blocks(ROOT / "README.md")


def test_the_first_block_names_the_two_commands() -> None:
    """It is what a new user runs and what runs these tests, so here it is only held to exist."""
    scripts = re.findall(r"^(\S+)", BLOCKS[0], re.MULTILINE)
    assert scripts == ["scripts/demo.sh", "scripts/test.sh"]
    assert all((ROOT / script).stat().st_mode & 0o111 for script in scripts)


@pytest.mark.distributed
def test_every_other_block_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_images(tmp_path / "my-images", 40, 0)
    for seed, name in enumerate(("cats", "dogs"), start=1):
        make_images(tmp_path / "my-classes" / name, 20, seed)
    assert len(BLOCKS) > 3
    for block in BLOCKS[1:]:
        run_block(block, tmp_path, monkeypatch)
    assert len(losses(tmp_path / "runs" / "mine")) == 20
    assert (tmp_path / "sheet.png").stat().st_size > 1000
    assert len(losses(tmp_path / "runs" / "classes")) == 10
    assert "dogs" in (tmp_path / "sheet.html").read_text()
    assert (tmp_path / "timm-export" / "model.safetensors").is_file()


def test_every_experiment_is_in_the_table() -> None:
    from swinv2_train.config.compose import experiments

    text = (ROOT / "README.md").read_text()
    for name, _ in experiments():
        assert f"`{name}`" in text


def test_nothing_is_left_to_be_filled_in() -> None:
    text = (ROOT / "README.md").read_text()
    assert not re.search(r"^[A-Z_]{4,}$|TODO|TBD", text, re.MULTILINE)
    for path in re.findall(r"`(?:python |pytest |OMP_NUM_THREADS=1 python )([\w/]+\.py)", text):
        assert (ROOT / path).is_file(), path
