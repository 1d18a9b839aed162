"""The Python programs of the page on data run as they are printed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.runs import make_shard

PAGE = Path(__file__).resolve().parents[2] / "swinv2_train" / "data" / "README.md"


def test_the_programs_of_the_page_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "shards").mkdir()
    make_shard(tmp_path / "shards" / "train-000000.tar", 6, 0)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))  # the place of the cache
    programs = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(programs) == 3
    for program in programs:
        exec(compile(program, str(PAGE), "exec", dont_inherit=True), {"__name__": "__main__"})
    assert "torch.Size([4, 3, 64, 64]) [1, 1, 1, 1]" in capsys.readouterr().out
