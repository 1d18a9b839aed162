"""Files that only describe a run may hold anything: the run goes on bit for bit, and says what was dropped."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from swinv2_train.exit_codes import FINISHED
from tests.runs import comparable, run_here, tiny_run

GARBAGE = bytes(range(256)) * 4


def halfway(finished_run: Path, run: Path) -> Path:
    """A copy of a finished run as it stood at step 4."""
    shutil.copytree(finished_run, run)
    shutil.rmtree(run / "checkpoints" / "step-00000008")
    return run


def flipped(data: bytes, line: bytes) -> bytes:
    """Return the data with one bit changed in the first line that contains `line`, so that it is not UTF-8."""
    place = data.index(line)
    return data[:place] + bytes([data[place] | 0x80]) + data[place + 1 :]


def damage(run: Path, kind: str) -> None:
    records = ("status.json", "resolved.yaml", "environment.json", "init_from.txt", "log.txt")
    (run / "init_from.txt").write_text("a table\n")
    (run / "incidents").mkdir()
    for name in (*records, "incidents/step-00000003-batch-00000002.json"):
        path = run / name
        if kind == "folders" and name != "log.txt":
            path.unlink(missing_ok=True)
            path.mkdir()
        else:
            path.write_bytes({"garbage": GARBAGE, "folders": b"", "wrong types": b'"text 1e999"'}[kind])
    if kind == "wrong types":
        (run / "status.json").write_text('{"sTatus": "stopped", "step": 4}')
    lines = (run / "metrics.jsonl").read_bytes()
    if kind == "garbage":
        (run / "metrics.jsonl").write_bytes(flipped(lines, b'step": 2'))
    else:
        (run / "metrics.jsonl").write_bytes(lines + b'{"step": "9"}\n[1]\n{"step": 1e5}\n{"step": true}\nnull\n')


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["garbage", "folders", "wrong types"])
def test_a_run_goes_on_with_damaged_records(
    finished_run: Path, shards: Path, tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = halfway(finished_run, tmp_path / "run")
    damage(run, kind)
    assert run_here(tiny_run(shards, run)) == FINISHED
    said = capsys.readouterr().out
    assert "resuming from" in said
    assert ("metrics.jsonl has no line for 1 of the steps up to 4" in said) == (kind == "garbage")
    for name in ("status.json", "environment.json", "incidents/step-00000003-batch-00000002.json"):
        assert f"{name} is damaged" in said
    assert "cannot determine what changed since the last start: " in said
    assert "lines of metrics.jsonl, past step 4 or damaged" in said
    ours, theirs = comparable(run), comparable(finished_run)
    lost = [record for record in theirs if record["step"] == 2 and "loss" in record] if kind == "garbage" else []
    assert ours == [record for record in theirs if record not in lost]
    assert json.loads((run / "status.json").read_text()) == {"status": "finished", "step": 8}
    assert len(json.loads((run / "environment.json").read_text())) == 1
    assert "optim:" in (run / "resolved.yaml").read_text()
    assert (run / "environment.json.unreadable").exists()
