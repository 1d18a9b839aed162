"""A run that is hit by a fault and started again by the same command ends like a twin that nothing happened to.

On the same number of ranks that is meant to the bit, metrics, weights and moments; on another number within a
tolerance. Either way every step consumes its own samples: none lost, none repeated.
"""

from __future__ import annotations

import random
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from swinv2_train.exit_codes import FAILED, FINISHED, STOPPED
from swinv2_train.launch.status import read_status
from tests.faults import damage
from tests.faults.job import COMMAND, FaultyRun, Job
from tests.faults.nursery import Nursery
from tests.faults.patches import Hit
from tests.faults.verdict import Verdict, judge, relative_difference, series
from tests.runs import make_data, metrics, tiny_run

pytestmark = pytest.mark.distributed
STEPS, BATCH = 10, 12
OPTIONS = (
    f"optim.steps={STEPS}", "tracking.log_every_steps=1", "checkpoint.every_steps=3", "eval.every_steps=5",
    "eval.figure_every_steps=0", "data.num_workers=0", "checkpoint.keep_last=3", "checkpoint.retry_seconds=0",
    "model.depths=[1,1,1,1]",
)  # fmt: skip
KILLED = -signal.SIGKILL
Runs = Callable[..., FaultyRun]


@pytest.fixture
def make_run(shards: Path, nursery: Nursery, tmp_path: Path) -> Iterator[Runs]:
    """A function that makes a run of `STEPS` steps with further overrides."""
    runs: list[FaultyRun] = []

    def make(*overrides: str, name: str = "run", data: Path = shards) -> FaultyRun:
        runs.append(FaultyRun(tmp_path / name, tiny_run(data, tmp_path / name, *OPTIONS, *overrides), nursery))
        return runs[-1]

    yield make
    for run in runs:
        run.close()


@pytest.fixture(scope="module")
def twins(shards: Path, nursery: Nursery, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """Return the directory of an uninterrupted run on this number of ranks."""
    finished: dict[int, Path] = {}

    def twin(ranks: int) -> Path:
        if ranks not in finished:
            directory = tmp_path_factory.mktemp("twins") / "run"
            run = FaultyRun(directory, tiny_run(shards, directory, *OPTIONS), nursery)
            assert run.go(ranks) == FINISHED, run.jobs[-1].output
            finished[ranks] = directory
        return finished[ranks]

    return twin


def verdict_of(run: FaultyRun, twin: Path, *, exact: bool = True) -> Verdict:
    return judge(run.directory, run.trace, twin, total_steps=STEPS, global_batch=BATCH, exact=exact)


def go_on(run: FaultyRun, twin: Path, ranks: int) -> None:
    """Start a run again, without faults, and see that it ends like its twin."""
    assert run.go(ranks) == FINISHED, run.jobs[-1].output
    assert verdict_of(run, twin) == Verdict()


def test_the_verdict_finds_what_is_wrong(twins: Callable[[int], Path], make_run: Runs) -> None:
    """The judge itself: a run of another seed, and records with a sample too few and one too many."""
    other = make_run("seed=1")
    assert other.go() == FINISHED
    assert verdict_of(other, other.directory).clean
    assert verdict_of(other, twins(1)).differences
    assert verdict_of(other, twins(1), exact=False).differences
    record = other.jobs[0].faults.record(0)
    record.write_text(record.read_text().replace("[24, 25, 26,", "[24, 25, 25,"))
    verdict = verdict_of(other, other.directory)
    assert (verdict.lost, verdict.repeated, verdict.differences) == (1, 1, [])


def checkpoint_is_unfinished(run: FaultyRun) -> bool:
    return any((run.directory / "checkpoints").glob(".saving-*"))


def killed_inside_a_save(run: FaultyRun, step: int, victim: int, flush: int) -> bool:
    """Kill a rank in the first save of a start, while a tensor file or the state is forced to the disk."""
    code = run.go(2, hits=(Hit("save", 1, signal.SIGKILL, victim, flush=flush),))
    assert {"hit": "save", "signal": signal.SIGKILL} in run.jobs[-1].lines(victim)
    assert f"step-{step:08d}" not in {path.name for path in run.checkpoints()}
    return code != FINISHED and checkpoint_is_unfinished(run)


def test_two_ranks_outlive_one_fault_after_another(twins: Callable[[int], Path], make_run: Runs) -> None:
    """Kills inside a save, a step, an evaluation, of one or all; checkpoints removed; a save that fails once."""
    run = make_run()
    assert killed_inside_a_save(run, 3, victim=1, flush=1)

    assert run.go(2, hits=(Hit("step", 5, signal.SIGKILL, 1, fraction=0.5),)) != FINISHED
    assert run.jobs[-1].stuck == []
    assert 4 <= run.jobs[-1].steps_done() <= 5
    assert [path.name for path in run.checkpoints()] == ["step-00000003"]

    job = run.start(2, slow_saves=0.3)
    assert job.wait_for_save()
    job.kill_all()
    assert job.wait() == KILLED
    assert checkpoint_is_unfinished(run)

    assert killed_inside_a_save(run, 6, victim=0, flush=3)

    # The evaluation of step 5 is interrupted, and runs at the next start.
    assert run.go(2, hits=(Hit("evaluation", 1, signal.SIGTERM, 0),)) == STOPPED, run.jobs[-1].output
    assert run.checkpoints()[-1].name == "step-00000005"
    assert list(series(run.directory, "eval/loss")) == [0]
    assert not checkpoint_is_unfinished(run)

    job = run.start(2, hold_after=2, hits=(Hit("after", 5, signal.SIGKILL, 0),))
    assert job.wait_for_hold()
    assert job.wait_until(lambda: (run.directory / "checkpoints" / "step-00000006").exists())
    assert list(series(run.directory, "eval/loss")) == [0, 5]
    damage.remove(run.directory / "checkpoints")
    job.release()
    assert job.wait() != FINISHED
    assert job.steps_done() == 5

    assert run.go(2, failing_saves=1) == FINISHED, run.jobs[-1].output
    assert "No space left on device" in run.log
    assert verdict_of(run, twins(2)) == Verdict()
    assert not checkpoint_is_unfinished(run)


def test_one_rank_of_the_command_is_killed(twins: Callable[[int], Path], make_run: Runs) -> None:
    """The ranks that our own command starts: it ends by itself, with a sentence, and the same command goes on."""
    run = make_run()
    assert run.go(2, way=COMMAND, hits=(Hit("step", 5, signal.SIGKILL, 1),)) == FAILED
    output = run.jobs[0].output
    assert "swinv2-train: rank 0 lost contact with another rank (" in output
    assert "swinv2-train: rank 1 died of SIGKILL" in output.splitlines()[-1]
    assert output.splitlines()[-1].endswith("rerun the same command to resume from the newest checkpoint")
    assert read_status(run.directory)["status"] == "failed"
    go_on(run, twins(2), 2)


def test_everything_is_killed_at_some_moment(twins: Callable[[int], Path], make_run: Runs) -> None:
    """Data workers as well."""
    run = make_run("data.num_workers=1")
    job = run.start()
    assert job.wait_for_step(5)
    job.kill_all()
    assert job.wait() == KILLED
    go_on(run, twins(1), 1)


def test_one_rank_of_three_is_told_to_stop(twins: Callable[[int], Path], make_run: Runs) -> None:
    run = make_run()
    assert run.go(3, hits=(Hit("step", 4, signal.SIGUSR1, 1, fraction=0.5),)) == STOPPED, run.jobs[0].output
    assert "step-00000004" <= run.checkpoints()[-1].name < "step-00000010"
    go_on(run, twins(3), 3)


@pytest.fixture(scope="module")
def stopped(shards: Path, nursery: Nursery, tmp_path_factory: pytest.TempPathFactory) -> FaultyRun:
    """A run that was stopped after step 8, with checkpoints of the steps 3, 6 and 8."""
    directory = tmp_path_factory.mktemp("stopped") / "run"
    run = FaultyRun(directory, tiny_run(shards, directory, *OPTIONS), nursery)
    assert run.go(hits=(Hit("after", 7, signal.SIGTERM),)) == STOPPED, run.jobs[0].output
    assert [path.name for path in run.checkpoints()] == [f"step-0000000{step}" for step in (3, 6, 8)]
    return run


@pytest.mark.parametrize("kind", list(damage.DAMAGES))
def test_checkpoints_are_damaged_between_two_starts(
    stopped: FaultyRun, twins: Callable[[int], Path], make_run: Runs, kind: str
) -> None:
    run = make_run()
    shutil.copytree(stopped.directory, run.directory)
    shutil.copytree(stopped.trace, run.trace)
    run.jobs.append(stopped.jobs[0])  # the next start is the second one
    assert damage.spoil(run.directory / "checkpoints", kind, random.Random(kind))
    go_on(run, twins(1), 1)
    assert "resuming from" in run.log
    if kind != "checkpoints deleted":
        assert "skipped step-00000008" in run.log


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """The checkpoints directory of the run `run`, on a disk of its own with no room left."""
    directory = tmp_path / "run" / "checkpoints"
    try:
        with damage.small_disk(directory, kib=64 * 1024):
            yield damage.fill(directory)
    except damage.NoMountError as error:
        pytest.skip(f"a full disk needs the right to mount one: {error}")


def test_the_disk_is_full_until_the_end_of_a_start(
    twins: Callable[[int], Path], make_run: Runs, full_disk: Path
) -> None:
    run = make_run()
    assert run.go(2) == FAILED, run.jobs[0].output
    for step in (3, 6, 9, 10):
        assert f"saving step {step} FAILED" in run.log
    assert "free: make room" in run.log
    assert run.checkpoints() == []
    full_disk.unlink()
    go_on(run, twins(2), 2)


def test_room_is_made_on_a_full_disk_while_the_run_goes_on(
    twins: Callable[[int], Path], make_run: Runs, full_disk: Path
) -> None:
    run = make_run("checkpoint.background=false")  # so that it knows of a failure before it waits
    job = run.start(2, hold_after=8)
    assert job.wait_for_hold()
    assert job.wait_until(lambda: "saving step 6 FAILED" in run.log)
    full_disk.unlink()
    job.release()
    assert job.wait() == FINISHED, job.output
    assert [path.name for path in run.checkpoints()] == ["step-00000009", "step-00000010"]
    assert verdict_of(run, twins(2)) == Verdict()


def fingerprints(job: Job, rank: int) -> list[int]:
    """Checksums of a rank's weights after each step."""
    return [line["weights"] for line in job.lines(rank) if "step" in line]


def test_a_nan_in_the_input_of_one_rank_reaches_no_weights(make_run: Runs) -> None:
    """Sample 56 is one of rank 1 in step 5. The twin has the same NaN."""
    twin, run = make_run(name="twin"), make_run()
    assert twin.go(2, nan_positions=(56,)) == FINISHED, twin.jobs[0].output
    weights = fingerprints(twin.jobs[0], 0)
    assert fingerprints(twin.jobs[0], 1) == weights
    assert [step for step in range(2, STEPS + 1) if weights[step - 1] == weights[step - 2]] == [5]
    rows = [row for row in metrics(twin.directory) if "loss" in row]
    assert [row["skipped_steps"] for row in rows] == [0] * 4 + [1] * 6
    assert [row["step"] for row in rows if row["loss"] is None] == [5]
    for path in sorted(twin.checkpoints()[-1].glob("*/*.safetensors")):
        assert all(torch.isfinite(tensor).all() for tensor in load_file(path).values()), path

    assert run.go(2, nan_positions=(56,), hits=(Hit("after", 5, signal.SIGKILL, 0),)) != FINISHED
    assert run.go(2, nan_positions=(56,)) == FINISHED, run.jobs[-1].output
    assert verdict_of(run, twin.directory) == Verdict()


def test_a_shard_breaks_in_the_middle_of_an_epoch(tmp_path: Path, make_run: Runs) -> None:
    """The run's response does not depend on whether it was running at that moment or started later."""
    runs = []
    for name, stop in (("running", ()), ("between", (Hit("after", 4, signal.SIGTERM),))):
        data = make_data(tmp_path / f"shards-{name}")
        run = make_run("data.max_broken_share=0.1", name=name, data=data)
        job = run.start(2, hits=stop, hold_after=0 if stop else 4)
        assert job.wait() == STOPPED if stop else job.wait_for_hold()
        damage.break_samples(data / "train-0.tar", 5)
        if stop:
            job = run.start(2)
        job.release()
        assert job.wait() == FINISHED, job.output
        assert job.stuck == []
        runs.append(run)
    broken = [row["broken_samples"] for row in metrics(runs[0].directory) if "loss" in row]
    assert broken[:4] == [0, 0, 0, 0]
    assert 5 <= broken[-1] <= 15, "72 samples after the break are more than two epochs of 31"
    assert "train-0-0003" in runs[0].log
    assert verdict_of(runs[0], runs[1].directory) == Verdict()


def by_parts(run: FaultyRun, ranks: tuple[int, ...], steps: int) -> None:
    """Run with one number of ranks after the other, each for N steps or one more, and the last to the end.

    A request that comes after a step stops the run after the next one, if the sum for that one has already begun.
    """
    for number in ranks[:-1]:
        assert run.go(number, hits=(Hit("after", steps, signal.SIGTERM, 0),)) == STOPPED, run.jobs[-1].output
    assert run.go(ranks[-1]) == FINISHED, run.jobs[-1].output
    assert {job.steps_done() for job in run.jobs[:-1]} <= {steps, steps + 1}


def test_the_number_of_ranks_changes_four_times_over(twins: Callable[[int], Path], make_run: Runs) -> None:
    run = make_run("engine.precision=fp32")
    by_parts(run, (4, 1, 3, 2), steps=2)
    print(f"largest relative difference of a loss, fp32: {worst(run.directory, twins(1)):.2g}")
    assert verdict_of(run, twins(1), exact=False) == Verdict()


def worst(run: Path, twin: Path) -> float:
    """The largest relative difference of the losses of any step."""
    ours, theirs = series(run, "loss"), series(twin, "loss")
    assert ours.keys() == theirs.keys() == set(range(1, STEPS + 1))
    return max(relative_difference(ours[step], theirs[step]) for step in ours)


def test_in_bf16_another_number_of_ranks_is_as_good_as_another_order_of_adding_up(make_run: Runs) -> None:
    """On one rank the micro-batch changes the order in which gradients add up, and nothing else."""
    options = ("engine.precision=bf16", "model.depths=[1,2,1,1]")  # the factor 2 below is that of this model
    elastic, whole = make_run(*options, name="elastic"), make_run(*options, name="whole")
    assert whole.go() == FINISHED
    micro = make_run(*options, "engine.micro_batch=3", name="micro")
    assert micro.go() == FINISHED
    by_parts(elastic, (4, 1, 3, 2), steps=2)
    ours, theirs = (worst(run.directory, whole.directory) for run in (elastic, micro))
    print(f"largest relative difference of a loss, bf16: {ours:.2g}; of two orders of adding up: {theirs:.2g}")
    assert 0 < ours <= 2 * theirs
