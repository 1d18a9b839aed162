"""`launch/torchrun.sh`, really run by bash, with a `torchrun` and a `swinv2-train` that do what a test tells them."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.usefixtures("default_signals")

SCRIPT = Path(__file__).resolve().parents[2] / "launch" / "torchrun.sh"
TORCHRUN = """#!/usr/bin/env bash
printf '%s\\n' "$@" >"$RECORD/torchrun"
eval "$RANKS_DO"
"""
TRAIN = '#!/usr/bin/env bash\nprintf "%s\\n" "$@" >"$RECORD/dry"\nexit "${DRY_CODE:-0}"\n'
WRITES = """echo '{{"status": "{}", "step": 3}}' >"$RECORD/run/status.json"; exit 1"""


@pytest.fixture
def node(tmp_path: Path) -> dict[str, str]:
    """The environment of a node; its ranks do what RANKS_DO says."""
    for name, text in (("torchrun", TORCHRUN), ("swinv2-train", TRAIN)):
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
    (tmp_path / "run").mkdir()
    kept = {
        key: value
        for key, value in os.environ.items()
        if key not in ("MASTER_PORT", "NODE_RANK", "NPROC", "JOB_COMPLETION_INDEX")
    }
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    return {**kept, "PATH": path, "RECORD": str(tmp_path), "MASTER": "node001", "NNODES": "4", "RANKS_DO": "exit 0"}


def run(node: dict[str, str], **more: str) -> subprocess.CompletedProcess[str]:
    command = ["bash", str(SCRIPT), f"run.dir={node['RECORD']}/run", "data.shards=a b"]
    return subprocess.run(command, env=node | more, capture_output=True, text=True, timeout=120)


def arguments(node: dict[str, str]) -> list[str]:
    return (Path(node["RECORD"]) / "torchrun").read_text().splitlines()


def test_torchrun_meets_over_c10d_and_gets_the_arguments(node: dict[str, str]) -> None:
    assert run(node).returncode == 0
    given = arguments(node)
    for option in (
        "--nnodes=4", "--nproc-per-node=gpu", "--max-restarts=3", "--rdzv-backend=c10d",
        "--rdzv-endpoint=node001:29500",
    ):  # fmt: skip
        assert option in given
    assert not any(option.startswith("--rdzv-conf") for option in given)
    assert given[-4:] == ["--no-python", "swinv2-train", f"run.dir={node['RECORD']}/run", "data.shards=a b"]


def test_real_torchrun_knows_the_options(node: dict[str, str]) -> None:
    from torch.distributed.run import parse_args

    run(node, NODE_RANK="0", NPROC="8")
    parsed = parse_args(arguments(node))
    assert (parsed.nnodes, parsed.nproc_per_node, parsed.max_restarts) == ("4", "8", 3)
    assert parsed.no_python
    assert parsed.training_script == "swinv2-train"


@pytest.mark.parametrize(
    ("variable", "value", "host"), [("NODE_RANK", "0", "true"), ("JOB_COMPLETION_INDEX", "3", "false")]
)
def test_the_number_of_the_node_says_where_the_ranks_meet(
    node: dict[str, str], variable: str, value: str, host: str
) -> None:
    run(node, **{variable: value}, NPROC="2", MASTER_PORT="1234")
    assert f"--rdzv-conf=is_host={host}" in arguments(node)
    assert "--rdzv-endpoint=node001:1234" in arguments(node)


@pytest.mark.parametrize(("status", "code"), [("stopped", 75), ("failed", 1)])
def test_the_code_is_that_of_the_run(node: dict[str, str], status: str, code: int) -> None:
    assert run(node, RANKS_DO=WRITES.format(status)).returncode == code


def test_what_an_earlier_start_has_left_does_not_count(node: dict[str, str]) -> None:
    (Path(node["RECORD"]) / "run" / "status.json").write_text('{"status": "stopped", "step": 3}')
    assert run(node, RANKS_DO="exit 1").returncode == 1


@pytest.mark.slow
def test_rank_0_may_be_slower_than_this_node(node: dict[str, str]) -> None:
    later = """echo '{"status": "running", "step": 3}' >"$RECORD/run/status.json"
    (sleep 1; echo '{"status": "stopped", "step": 4}' >"$RECORD/run/status.json") & exit 1"""
    assert run(node, RANKS_DO=later).returncode == 75


WAITS = """trap 'echo "a signal" >>"$RECORD/got"' TERM HUP USR1; touch "$RECORD/ready"
until [ -e "$RECORD/run/STOP" ]; do sleep 0.05; done; """
NEVER_SAVES = """exec python3 -c '
import os, pathlib, signal, sys, time
record = pathlib.Path(os.environ["RECORD"])
signal.signal(signal.SIGINT, lambda *_: (record.joinpath("got").touch(), sys.exit(1)))
record.joinpath("ready").touch()
time.sleep(60)
'"""
"""Python's, as torchrun is: a shell cannot trap what a job in the background ignores from its beginning."""


def begin(node: dict[str, str], **more: str) -> subprocess.Popen[bytes]:
    """Start the script as a terminal does, the leader of a process group, and wait until its ranks are at work."""
    environment = node | {"RANKS_DO": WAITS + WRITES.format("stopped")} | more
    process = subprocess.Popen(
        ["bash", str(SCRIPT), f"run.dir={node['RECORD']}/run"], env=environment, start_new_session=True
    )
    while not (Path(node["RECORD"]) / "ready").exists():
        assert process.poll() is None
        time.sleep(0.02)
    return process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_a_signal_to_the_whole_terminal_becomes_the_stop_file(node: dict[str, str], number: signal.Signals) -> None:
    process = begin(node)
    os.killpg(process.pid, number)
    assert process.wait(60) == 75
    assert (Path(node["RECORD"]) / "run" / "STOP").read_text() == "signal\n"
    assert not (Path(node["RECORD"]) / "got").exists()


def test_a_second_ctrl_c_ends_it_at_once(node: dict[str, str]) -> None:
    process = begin(node, RANKS_DO=NEVER_SAVES)
    stop_file = Path(node["RECORD"]) / "run" / "STOP"
    os.killpg(process.pid, signal.SIGINT)
    while not stop_file.exists():
        assert process.poll() is None
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(60) == 130
    assert (Path(node["RECORD"]) / "got").exists()


def test_a_stop_file_that_somebody_makes_has_a_code_of_its_own(node: dict[str, str]) -> None:
    process = begin(node)
    (Path(node["RECORD"]) / "run" / "STOP").touch()
    assert process.wait(60) == 76


@pytest.mark.parametrize(
    ("variables", "stays"),
    [({}, False), ({"NODE_RANK": "0"}, False), ({"NODE_RANK": "1"}, True), ({"JOB_COMPLETION_INDEX": "2"}, True)],
)
def test_the_first_node_alone_removes_a_stop_file_and_the_ranks_keep_it(
    node: dict[str, str], variables: dict[str, str], stays: bool
) -> None:
    stop_file = Path(node["RECORD"]) / "run" / "STOP"
    stop_file.touch()
    assert run(node, RANKS_DO='[ "$SWINV2_KEEP_STOP" = 1 ]', **variables).returncode == 0
    assert stop_file.exists() == stays


@pytest.mark.parametrize(
    ("variables", "threads"),
    [
        ({"NPROC": "8"}, "12"),
        ({"NPROC": "200"}, "1"),
        ({}, "48"),  # two GPUs
        ({"NPROC": "cpu"}, ""),
        ({"NPROC": "8", "OMP_NUM_THREADS": "5"}, "5"),
    ],
)
def test_the_ranks_share_the_cores(node: dict[str, str], variables: dict[str, str], threads: str) -> None:
    for name, text in (
        ("nproc", 'echo "${OMP_NUM_THREADS:-96}"'),
        ("nvidia-smi", "printf 'GPU 0: A\\n  MIG 1g: B\\nGPU 1: A\\n'"),
    ):
        path = Path(node["RECORD"]) / "bin" / name
        path.write_text(f"#!/usr/bin/env bash\n{text}\n")
        path.chmod(0o755)
    node = {key: value for key, value in node.items() if key != "OMP_NUM_THREADS"}
    run(node, RANKS_DO='echo "${OMP_NUM_THREADS:-}" >"$RECORD/threads"', **variables)
    assert (Path(node["RECORD"]) / "threads").read_text().strip() == threads


def test_a_wrong_command_line_never_reaches_torchrun(node: dict[str, str]) -> None:
    assert run(node, DRY_CODE="2").returncode == 2
    assert (Path(node["RECORD"]) / "dry").read_text().splitlines()[-1] == "launch.dry_run=true"
    assert not (Path(node["RECORD"]) / "torchrun").exists()


@pytest.mark.parametrize(
    ("changes", "argument", "named"),
    [
        ({"MASTER": ""}, "run.dir=x", "MASTER"),
        ({"NNODES": ""}, "run.dir=x", "NNODES"),
        ({"NNODES": "four"}, "run.dir=x", "'four'"),
        ({}, "+experiment=simmim_base", "run.dir=DIR"),
    ],
)
def test_missing_settings_are_reported_in_one_line(
    node: dict[str, str], changes: dict[str, str], argument: str, named: str
) -> None:
    done = subprocess.run(
        ["bash", str(SCRIPT), argument], env=node | changes, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert named in done.stderr
