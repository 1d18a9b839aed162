"""A whole sweep through Hydra: every job once, crashes and signals survived, searches that repeat themselves, Slurm."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from swinv2_train.config.compose import compose
from swinv2_train.config.multirun import plan_multirun
from swinv2_train.config.overrides import last_of_each
from swinv2_train.config.plan import make_plan
from swinv2_train.config.validate import validate
from swinv2_train.sweep.job import JobRecord, make_job, read_jobs
from tests.runs import run_here
from tests.sweep.conftest import Jobs
from tests.sweep.test_run import when
from tests.sweep.test_values import leave

pytestmark = pytest.mark.usefixtures("compose_once")
NO_DATA = ("data.shards=", "data.eval_shards=", "data.expected_samples=64", "optim.warmup_steps=2")


@pytest.fixture
def call(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> Jobs:
    """Jobs whose stand-ins need no shards."""
    monkeypatch.setattr("swinv2_train.cli.sweep._check_start", lambda config: None)
    return jobs


def by_swept(directory: Path) -> dict[tuple[str, ...], JobRecord]:
    return {tuple(record.swept.values()): record for record in read_jobs(directory)}


@pytest.mark.slow
def test_a_grid_runs_every_job_once_whatever_becomes_of_one(call: Jobs, capfd: pytest.CaptureFixture[str]) -> None:
    grid = ("optim.lr=1e-3,1e-2", "seed=0,1")
    call.does({"lr_0.01__seed_0": "die"})
    assert call.call(*grid) == 1
    found = by_swept(call.directory)
    assert {values: record.status for values, record in found.items()} == {
        ("0.001", "0"): "finished", ("0.001", "1"): "finished", ("0.01", "0"): "failed", ("0.01", "1"): "finished",
    }  # fmt: skip
    table = capfd.readouterr().out.split("\n\n")[-1].splitlines()
    assert [line.split()[1:3] for line in table[1:5]] == [
        ["finished", "0.125"], ["finished", "0.135"], ["finished", "1.135"], ["failed", "2"],
    ]  # fmt: skip
    assert table[5] == f"simmim_demo in {call.directory}: 3 finished, 1 failed"
    before = {record.id: (call.directory / record.id / "metrics.jsonl") for record in found.values()}
    stamps = {name: path.stat() for name, path in before.items() if path.exists()}
    call.does({})
    leave(call.directory, make_job(["seed=7"], ()), {})
    assert call.call(*reversed(grid), "launch.nproc_per_node=2") == 0  # neither order nor ranks make other jobs
    assert {name: before[name].stat() for name in stamps} == stamps
    assert sorted(call.started) == sorted([*before, *[found["0.01", "0"].id] * 2])
    assert by_swept(call.directory)["0.01", "0"].status == "finished"
    assert "1 more job directories do not belong to this call" in capfd.readouterr().out
    sweep = json.loads((call.directory / "sweep.json").read_text())
    assert (sweep["name"], sweep["metric"], sweep["command"][:2]) == (
        "simmim_demo",
        "eval/loss",
        ["swinv2-train", "-m"],
    )
    left = {path.name for path in call.directory.iterdir() if not (path / "job.json").exists()}
    assert left == {"sweep.json", "multirun.yaml", "does.json", "started.txt", ".locks"}
    assert [path.name for path in call.directory.parent.iterdir()] == ["sweep"]


@pytest.mark.slow
def test_another_experiment_or_fixed_value_needs_a_directory_of_its_own(
    call: Jobs, capfd: pytest.CaptureFixture[str]
) -> None:
    assert call.call("seed=0") == 0
    kept = (call.directory / "sweep.json").read_bytes()
    for more in ((), ("launch.dry_run=true",)):
        capfd.readouterr()
        assert call.call("seed=0,1", "optim.lr=1e-3", *more) == 2
        assert capfd.readouterr().err == (
            f"swinv2-train: sweep.dir={call.directory}: belongs to a sweep with seed=0 and without optim.lr=0.001; "
            "set a different sweep.name=NAME or sweep.dir=DIR\n"
        )
    assert (call.directory / "sweep.json").read_bytes() == kept
    next(call.directory.glob("*/job.json")).unlink()  # without jobs there is nothing to mix up
    assert call.call("seed=0,1", "optim.lr=1e-3") == 0
    assert json.loads((call.directory / "sweep.json").read_text())["shared"] == [
        "+experiment=simmim_demo", "optim.lr=0.001", "optim.steps=8",
    ]  # fmt: skip


@pytest.mark.slow
def test_a_signal_ends_the_sweep_and_the_same_command_goes_on(call: Jobs, capfd: pytest.CaptureFixture[str]) -> None:
    call.does({"seed_1": "wait"})
    planned = plan_multirun(["+experiment=simmim_demo", "optim.steps=8", f"sweep.dir={call.directory}", "seed=0,1,2"])
    ids = [make_job(overrides, planned.fixed).id for overrides in planned.jobs]
    thread = when(call.directory / ids[1] / "status.json", lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert call.call("seed=0,1,2") == 75
    thread.join()
    assert call.started == ids[:2]
    assert "1 finished, 1 stopped, 1 to do\nthe same command resumes it" in capfd.readouterr().out
    call.does({})
    assert call.call("seed=0,1,2") == 0
    assert call.started == [*ids[:2], *ids[1:]]


def search(call: Jobs, *more: str) -> list[str]:
    """Search with Optuna, past its random beginning; returns the ids of the jobs that it proposes, in order."""
    options = ["hydra.sweeper.n_trials=4", "hydra.sweeper.sampler.n_startup_trials=2", "sweep.prune=off"]
    code = call.call("+sweep=optuna", *last_of_each([*options, *more]))
    assert code in (0, 1)
    return call.started


@pytest.mark.slow
def test_a_search_proposes_the_same_again_and_finished_jobs_answer_at_once(
    call: Jobs, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    first = list(search(call))
    assert len(set(first)) == 4
    records = {record.id: record for record in read_jobs(call.directory)}
    best = (call.directory / "optimization_results.yaml").read_text()
    assert f"best_value: {min(record.metric or 9 for record in records.values())}" in best
    assert capfd.readouterr().err == ""
    for path in (call.directory / first[3]).iterdir():  # as if the sweep had been stopped after the third
        path.unlink()
    assert search(call) == [*first, first[3]]


@pytest.mark.slow
def test_a_failed_job_gives_a_search_no_value(call: Jobs, capfd: pytest.CaptureFixture[str]) -> None:
    call.does({"lr": "refuse"})
    assert len(search(call, "hydra.sweeper.n_trials=2")) == 2
    assert "2 refused" in capfd.readouterr().out
    assert not (call.directory / "optimization_results.yaml").exists()


@pytest.mark.slow
def test_jobs_run_under_submitit(call: Jobs, capfd: pytest.CaptureFixture[str]) -> None:
    assert call.call("hydra/launcher=submitit_local", "seed=0,1", "hydra.launcher.timeout_min=5") == 0
    assert {record.status for record in read_jobs(call.directory)} == {"finished"}
    assert "every job is stopped after 5 minutes" in capfd.readouterr().out
    logs = [path.read_text() for path in (call.directory / ".submitit").glob("*/*_0_log.out")]
    assert len(logs) == 2
    assert all("finished, eval/loss 0.1" in text for text in logs)


SBATCH = """\
#!/bin/sh
for last; do :; done
cp "$last" "$SEEN"
echo "sbatch: error: invalid partition specified: a100" >&2
exit 1
"""


@pytest.mark.slow
def test_jobs_go_to_slurm_with_what_they_need(
    call: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    tools = tmp_path / "slurm"
    tools.mkdir()
    for name in ("sbatch", "srun"):  # no Slurm here: what it would get is kept, and refused
        (tools / name).write_text(SBATCH)
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("SEEN", str(tmp_path / "seen.sh"))
    code = call.call(
        "hydra/launcher=submitit_slurm", "hydra.launcher.partition=a100", "hydra.launcher.gpus_per_node=8",
        "hydra.launcher.timeout_min=600", "launch.nproc_per_node=8", "seed=0,1", "sweep.name=grid",
    )  # fmt: skip
    assert code == 1
    seen = (tmp_path / "seen.sh").read_text()
    for line in ("--partition=a100", "--gpus-per-node=8", "--time=600", "--job-name=grid", "--array=0-1%", "--signal="):
        assert f"#SBATCH {line}" in seen
    assert "submitit.core._submit" in seen
    assert capfd.readouterr().err.splitlines()[-1] == (
        "swinv2-train: submitit: sbatch: error: invalid partition specified: a100; the jobs' own logs are in "
        f"{call.directory}/.submitit"
    )


@pytest.mark.slow
def test_what_submitit_says_is_one_sentence(call: Jobs, capfd: pytest.CaptureFixture[str]) -> None:
    assert call.call("hydra/launcher=submitit_slurm", "seed=0") == 1
    captured = capfd.readouterr().err.splitlines()
    assert len(captured) == 1
    assert captured[0].startswith("swinv2-train: submitit: Could not detect")


@pytest.mark.slow
def test_a_dry_run_prints_the_jobs_and_leaves_nothing(jobs: Jobs, capfd: pytest.CaptureFixture[str]) -> None:
    assert (
        jobs.call("optim.lr=1e-3,1e-2", "launch.dry_run=true", *NO_DATA, "--config-dir", str(jobs.directory.parent))
        == 0
    )
    lines = capfd.readouterr().out.splitlines()
    commands = [line for line in lines if line.startswith("  swinv2-train ")]
    assert [line.split(":")[0] for line in lines if line.startswith("job ")] == ["job 1 of 2", "job 2 of 2"]
    assert "optim.lr=0.001" in commands[0]
    assert "launch.dry_run" not in commands[0]
    assert f"--config-dir {jobs.directory.parent}" in commands[0]
    assert not jobs.directory.exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["optim.lrr=1,2"], "optim.lrr=1: unknown key; did you mean optim.lr?"),
        (["optim.lr=1,abc"], "optim.lr=abc: must be a number"),
        (["model.depths=[1,1,1,1],[1,1]"], "model.depths="),
        (["+variant=v1,v2"], "variant=v2: unknown variant; use one of cosine, linear-cpb"),
        (["+sweep=none"], "sweep=none: unknown sweep; use one of ablation, lr_wd, optuna, seeds"),
        (["seed=0,1", "hydra/launcher=pbs"], "hydra/launcher=pbs: is not there; the searches and Slurm come with"),
        (["optim.lr=interval(0,1)"], "optim.lr=interval(0,1): an interval is for a search"),
        (["seed=0,1", "run.dir=here"], "run.dir=here: the sweep sets this"),
        (["seed=0,1", "replay=x.json"], "replay=x.json: applies to a single run; omit -m"),
        (["seed=0,1", "hydra.sweep.dir=x"], "hydra.sweep.dir=x: sweep.dir=DIR sets the directory"),
        (["seed=0,1", "launch.preflight_only=true"], "launch.preflight_only=true: applies to a single run"),
        (["seed=0,1", "--cfg", "job"], "--cfg shows the config of one run"),
        (["seed=0,1", "sweep.direction=up"], "sweep.direction=up: must be one of minimize, maximize"),
        (["sweep.metric=loss,eval/loss"], "sweep.metric=loss: applies to the entire sweep"),
        (["seed=0,1", "data.eval_shards=none-*.tar"], "data.eval_shards=none-*.tar"),
        (["+sweep=optuna", "hydra.sweeper.direction=maximize"], "the metric of the sweep is to minimize; omit"),
        (
            ["+sweep=optuna", "sweep.direction=maximize"],
            "lower values of eval/loss are better",
        ),
        (
            ["seed=0,1", "sweep.metric=eval/top1"],
            "eval/top1: the run does not record it; the run records eval/loss",
        ),
        (["seed=0,1", "sweep.metric=grad_norm"], "which of its values are better is not known"),
        (
            ["seed=0,1", "data.eval_shards=''"],
            "does not record it, because it evaluates",
        ),
        (["seed=0,1", "seed=2"], "seed is set 2 times (0,1, 2); set it once"),
        (["model=swinv2_tiny,swinv2_small", "model.depths=[1,1,1,1]", "model.name=x"], "have the same config"),
        (["seed=0,1", "optim.lr=[1"], "optim.lr=[1: must be a number"),
    ],
)
def test_usage_errors_are_one_sentence_before_any_job(
    jobs: Jobs, arguments: list[str], part: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert jobs.call(*arguments) == 2
    captured = capfd.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 1
    assert part in captured.err
    assert not jobs.directory.exists()


def test_sweep_keys_without_the_flag_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_here(["+experiment=simmim_demo", "+sweep=lr_wd"]) == 2
    assert "+sweep=lr_wd applies to several runs: add -m" in capsys.readouterr().err


def test_under_a_launcher_it_is_refused(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert jobs.call("seed=0,1") == 2
    assert "start swinv2-train -m once" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(("given", "peak"), [([], 3e-3), (["+experiment=in1k_small_256"], 1e-3)])
def test_the_ablation_has_the_rows_of_the_tables_with_two_seeds_each(given: list[str], peak: float) -> None:
    jobs = plan_multirun(["+sweep=ablation", *given]).jobs
    assert len(jobs) == 14
    configs = [compose(overrides) for overrides in jobs[::2]]
    for config in configs:
        validate(config)
        assert config.init_from is None
    assert [(c.model.norm_placement, c.model.similarity, c.model.position_bias) for c in configs] == [
        ("pre", "dot", "table"), ("sandwich", "dot", "table"), ("post", "dot", "table"), ("res-post", "dot", "table"),
        ("res-post", "cosine", "table"), ("res-post", "cosine", "linear-cpb"), ("res-post", "cosine", "log-cpb"),
    ]  # fmt: skip
    rates = [make_plan(config, 1, 1_281_167).peak_lr for config in configs]
    assert rates == pytest.approx([peak, peak, peak / 4, peak, peak, peak, peak])


def test_a_sweep_over_nothing_says_that_it_is_one_job(call: Jobs, capfd: pytest.CaptureFixture[str]) -> None:
    assert call.call("optim.lr=1e-3", "launch.dry_run=true") == 0
    assert "no key has several values; this sweep has a single job" in capfd.readouterr().out
