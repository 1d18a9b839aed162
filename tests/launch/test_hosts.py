"""Hostfiles, what goes along to other hosts, and what the command makes of signals, with a stub for `deepspeed`."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import stat
import sys
import threading
import time
from pathlib import Path

import pytest

from swinv2_train.config.compose import compose
from swinv2_train.config.errors import ConfigError
from swinv2_train.config.schema import Config
from swinv2_train.exit_codes import FAILED, FINISHED, INTERRUPTED, STOPPED
from swinv2_train.launch import hosts
from swinv2_train.launch.hosts import Host, check_hosts, describe_hosts, forwarded_variables, read_hostfile
from swinv2_train.launch.lock import RunLock
from swinv2_train.launch.status import read_status, write_status

pytestmark = pytest.mark.usefixtures("default_signals")


def hostfile(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_a_hostfile_is_read_as_deepspeed_reads_it(tmp_path: Path) -> None:
    from deepspeed.launcher.runner import fetch_hostfile

    path = hostfile(tmp_path / "hostfile", "# two hosts\n\nnode-1.cluster slots=8\n10.0.0.2   slots=4\n")
    assert read_hostfile(path) == [Host("node-1.cluster", 8), Host("10.0.0.2", 4)]
    assert dict(fetch_hostfile(str(path))) == {"node-1.cluster": 8, "10.0.0.2": 4}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("node-1\n", "line 1: 'node-1' is not NAME slots=N"),
        ("a slots=0\n", "line 1: 'a slots=0' is not NAME slots=N"),
        ("a slots=2\na slots=2\n", "line 2: a is listed twice"),
        ("# nothing\n", "names no hosts"),
    ],
)
def test_a_wrong_hostfile_is_a_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        read_hostfile(hostfile(tmp_path / "hostfile", text))


def test_a_missing_hostfile_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"launch.hostfile=.*cannot be read \(No such file"):
        read_hostfile(tmp_path / "none")


def test_hosts_that_ssh_does_not_reach_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake(tmp_path, "ssh", '[ "$5" = good ] || { echo "Permission denied (publickey)." >&2; exit 255; }')
    fake(tmp_path, "pdsh", "exit 0")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    launch = compose(["+experiment=simmim_demo", "launch.hostfile=hosts"], None).launch
    check_hosts([Host("good", 1)], launch)
    with pytest.raises(ConfigError, match=r"does not reach bad-1 \(Permission denied .*bad-3 .* and 1 more"):
        check_hosts([Host(name, 1) for name in ("good", "bad-1", "bad-2", "bad-3", "bad-4")], launch)
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(ConfigError, match="needs pdsh on this machine"):
        check_hosts([Host("good", 1)], launch)


def fake(directory: Path, name: str, script: str) -> None:
    (directory / name).write_text(f"#!/bin/sh\n{script}\n")
    (directory / name).chmod(0o755)


def test_what_goes_along(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DS_ENV_FILE", raising=False)
    (tmp_path / ".deepspeed_env").write_text('FROM_FILE="x y"\n\n# comment\nLD_LIBRARY_PATH=/opt/lib\n')
    for name in ("WANDB_API_KEY", "NCCL_DEBUG", "CUDA_VISIBLE_DEVICES", "HOME_SWEET", "https_proxy", "AWS_REGION"):
        monkeypatch.setenv(name, "v")
    found = forwarded_variables()
    assert {"WANDB_API_KEY", "NCCL_DEBUG", "https_proxy", "AWS_REGION"} <= found.keys()
    assert (found["FROM_FILE"], found["LD_LIBRARY_PATH"]) == ("x y", "/opt/lib")
    assert not {"CUDA_VISIBLE_DEVICES", "HOME_SWEET", "PATH"} & found.keys()


@pytest.fixture
def run(tmp_path: Path) -> Config:
    path = hostfile(tmp_path / "hostfile", "10.0.0.1 slots=1\n10.0.0.2 slots=1\n")
    options = ["+experiment=simmim_demo", f"run.dir={tmp_path / 'run'}", f"launch.hostfile={path}"]
    return compose(options, None)


@pytest.mark.slow
def test_the_dry_run_shows_the_command_and_the_same_by_hand(run: Config) -> None:
    lines = describe_hosts(run, [Host("10.0.0.1", 1), Host("10.0.0.2", 1)], ["+experiment=x", "launch.hostfile=h"])
    assert lines[0] == "hosts          2: 10.0.0.1 (1), 10.0.0.2 (1)"
    assert "-m deepspeed.launcher.runner --hostfile" in lines[1]
    assert "--master_addr 10.0.0.1 --master_port 29500" in lines[1]
    assert lines[-1].startswith("  10.0.0.2: deepspeed --hostfile ")
    assert lines[-1].endswith("--node_rank 1 --module swinv2_train.cli.train +experiment=x")


def launch(run: Config, monkeypatch: pytest.MonkeyPatch, script: str) -> int:
    """Launch with a process that does `script` in place of DeepSpeed's."""
    prologue = f"import json, os, signal, sys, time\nfrom pathlib import Path\nrun = Path({run.run.dir!r})\n"
    command = [sys.executable, "-c", prologue + script]
    monkeypatch.setattr(hosts, "check_hosts", lambda *_: None)
    monkeypatch.setattr(hosts, "hosts_command", lambda *_: command)
    return hosts.launch_on_hosts(run, [Host("10.0.0.1", 1), Host("10.0.0.2", 1)], 29500)


@pytest.mark.slow
def test_the_ranks_find_their_environment_and_nobody_else(run: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    script = """
public = Path(os.environ["DS_ENV_FILE"])
(secret,) = run.glob(".launch-*.env.json")
(run / "seen.json").write_text(json.dumps([oct(secret.stat().st_mode & 0o777), secret.read_text(), public.read_text()]))
(run / "status.json").write_text(json.dumps({"status": "finished", "step": 3}))
"""
    assert launch(run, monkeypatch, script) == FINISHED
    directory = Path(run.run.dir)
    mode, secret, public = json.loads((directory / "seen.json").read_text())
    assert mode == oct(stat.S_IRUSR | stat.S_IWUSR)
    assert json.loads(secret)["WANDB_API_KEY"] == "secret"
    assert "secret" not in public
    assert f"PATH={os.environ['PATH']}\n" in public
    assert sorted(path.name for path in directory.iterdir()) == [".lock", "seen.json", "status.json"]


def test_a_signal_leaves_the_file_that_the_ranks_look_for(run: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    script = """
(run / "ready").touch()
while not (run / "STOP").exists():
    time.sleep(0.02)
(run / "status.json").write_text(json.dumps({"status": "stopped", "step": 7}))
sys.exit(75)
"""
    directory = Path(run.run.dir)

    def stop() -> None:
        while not (directory / "ready").exists():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=stop)
    thread.start()
    assert launch(run, monkeypatch, script) == STOPPED
    thread.join()
    assert not (directory / "STOP").exists()


def test_a_second_interrupt_kills_what_this_start_has_started_and_nothing_else(
    run: Config, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake(tmp_path, "pdsh", f'echo "$@" > {tmp_path}/pdsh-arguments')
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    directory = Path(run.run.dir)

    def interrupt() -> None:
        for file in ("ready", "STOP"):
            while not (directory / file).exists():
                time.sleep(0.02)
            os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    assert launch(run, monkeypatch, '(run / "ready").touch()\ntime.sleep(60)') == INTERRUPTED
    thread.join()
    hosts_, pattern = re.fullmatch(
        r"-R ssh -w (\S+) pkill -KILL -f (\S+)\n", (tmp_path / "pdsh-arguments").read_text()
    ).groups()
    assert hosts_ == "10.0.0.1,10.0.0.2"
    assert re.search(pattern, f"python --resolved {directory}/.launch-{socket.gethostname()}-{os.getpid()}.yaml")
    assert not re.search(pattern, f"pkill -KILL -f {pattern}")


def test_a_second_start_leaves_the_first_alone(run: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = Path(run.run.dir)
    directory.mkdir()
    write_status(directory, "running", 5)
    (directory / "STOP").touch()
    lock = RunLock(directory)
    with pytest.raises(ConfigError, match="another process is training in this directory"):
        launch(run, monkeypatch, "sys.exit(0)")
    lock.release()
    assert read_status(directory) == {"status": "running", "step": 5}
    assert (directory / "STOP").exists()


def test_a_path_that_a_shell_would_change_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = hostfile(tmp_path / "hostfile", "10.0.0.1 slots=1\n")
    config = compose(["+experiment=simmim_demo", f"run.dir='{tmp_path}/a&b(1)'", f"launch.hostfile={path}"], None)
    with pytest.raises(ConfigError, match="pdsh and the shells behind it would change this path"):
        launch(config, monkeypatch, "")


def test_a_launcher_that_dies_is_a_sentence(
    run: Config, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    script = """
(run / "stacks" / "step-00000008").mkdir(parents=True)
(run / "stacks" / "step-00000008" / "rank-00001.txt").write_text("rank 1 on beta: step 8 is not done\\nmore\\n")
sys.exit(255)
"""
    Path(run.run.dir).mkdir()
    write_status(Path(run.run.dir), "running", 7)
    assert launch(run, monkeypatch, script) == FAILED
    assert "swinv2-train: rank 1 on beta: step 8 is not done: the stacks of the ranks are in" in capfd.readouterr().err
    assert read_status(Path(run.run.dir))["status"] == "failed"
