"""One job: skipped where it is done, tried again where it failed, stopped and taken up, kept from running twice."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from swinv2_train.launch.command import StopSignals
from swinv2_train.launch.lock import RunLock
from swinv2_train.sweep.job import make_job, read_job
from swinv2_train.sweep.run import LOCKS, run_job
from tests.sweep.conftest import FIXED, KEYS, Jobs


def job_id(*swept: str) -> str:
    return make_job([*FIXED, *swept], KEYS).id


def when(path: Path, do: object) -> threading.Thread:
    """Call `do` in another thread once a file is there."""

    def wait() -> None:
        while not path.exists():
            time.sleep(0.02)
        do()  # type: ignore[operator]

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def test_a_finished_job_is_skipped_and_its_metric_read_again(jobs: Jobs, capfd: pytest.CaptureFixture[str]) -> None:
    first = jobs.run("optim.lr=0.01")
    assert first is not None
    assert (first.status, first.metric, first.tries) == ("finished", 1.125, 1)
    written = (jobs.directory / first.id / "metrics.jsonl").stat()
    capfd.readouterr()
    jobs.settings.metric = "eval/top1"
    again = jobs.run("optim.lr=0.01")
    assert again is not None
    assert (again.status, again.metric, again.tries) == ("finished", 0.125, 1)
    assert capfd.readouterr().out == f"{first.id}: was finished, eval/top1 0.125\n"
    assert (jobs.directory / first.id / "metrics.jsonl").stat() == written
    assert jobs.started == [first.id]
    assert read_job(jobs.directory / first.id) == again


@pytest.mark.slow
def test_a_job_that_fails_is_tried_again_and_its_sentence_kept(jobs: Jobs) -> None:
    jobs.does({"seed_1": "die", "seed_2": "die once", "seed_3": "refuse"})
    failed, mended, refused = (jobs.run(f"seed={seed}") for seed in (1, 2, 3))
    assert failed is not None
    assert mended is not None
    assert refused is not None
    assert (failed.status, failed.tries) == ("failed", 2)
    assert failed.message == "ended with code 1: the disk is full"
    assert (mended.status, mended.tries, mended.message) == ("finished", 2, "")
    assert (refused.status, refused.tries) == ("refused", 1)  # a wrong config does not get better
    assert refused.message == "optim.lr=0: there is no such rate"
    jobs.does({})
    again = jobs.run("seed=1")
    assert again is not None
    assert (again.status, again.tries, again.message) == ("finished", 3, "")


def test_a_signal_stops_the_job_and_the_next_call_goes_on_with_it(jobs: Jobs) -> None:
    jobs.does({"seed_0": "wait"})
    run_dir = jobs.directory / job_id("seed=0")
    thread = when(run_dir / "status.json", lambda: os.kill(os.getpid(), signal.SIGTERM))
    stopped = jobs.run("seed=0")
    thread.join()
    assert stopped is not None
    assert (stopped.status, stopped.metric) == ("stopped", 0.25)
    begun = (run_dir / "metrics.jsonl").read_text()
    jobs.does({})
    finished = jobs.run("seed=0")
    assert finished is not None
    assert (finished.status, finished.tries) == ("finished", 2)
    text = (run_dir / "metrics.jsonl").read_text()
    assert text.startswith(begun)
    assert [line[:10] for line in text.splitlines()] == ['{"step": 4', '{"step": 8']


def test_a_stop_file_stops_a_job_wherever_it_runs(jobs: Jobs) -> None:
    jobs.does({"seed_0": "wait"})
    thread = when(jobs.directory / job_id("seed=0") / "status.json", (jobs.directory / "STOP").touch)
    stopped = jobs.run("seed=0")
    thread.join()
    assert stopped is not None
    assert stopped.status == "stopped"
    other = jobs.run("seed=1")
    assert other is not None
    assert (other.status, jobs.started) == ("to do", [stopped.id])  # it does not even begin


@pytest.mark.slow
def test_a_job_that_falls_behind_is_pruned_and_left_alone(jobs: Jobs) -> None:
    for seed in (0, 1, 2):
        jobs.run(f"seed={seed}")
    jobs.does({"seed_5": "wait"})
    jobs.settings.prune = "median"
    pruned = jobs.run("seed=5")
    assert pruned is not None
    assert (pruned.status, pruned.metric) == ("pruned", 0.3)
    assert pruned.message == "eval/loss 0.3 at step 4; the median of 3 is 0.26"
    started = len(jobs.started)
    again = jobs.run("seed=5")
    assert again is not None
    assert (again.status, again.metric) == ("pruned", 0.3)
    assert len(jobs.started) == started
    jobs.does({})
    jobs.settings.prune = "off"
    ended = jobs.run("seed=5")
    assert ended is not None
    assert (ended.status, ended.metric) == ("finished", 0.175)


def test_two_processes_do_not_run_the_same_job(jobs: Jobs, capfd: pytest.CaptureFixture[str]) -> None:
    directory = jobs.directory / LOCKS / job_id("seed=0")
    directory.mkdir(parents=True)
    other = RunLock(directory)
    assert jobs.run("seed=0") is None
    assert capfd.readouterr().out == f"{job_id('seed=0')}: runs elsewhere\n"
    assert jobs.started == []
    other.release()
    record = jobs.run("seed=0")
    assert record is not None
    assert record.status == "finished"


def test_a_run_that_outlived_its_sweep_is_waited_for(jobs: Jobs, capfd: pytest.CaptureFixture[str]) -> None:
    run_dir = jobs.directory / job_id("seed=0")
    run_dir.mkdir(parents=True)
    left = RunLock(run_dir)
    signals = StopSignals()
    threading.Timer(0.1, lambda: signals.received.append(signal.SIGTERM)).start()
    record = run_job(jobs.sweep(), make_job([*FIXED, "seed=0"], KEYS), signals)
    signals.close()
    left.release()
    assert record is not None
    assert record.status == "to do"
    assert "a run is still active there" in capfd.readouterr().out
    assert jobs.started == []


@pytest.mark.slow
def test_a_search_gets_a_value_or_nothing_and_ends_where_there_can_be_none(jobs: Jobs) -> None:
    jobs.does({"seed_1": "die"})
    sweep = jobs.sweep(search=True)
    assert sweep([*FIXED, "seed=0"]) == 0.125
    assert sweep([*FIXED, "seed=1"]) is None
    jobs.settings.metric = "eval/los"
    with pytest.raises(SystemExit) as caught:
        sweep([*FIXED, "seed=0"])
    assert caught.value.code == 1
    record = read_job(jobs.directory / job_id("seed=0"))
    assert record is not None
    assert record.message == "sweep.metric=eval/los: the job has no such metric, only eval/loss, eval/top1"


def test_the_further_tasks_of_a_slurm_job_are_ranks_of_the_same_run(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    monkeypatch.setenv("SLURM_PROCID", "1")
    (jobs.directory / job_id("seed=0")).mkdir(parents=True)
    assert jobs.sweep()([*FIXED, "seed=0"]) is None
    assert jobs.started == [job_id("seed=0")]
    assert read_job(jobs.directory / job_id("seed=0")) is None  # the first task keeps the records
