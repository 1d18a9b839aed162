"""Environment of a rank: Slurm's variables, environment files, interfaces, threads."""

from __future__ import annotations

import json
import os
from pathlib import Path

import psutil
import pytest

from swinv2_train.config.errors import ConfigError
from swinv2_train.config.schema import LaunchConfig
from swinv2_train.launch import environment
from swinv2_train.launch.environment import (
    FORWARDED_SUFFIX,
    adopt_forwarded,
    adopt_slurm,
    first_host,
    interface_to,
    prepare,
    read_env_file,
)

OURS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "LOCAL_SIZE", "MASTER_ADDR", "MASTER_PORT")


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment without launchers, given back as it was."""
    before = dict(os.environ)
    for name in [*OURS, *environment.SOCKET_INTERFACES, "OMP_NUM_THREADS"]:
        monkeypatch.delenv(name, raising=False)
    for name in [name for name in os.environ if name.startswith(("SLURM_", "TORCHELASTIC", "CROSS_", "SWINV2_"))]:
        monkeypatch.delenv(name)
    yield
    os.environ.clear()
    os.environ.update(before)


def slurm(monkeypatch: pytest.MonkeyPatch, **more: str) -> None:
    values = {
        "SLURM_PROCID": "9", "SLURM_STEP_NUM_TASKS": "12", "SLURM_LOCALID": "1", "SLURM_NODEID": "2",
        "SLURM_STEP_NODELIST": "node[07-08],gpu3", "SLURM_STEP_TASKS_PER_NODE": "4(x2),4", "SLURM_JOB_ID": "1234567",
        "SLURM_STEP_ID": "0", **more,
    }  # fmt: skip
    for name, value in values.items():
        monkeypatch.setenv(name, value)


def test_a_task_of_srun_is_a_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    slurm(monkeypatch)
    assert adopt_slurm()
    assert {name: os.environ.get(name) for name in OURS} == {
        "RANK": "9", "WORLD_SIZE": "12", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4", "LOCAL_SIZE": None,
        "MASTER_ADDR": "node07", "MASTER_PORT": str(20000 + 1234567 % 12000),
    }  # fmt: skip


@pytest.mark.parametrize("more", [{"SLURM_STEP_NUM_TASKS": "1"}, {"RANK": "0", "WORLD_SIZE": "8"}])
def test_one_task_and_another_launcher_below_srun_are_left_alone(
    monkeypatch: pytest.MonkeyPatch, more: dict[str, str]
) -> None:
    """`srun torchrun ...` starts one task a host, and torchrun numbers the ranks."""
    slurm(monkeypatch, **more)
    assert not adopt_slurm()
    assert "MASTER_ADDR" not in os.environ


def test_a_task_that_sees_one_gpu_takes_that(monkeypatch: pytest.MonkeyPatch) -> None:
    """With --gpus-per-task=1 Slurm shows every task a GPU of its own."""
    slurm(monkeypatch, CUDA_VISIBLE_DEVICES="3")
    assert adopt_slurm()
    assert (os.environ["LOCAL_RANK"], os.environ["LOCAL_WORLD_SIZE"]) == ("0", "4")


def test_the_address_that_is_given_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    slurm(monkeypatch, MASTER_ADDR="10.0.0.7", MASTER_PORT="12345")
    assert adopt_slurm()
    assert (os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]) == ("10.0.0.7", "12345")


@pytest.mark.parametrize(
    ("nodes", "host"),
    [
        ("node1", "node1"), ("a,b", "a"), ("node[007-012,020],x", "node007"), ("r1n[3,5]-ib", "r1n3-ib"),
        ("gpu-a.cluster", "gpu-a.cluster"), ("rack[0-1]node[3-7],x", "rack0node3"),
    ],
)  # fmt: skip
def test_the_first_host_of_a_node_list(nodes: str, host: str) -> None:
    assert first_host(nodes) == host


def test_no_node_list_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    slurm(monkeypatch, SLURM_STEP_NODELIST="", SLURM_JOB_NODELIST="")
    with pytest.raises(ConfigError, match="set MASTER_ADDR to the host of rank 0"):
        adopt_slurm()


def test_an_environment_file_is_read_as_a_shell_reads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "cluster.env"
    path.write_text('# a comment\n\nNCCL_DEBUG=WARN  # why\nexport A_B="two words"\nOMP_NUM_THREADS=7\n')
    assert read_env_file(path) == {"NCCL_DEBUG": "WARN", "A_B": "two words", "OMP_NUM_THREADS": "7"}
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    lines = prepare(LaunchConfig(env_file=str(path)))
    assert lines == [f"2 variables from {path}; already set and kept: OMP_NUM_THREADS"]
    assert (os.environ["A_B"], os.environ["OMP_NUM_THREADS"]) == ("two words", "3")


@pytest.mark.parametrize("text", ["NCCL_DEBUG\n", "1A=2\n", "A='open\n"])
def test_a_broken_environment_file_is_a_sentence(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.env"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"launch.env_file=.*line 1: .* is not KEY=VALUE"):
        read_env_file(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_env_file(tmp_path / "none.env")


def test_forwarded_variables_are_taken_over(tmp_path: Path) -> None:
    adopt_forwarded(tmp_path / ".launch.yaml")  # nothing was forwarded
    (tmp_path / f".launch{FORWARDED_SUFFIX}").write_text(json.dumps({"SWINV2_X": "a b=c"}))
    adopt_forwarded(tmp_path / ".launch.yaml")
    assert os.environ["SWINV2_X"] == "a b=c"


def test_this_host_alone_needs_no_interface() -> None:
    assert interface_to("127.0.0.1") is None
    assert interface_to("no-such-host.invalid") is None


def test_the_interface_that_leads_to_rank_0_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "10.9.8.7", "LOCAL_WORLD_SIZE": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(environment, "interface_to", {"10.9.8.7": "ib0"}.get)
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "mine")
    lines = prepare(LaunchConfig())
    assert os.environ["GLOO_SOCKET_IFNAME"] == "ib0"
    assert os.environ["NCCL_SOCKET_IFNAME"] == "mine"
    assert lines[0] == "network interface ib0, which leads to rank 0 at 10.9.8.7 (GLOO_SOCKET_IFNAME)"
    assert lines[1].startswith(f"OMP_NUM_THREADS={os.environ['OMP_NUM_THREADS']} (")


def test_rank_0_whose_own_name_is_a_loopback_address_takes_the_default_route(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "me", "LOCAL_WORLD_SIZE": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(environment, "interface_to", {"me": None, "192.0.2.1": "eth9"}.get)
    assert prepare(LaunchConfig())[0].startswith("network interface eth9, that of the default route")
    assert os.environ["NCCL_SOCKET_IFNAME"] == "=eth9"


def test_an_interface_that_is_asked_for_must_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    known = next(iter(psutil.net_if_addrs()))
    assert f"network interface {known} (launch.interface)" in prepare(LaunchConfig(interface=known))
    assert (os.environ["NCCL_SOCKET_IFNAME"], os.environ["GLOO_SOCKET_IFNAME"]) == (f"={known}", known)
    with pytest.raises(ConfigError, match=r"launch.interface=none0: .* has no such interface; it has "):
        prepare(LaunchConfig(interface="none0"))
