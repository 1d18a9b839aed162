"""Two hosts: the command starts a rank on each, a cut cable ends the run on both, and the same command goes on."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from swinv2_train.config.overrides import last_of_each
from swinv2_train.exit_codes import FAILED, FINISHED
from tests.distributed.two_hosts import TwoHosts, missing, two_hosts
from tests.runs import environment, losses, tiny_run

pytestmark = pytest.mark.distributed
LENGTH = ("optim.steps=400", "tracking.log_every_steps=1", "checkpoint.every_steps=5", "data.num_workers=0")


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwoHosts]:
    reason = missing()
    if reason:
        pytest.skip(reason)
    with two_hosts(tmp_path_factory.mktemp("two") / "hosts") as hosts:
        yield hosts


def start(hosts: TwoHosts, overrides: list[str]) -> subprocess.Popen[str]:
    command = [str(Path(sys.executable).parent / "swinv2-train"), *overrides, f"launch.hostfile={hosts.hostfile}"]
    path = f"{hosts.directory / 'bin'}:{Path(sys.executable).parent}:{hosts.environment()['PATH']}"
    return subprocess.Popen(
        hosts.on(0, command),
        env=environment(PATH=path),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for_step(process: subprocess.Popen[str], run_dir: Path, step: int) -> None:
    record = run_dir / "metrics.jsonl"
    while process.poll() is None and not (record.exists() and f'"step": {step},' in record.read_text()):
        time.sleep(0.05)


def test_a_cut_cable_ends_the_run_on_both_hosts_and_the_same_command_goes_on(
    hosts: TwoHosts, shards: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    overrides = tiny_run(shards, run_dir, *LENGTH, "watchdog.step_minutes=0.1")
    process = start(hosts, overrides)
    wait_for_step(process, run_dir, 7)
    cut_after = json.loads((run_dir / "metrics.jsonl").read_text().splitlines()[-1])["step"]
    hosts.cable("down")
    output, _ = process.communicate(timeout=240)
    print(output)
    assert process.returncode == FAILED, output
    assert "preflight: 2 hosts, 2 ranks" in output
    assert "network interface eth0, which leads to rank 0 at 10.213.77.1" in output
    assert re.search(r"swinv2-train: rank \d on (alpha|beta): step \d+ is not done after 0.1 minutes", output)
    assert hosts.processes(str(run_dir)) == []
    assert json.loads((run_dir / "status.json").read_text())["status"] == "failed"
    assert list(run_dir.glob(".launch*")) == []

    hosts.cable("up")
    again = start(hosts, last_of_each([*overrides, "optim.steps=30", "optim.schedule=constant"]))
    output, _ = again.communicate(timeout=240)
    print(output)
    assert again.returncode == FINISHED, output
    assert f"resuming from {run_dir / 'checkpoints'}/step-" in output
    assert cut_after < 400
    assert os.listdir(run_dir / "stacks")
    assert len(losses(run_dir)) >= 30
