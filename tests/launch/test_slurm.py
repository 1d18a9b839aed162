"""The batch script, really run by bash, with an `srun` and an `scontrol` that write down what they are asked for."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "launch" / "slurm.sbatch"
SRUN = """#!/usr/bin/env bash
printf '%s\\n' "$@" >"$RECORD/srun"
trap 'echo USR1 >>"$RECORD/signals"; exit "${SIGNAL_CODE:-75}"' USR1
trap 'echo TERM >>"$RECORD/signals"; exit 75' TERM
touch "$RECORD/ready"
[ -z "$SRUN_WAITS" ] || while :; do sleep 0.05; done
exit "$SRUN_CODE"
"""
SCONTROL = '#!/usr/bin/env bash\necho "$@" >>"$RECORD/scontrol"\nexit "${SCONTROL_CODE:-0}"\n'


@pytest.fixture
def slurm(tmp_path: Path) -> dict[str, str]:
    """The environment of a job whose tasks end with SRUN_CODE."""
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
    (tmp_path / "run").mkdir()
    return {
        **os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "RECORD": str(tmp_path), "SRUN_WAITS": "",
        "RUN_DIR": str(tmp_path / "run"), "SLURM_JOB_ID": "4711", "SLURM_CPUS_PER_TASK": "16", "SRUN_CODE": "0",
    }  # fmt: skip


def run(slurm: dict[str, str], **more: str) -> subprocess.CompletedProcess[str]:
    command = ["bash", str(SCRIPT), "+experiment=simmim_base", "data.shards=a b"]
    return subprocess.run(command, env=slurm | more, capture_output=True, text=True, timeout=60)


def requeued(slurm: dict[str, str]) -> list[str]:
    record = Path(slurm["RECORD"]) / "scontrol"
    return record.read_text().splitlines() if record.exists() else []


def test_the_tasks_get_the_arguments_the_directory_and_the_cores(slurm: dict[str, str]) -> None:
    assert run(slurm).returncode == 0
    arguments = (Path(slurm["RECORD"]) / "srun").read_text().splitlines()
    assert arguments[-4:] == [
        "swinv2-train",
        f"run.dir={slurm['RUN_DIR']}",
        "+experiment=simmim_base",
        "data.shards=a b",
    ]
    assert "--cpus-per-task=16" in arguments
    assert requeued(slurm) == []


def test_a_run_that_was_stopped_is_queued_again_once(slurm: dict[str, str]) -> None:
    assert run(slurm, SRUN_CODE="75").returncode == 0
    assert requeued(slurm) == ["requeue 4711"]


@pytest.mark.parametrize("code", [1, 2, 130, 137, 138])
def test_any_other_code_is_the_code_of_the_job(slurm: dict[str, str], code: int) -> None:
    assert run(slurm, SRUN_CODE=str(code)).returncode == code
    assert requeued(slurm) == []


def test_a_stop_file_means_the_end(slurm: dict[str, str]) -> None:
    (Path(slurm["RUN_DIR"]) / "STOP").touch()
    assert run(slurm, SRUN_CODE="75").returncode == 75
    assert requeued(slurm) == []


def test_a_cluster_that_does_not_requeue_leaves_the_code(slurm: dict[str, str]) -> None:
    done = run(slurm, SRUN_CODE="75", SCONTROL_CODE="1")
    assert done.returncode == 75
    assert "rerun the same sbatch command to resume the run" in done.stderr


@pytest.mark.parametrize(
    ("number", "tasks_end", "received", "code", "queued"),
    [
        (signal.SIGUSR1, "75", "USR1\n", 0, ["requeue 4711"]),
        (signal.SIGUSR1, "138", "USR1\n", 0, ["requeue 4711"]),  # killed by it while they were starting
        (signal.SIGUSR1, "139", "USR1\n", 139, []),
        (signal.SIGTERM, "75", "TERM\n", 75, []),
    ],
)
def test_signals(
    slurm: dict[str, str], number: signal.Signals, tasks_end: str, received: str, code: int, queued: list[str]
) -> None:
    """The time limit's signal goes on to srun, and the job is queued again; after scancel it is not."""
    record = Path(slurm["RECORD"])
    environment = slurm | {"SRUN_WAITS": "1", "SIGNAL_CODE": tasks_end}
    process = subprocess.Popen(["bash", str(SCRIPT)], env=environment, start_new_session=True)
    while not (record / "ready").exists():
        assert process.poll() is None
        time.sleep(0.02)
    if number == signal.SIGTERM:  # Slurm sends it to the tasks and to the script
        process.send_signal(number)
        time.sleep(0.2)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        assert len(children) == 1
        os.kill(int(children[0]), number)
    else:
        process.send_signal(number)
    assert process.wait(60) == code
    assert (record / "signals").read_text() == received
    assert requeued(slurm) == queued


@pytest.mark.parametrize("missing", ["RUN_DIR", "SLURM_JOB_ID"])
def test_missing_settings_are_reported_in_one_line(slurm: dict[str, str], missing: str) -> None:
    done = run({key: value for key, value in slurm.items() if key != missing})
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "RUN_DIR" in done.stderr
