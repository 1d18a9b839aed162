"""Environment of a rank, read and completed before torch is imported: launcher, variables, network.

`deepspeed` and `torchrun` set RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, and MASTER_PORT. `srun` has its own variables,
which are translated here. An environment file provides variables that a login shell does not forward to other hosts.
The network interface and the number of threads are chosen if they are not set.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import shlex
import socket
from pathlib import Path

import psutil

from swinv2_train.config.errors import ConfigError
from swinv2_train.config.schema import LaunchConfig
from swinv2_train.reading import read_object
from swinv2_train.text import counted

FORWARDED_SUFFIX = ".env.json"
"""Suffix of the file with the starting command's variables, for the ranks on other hosts."""
SOCKET_INTERFACES = {"NCCL_SOCKET_IFNAME": "=", "GLOO_SOCKET_IFNAME": ""}
"""Interface variables, with the prefix of a name: without "=", NCCL matches every name that begins with it."""
_ELSEWHERE = "192.0.2.1"
"""An address that no host has (RFC 5737): packets to it take the default route."""
_FIRST_PORT, _PORTS = 20000, 12000
"""Below the ports that a system uses for outgoing connections."""


def joined() -> bool:
    """Return whether this process is one rank of a job that a launcher started."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def adopt_slurm() -> bool:
    """Give the tasks of an `srun` step with several tasks their ranks, unless a launcher has done so.

    Returns:
        True if this process is such a rank.

    Raises:
        ConfigError: if Slurm's variables cannot be read.
    """
    tasks = os.environ.get("SLURM_STEP_NUM_TASKS", "1")
    if joined() or "SLURM_PROCID" not in os.environ or not tasks.isdecimal() or int(tasks) < 2:
        return False
    nodes = os.environ.get("SLURM_STEP_NODELIST") or os.environ.get("SLURM_JOB_NODELIST", "")
    job = re.sub(r"\D", "", os.environ.get("SLURM_JOB_ID", "0")) or "0"
    local = _tasks_here()
    # With --gpus-per-task every task sees only one GPU, which is its number 0.
    one_gpu = len(os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")) == 1 and os.environ.get("CUDA_VISIBLE_DEVICES")
    os.environ.update(
        RANK=os.environ["SLURM_PROCID"],
        WORLD_SIZE=tasks,
        LOCAL_RANK="0" if one_gpu else os.environ.get("SLURM_LOCALID", "0"),
        **({"LOCAL_WORLD_SIZE": str(local)} if local else {}),
    )
    os.environ.setdefault("MASTER_ADDR", first_host(nodes))
    os.environ.setdefault("MASTER_PORT", str(_FIRST_PORT + int(job) % _PORTS))
    return True


def first_host(nodes: str) -> str:
    """Return the first host of a Slurm node list such as `node[007-012,020],gpu3`.

    Raises:
        ConfigError: if there is none.
    """
    first = re.match(r"(?:[^,\[\]]|\[[^\]]*\])+", nodes.strip())
    if first is None:
        raise ConfigError("SLURM_STEP_NODELIST", repr(nodes), "names no host; set MASTER_ADDR to the host of rank 0")
    return re.sub(r"\[([^\]]*)\]", lambda numbers: re.split("[-,]", numbers[1])[0], first[0])


def _tasks_here() -> int | None:
    """Return the number of tasks of this Slurm step on this host: the entry of `8(x3),4` for its SLURM_NODEID."""
    text, node = os.environ.get("SLURM_STEP_TASKS_PER_NODE", ""), os.environ.get("SLURM_NODEID", "0")
    counts: list[int] = []
    for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", text):
        counts.extend([int(count)] * int(times or 1))
    return counts[int(node)] if node.isdecimal() and int(node) < len(counts) else None


def free_port() -> int:
    """Return a TCP port that no process currently listens on.

    It is below the ports that a system uses for outgoing connections (32768 and above on Linux). Otherwise it could be
    taken before the main rank listens, even by a rank that tries to reach it.
    """
    for port in random.SystemRandom().sample(range(_FIRST_PORT, _FIRST_PORT + _PORTS), 100):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("", port))
            return port
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


def read_env_file(path: Path) -> dict[str, str]:
    """Return the variables of a file of KEY=VALUE lines, with comments, blank lines, quotes, and `export` as in a
    shell.

    Raises:
        ConfigError: if it cannot be read.
    """
    try:
        text = path.expanduser().read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError("launch.env_file", path, f"cannot be read ({reason})") from error
    found = {}
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            parts = [part for part in shlex.split(line, comments=True) if part != "export"]
        except ValueError as error:
            raise ConfigError("launch.env_file", path, f"line {number}: {line!r} is not KEY=VALUE ({error})") from error
        for part in parts:
            key, equals, value = part.partition("=")
            if not equals or not re.fullmatch(r"[A-Za-z_]\w*", key):
                raise ConfigError("launch.env_file", path, f"line {number}: {line!r} is not KEY=VALUE")
            found[key] = value
    return found


def adopt_forwarded(launch_file: Path) -> None:
    """Load the variables that the starting command stored for the ranks on other hosts, if it has.

    Raises:
        ConfigError: if they cannot be read.
    """
    path = launch_file.with_suffix(FORWARDED_SUFFIX)
    if not path.exists():
        return
    try:
        os.environ.update(read_object(path))
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError("", path, f"{path}: cannot read the environment of the starting command ({error})") from error


def prepare(launch: LaunchConfig) -> list[str]:
    """Set a rank's environment and return lines about it for the log. Call it before torch is imported.

    Raises:
        ConfigError: if the environment file cannot be read, or the interface does not exist.
    """
    lines = []
    if launch.env_file:
        given = read_env_file(Path(launch.env_file))
        new = {key: value for key, value in given.items() if key not in os.environ}
        os.environ.update(new)
        kept = sorted(given.keys() - new.keys())
        note = f"; already set and kept: {', '.join(kept)}" if kept else ""
        lines.append(f"{len(new)} variables from {launch.env_file}{note}")
    if joined():
        lines.extend(_choose_interface(launch.interface))
        lines.extend(_choose_threads())
    return lines


def _choose_interface(wanted: str | None) -> list[str]:
    if wanted:
        known = psutil.net_if_addrs()
        if wanted not in known:
            host = socket.gethostname()
            raise ConfigError("launch.interface", wanted, f"{host} has no such interface; it has {', '.join(known)}")
        _set_interface(wanted, list(SOCKET_INTERFACES))
        return [f"network interface {wanted} (launch.interface)"]
    unset = [name for name in SOCKET_INTERFACES if name not in os.environ]
    master = os.environ.get("MASTER_ADDR", "")
    found = interface_to(master) if unset else None
    way = f"which leads to rank 0 at {master}"
    if found is None and unset and several_hosts():
        # On Debian and similar systems, the name of rank 0's own host resolves to a loopback address there.
        found, way = interface_to(_ELSEWHERE), "that of the default route"
    if found is None:
        return []
    _set_interface(found, unset)
    return [f"network interface {found}, {way} ({', '.join(unset)})"]


def _set_interface(name: str, variables: list[str]) -> None:
    os.environ.update({variable: SOCKET_INTERFACES[variable] + name for variable in variables})


def several_hosts() -> bool:
    """Return whether the ranks of this job are on several hosts, as far as its launcher tells."""
    world, here = os.environ.get("WORLD_SIZE", ""), _ranks_here()
    return world.isdecimal() and here is not None and here < int(world)


def local_ranks() -> int:
    """Return the number of ranks of this job on this host; 1 if its launcher does not tell."""
    return _ranks_here() or 1


def _ranks_here() -> int | None:
    here = os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or ""  # torchrun, deepspeed
    return int(here) if here.isdecimal() else None


def interface_to(address: str) -> str | None:
    """Return the network interface through which this host reaches an address; None if it is this host, or unknown."""
    try:
        target = socket.getaddrinfo(address, 9, socket.AF_INET, socket.SOCK_DGRAM)[0][4]
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect(target)  # sends nothing
            own = probe.getsockname()[0]
    except (OSError, UnicodeError):
        return None
    for name, addresses in psutil.net_if_addrs().items():
        if any(entry.address == own for entry in addresses):
            return None if own.startswith("127.") else name
    return None


def _choose_threads() -> list[str]:
    if "OMP_NUM_THREADS" in os.environ:
        return [f"OMP_NUM_THREADS={os.environ['OMP_NUM_THREADS']}"]
    ranks = local_ranks()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    # Under srun with cores bound to each task, the task already has its own cores.
    bound = os.environ.get("SLURM_CPUS_PER_TASK", "")
    share = int(bound) if bound.isdecimal() and int(bound) == cores else max(1, cores // ranks)
    os.environ["OMP_NUM_THREADS"] = str(share)
    return [f"OMP_NUM_THREADS={share} ({counted(cores, 'core')}, {counted(ranks, 'rank')} on this host)"]
