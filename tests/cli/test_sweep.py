"""The commands: a real sweep of two runs, interrupted and started again; `swinv2-sweep` on what it left."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pytest

from swinv2_train.cli.sweep import main
from swinv2_train.config.overrides import last_of_each
from swinv2_train.sweep.job import SweepRecord, write_sweep
from tests.runs import losses, run_here, start, tiny_run

pytestmark = pytest.mark.usefixtures("default_signals")


def look(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(list(arguments))
    return int(caught.value.code or 0)


@pytest.mark.distributed
def test_a_sweep_that_is_stopped_goes_on_and_repeats_nothing(
    shards: Path, hostile: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a directory whose files no job may import. The second start is in this process; its jobs are not."""
    directory = tmp_path / "sweep"
    own = [item for item in tiny_run(shards, tmp_path) if not item.startswith("run.dir=")]
    command = [
        "swinv2-train", "-m", f"sweep.dir={directory}", "sweep.name=two", *last_of_each(
            [*own, "optim.lr=1e-3,5e-4", "optim.steps=10", "data.num_workers=0", "eval.figure_every_steps=0"]
        ),
    ]  # fmt: skip
    first = start(command, hostile)
    second = _metrics_of_the_second(directory, first)
    first.send_signal(signal.SIGTERM)
    output, _ = first.communicate(timeout=240)
    assert first.returncode == 75, output
    finished = next(path for path in directory.glob("*/metrics.jsonl") if path != second)
    stamp = finished.stat()
    monkeypatch.chdir(hostile)
    assert run_here(command[1:]) == 0
    assert f"{finished.parent.name}: was finished" in capfd.readouterr().out
    assert finished.stat() == stamp
    assert len(losses(second.parent)) == 10
    assert look("report", str(directory)) == 0
    assert "2 jobs: 2 finished" in capfd.readouterr().out
    assert look("status", str(directory), "--json") == 0
    kept = json.loads(capfd.readouterr().out)
    assert sorted(job["tries"] for job in kept["jobs"]) == [1, 2]
    assert (directory / "figures" / "eval_loss-optim.lr.pdf").exists()


def _metrics_of_the_second(directory: Path, process: object) -> Path:
    """Wait until the second job has made steps; the path of its metrics."""
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and process.poll() is None:  # type: ignore[attr-defined]
        working = [path for path in directory.glob("*/metrics.jsonl") if not _is_finished(path.parent)]
        if len(list(directory.glob("*/metrics.jsonl"))) == 2 and working and '"loss"' in working[0].read_text():
            return working[0]
        time.sleep(0.05)
    raise AssertionError("the second job never made a step")


def _is_finished(run_dir: Path) -> bool:
    try:
        return json.loads((run_dir / "status.json").read_text())["status"] == "finished"
    except OSError:
        return False


@pytest.mark.parametrize("what", ["status", "report"])
def test_a_directory_without_a_sweep_is_one_sentence(
    what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def answer(directory: Path) -> str:
        assert look(what, str(directory)) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        return captured.err

    assert answer(tmp_path / "none") == f"swinv2-sweep: {tmp_path}/none does not exist\n"
    assert answer(tmp_path).endswith("no sweep has run there\n")
    write_sweep(tmp_path, SweepRecord("a", "b", "minimize", "last", "family", []))
    assert answer(tmp_path) == f"swinv2-sweep: the sweep in {tmp_path} has no job yet\n"
    (tmp_path / "job").mkdir()
    (tmp_path / "job" / "job.json").write_text("{")
    assert f"ignoring {tmp_path}/job/job.json, which is damaged" in answer(tmp_path)
    assert look("status", str(tmp_path), "--metric", "a") == 2


def test_wrong_words_are_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert look("show", "x") == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
