"""Start the ranks of a run on several hosts: the `deepspeed` command over a hostfile, with pdsh and ssh.

Forward the environment that an ssh shell lacks. Variables that Python needs to start (PATH, library paths) go through
DeepSpeed's environment file, which ends up on command lines visible to every user on the host. Everything else,
including service keys, goes through a file in the run directory that only its owner can read; the ranks load it.

Signals cannot be sent to ranks on other hosts. The command creates a file instead, `STOP` in the run directory, which
the main rank polls: anyone who can write there can stop a run that way, from any host.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from swinv2_train.config.environment import environment_names
from swinv2_train.config.errors import ConfigError
from swinv2_train.config.schema import Config, LaunchConfig
from swinv2_train.exit_codes import INTERRUPTED
from swinv2_train.import_path import import_variables
from swinv2_train.launch.environment import FORWARDED_SUFFIX
from swinv2_train.launch.launcher import RANK_MODULE, Signals, announce, launch_file, outcome, shown
from swinv2_train.launch.signals import STOP_FILE
from swinv2_train.launch.watchdog import STACKS

DEFAULT_PORT = 29500
_DEEPSPEED_SUFFIX = ".env"
_FOR_PYTHON = (
    "PATH", "LD_LIBRARY_PATH", "LD_PRELOAD", "PYTHONPATH", "PYTHONSAFEPATH", "PYTHONHOME", "VIRTUAL_ENV",
    "CONDA_PREFIX",
)  # fmt: skip
"""Variables that must be set before Python starts."""
_PLAIN = re.compile(r"[\w@+=:,./-]+")
"""Characters that pdsh and the shells behind it do not change."""
_FORWARDED = re.compile(
    r"(NCCL|GLOO|TORCH|PYTORCH|OMP|MKL|KMP|CUDA|DS|UCX|FI|WANDB|HF|AWS|AZURE|GOOGLE|GCS|S3|FSSPEC|SWINV2)_\w+"
    r"|(https?|ftp|all|no)_proxy|TMPDIR|XDG_CACHE_HOME|TRITON_CACHE_DIR|REQUESTS_CA_BUNDLE|SSL_CERT_FILE|CURL_CA_BUNDLE",
    re.IGNORECASE,
)
_NOT_FORWARDED = {"CUDA_VISIBLE_DEVICES", "DS_ENV_FILE", "SWINV2_TRAIN_PARENT"}
_SSH_OPTIONS = ("-o", "BatchMode=yes", "-o", "ConnectTimeout=15")
_ALIVE_OPTIONS = "-o BatchMode=yes -o ServerAliveInterval=10 -o ServerAliveCountMax=3"
"""A host whose connection is lost is given up after half a minute, instead of never."""
_POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Host:
    """A line of a hostfile."""

    name: str
    slots: int
    """Number of ranks on this host."""


def read_hostfile(path: Path) -> list[Host]:
    """Return the hosts of a file of `NAME slots=N` lines, as DeepSpeed reads them; `#` begins a comment line.

    Raises:
        ConfigError: if it cannot be read or a line is something else.
    """
    try:
        text = path.expanduser().read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError("launch.hostfile", path, f"cannot be read ({reason})") from error
    hosts: list[Host] = []
    for number, line in enumerate(text.splitlines(), start=1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        match = re.fullmatch(r"([\w.:@-]+)\s+slots=(\d{1,6})(\s*#.*)?", line)
        if match is None or int(match[2]) < 1:
            raise ConfigError("launch.hostfile", path, f"line {number}: {line!r} is not NAME slots=N")
        if any(host.name == match[1] for host in hosts):
            raise ConfigError("launch.hostfile", path, f"line {number}: {match[1]} is listed twice")
        hosts.append(Host(match[1], int(match[2])))
    if not hosts:
        raise ConfigError("launch.hostfile", path, "names no hosts; a line is NAME slots=N, N being the ranks there")
    return hosts


def main_address(hosts: list[Host], launch: LaunchConfig) -> str | None:
    """Return the address of rank 0 for the other hosts; None: let DeepSpeed ask the first host."""
    if launch.master_addr:
        return launch.master_addr
    try:
        address = socket.gethostbyname(hosts[0].name.rpartition("@")[2])
    except (OSError, UnicodeError):
        return None
    return None if ipaddress.ip_address(address).is_loopback else address


def hosts_command(config: Config, hosts: list[Host], config_file: Path, port: int) -> list[str]:
    """Return the `deepspeed` command that starts the ranks on all hosts from a complete config."""
    launch, address = config.launch, main_address(hosts, config.launch)
    hostfile = Path(launch.hostfile or "").expanduser().resolve()
    return [
        sys.executable, "-m", "deepspeed.launcher.runner", "--hostfile", str(hostfile), "--force_multi",
        "--launcher", "pdsh", "--no_ssh_check", "--no_local_rank", "--log_level", "critical",
        *(["--master_addr", address] if address else []), "--master_port", str(port),
        *(["--ssh_port", str(launch.ssh_port)] if launch.ssh_port else []),
        "--module", RANK_MODULE, "--resolved", str(config_file.resolve()),
    ]  # fmt: skip


def commands_by_hand(config: Config, hosts: list[Host], overrides: list[str], port: int) -> list[tuple[str, str]]:
    """Return for each host the command that starts its ranks without ssh, to be typed there."""
    address = main_address(hosts, config.launch) or hosts[0].name
    kept = [item for item in overrides if not item.startswith(("launch.hostfile=", "launch.dry_run="))]
    command = ["deepspeed", "--hostfile", str(config.launch.hostfile), "--no_ssh", "--master_addr", address]
    return [
        (
            host.name,
            shlex.join(
                [*command, "--master_port", str(port), "--node_rank", str(node), "--module", RANK_MODULE, *kept]
            ),
        )
        for node, host in enumerate(hosts)
    ]


def forwarded_variables() -> dict[str, str]:
    """Return the variables of this command that are forwarded to ranks on other hosts."""
    return {
        key: value for key, value in os.environ.items() if _FORWARDED.fullmatch(key) and key not in _NOT_FORWARDED
    } | _deepspeed_env_files()


def _deepspeed_env_files() -> dict[str, str]:
    # DeepSpeed reads these files by itself, but not in addition to the file that it is given here.
    given = os.environ.get("DS_ENV_FILE", ".deepspeed_env")
    found: dict[str, str] = {}
    for directory in (Path.home(), Path.cwd()):
        with contextlib.suppress(OSError, UnicodeDecodeError):
            for line in (directory / given).read_text().splitlines():
                key, equals, value = line.strip().partition("=")
                if equals and not key.startswith("#"):
                    found[key.strip()] = value.strip().strip('"')
    return found


def _write_environment(config_file: Path, device: str) -> Path:
    """Write both files and return DeepSpeed's."""
    forwarded = forwarded_variables()
    # The ranks resolve the config's environment expressions again, such as credentials of shards.
    named = environment_names(config_file.read_text())
    forwarded |= {name: os.environ[name] for name in named if name in os.environ}
    secret = config_file.with_suffix(FORWARDED_SUFFIX)
    descriptor = os.open(secret, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump({key: value for key, value in forwarded.items() if key not in _FOR_PYTHON}, file)
    known = {**os.environ, **forwarded, **import_variables()}
    plain = {key: known[key] for key in _FOR_PYTHON if known.get(key)}
    if device != "auto":
        plain["DS_ACCELERATOR"] = device
    path = config_file.with_suffix(_DEEPSPEED_SUFFIX)
    # DeepSpeed splits every line at its first "=", and fails on an empty line.
    path.write_text("".join(f"{key}={value}\n" for key, value in plain.items()))
    return path.resolve()


def _check_paths(config: Config) -> None:
    places = {
        "run.dir": Path(config.run.dir).resolve(), "launch.hostfile": Path(config.launch.hostfile or "").resolve(),
        "": Path.cwd(), "python": sys.executable,
    }  # fmt: skip
    for key, place in places.items():
        if not _PLAIN.fullmatch(str(place)):
            hint = "pdsh and the shells behind it would change this path: use only letters, digits, and @+=:,./-_"
            raise ConfigError(key, place, hint)


def check_hosts(hosts: list[Host], launch: LaunchConfig) -> None:
    """Check that pdsh is installed and that every host accepts this user without a password.

    Raises:
        ConfigError: naming the missing program, or the hosts with ssh's message.
    """
    for program, package in (("pdsh", "pdsh"), ("ssh", "openssh-client")):
        if shutil.which(program) is None:
            hint = (
                f"needs {program} on this machine (Debian and Ubuntu: apt install {package}); or use torchrun or srun"
            )
            raise ConfigError("launch.hostfile", launch.hostfile, hint)
    port = ["-p", str(launch.ssh_port)] if launch.ssh_port else []

    def reach(host: Host) -> str | None:
        command = ["ssh", *_SSH_OPTIONS, *port, host.name, "true"]
        try:
            done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
        except subprocess.TimeoutExpired:
            return f"{host.name} (no answer in 60 s)"
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        return f"{host.name} ({reason})" if done.returncode else None

    with ThreadPoolExecutor(32) as pool:
        failed = [text for text in pool.map(reach, hosts) if text]
    if failed:
        more = f" and {len(failed) - 3} more" if len(failed) > 3 else ""
        hint = f"ssh without a password does not reach {', '.join(failed[:3])}{more}"
        raise ConfigError("launch.hostfile", launch.hostfile, hint)


def launch_on_hosts(config: Config, hosts: list[Host], port: int) -> int:
    """Start the ranks on all hosts, wait for them, and return the exit code of the run.

    On the first stop signal the ranks finish their step, save, and end; a second Ctrl-C ends them immediately.

    Raises:
        ConfigError: if a host cannot be reached, or `run.dir` is not writable.
    """
    directory = Path(config.run.dir)
    config_file = launch_file(directory)
    _check_paths(config)
    check_hosts(hosts, config.launch)
    begun = time.time()
    signals = Signals()
    try:
        announce(directory, config, config_file)
        launching = _launcher_environment(_write_environment(config_file, config.launch.device))
        environment = {**os.environ, **import_variables(), **launching}
        command = hosts_command(config, hosts, config_file, port)
        process = subprocess.Popen(command, env=environment, start_new_session=True)
        handled, interrupted = 0, False
        while True:
            try:
                code = process.wait(_POLL_SECONDS)
                break
            except subprocess.TimeoutExpired:
                new = signals.received[handled:]
                handled += len(new)
                if handled > 1 and signal.SIGINT in new:
                    interrupted = True
                    _end_at_once(hosts, config.launch, config_file, process, environment)
                elif new:
                    _ask_to_stop(directory)
    finally:
        signals.restore()
        for suffix in (config_file.suffix, FORWARDED_SUFFIX, _DEEPSPEED_SUFFIX):
            config_file.with_suffix(suffix).unlink(missing_ok=True)
        if signals.received:
            (directory / STOP_FILE).unlink(missing_ok=True)
    if config.launch.preflight_only:
        return code if code >= 0 else 256 + code
    if interrupted:
        outcome(directory, code, "stopped immediately", stopped=False)
        return INTERRUPTED
    return outcome(directory, code, _what_hung(directory, begun), stopped=bool(signals.received))


def _launcher_environment(env_file: Path) -> dict[str, str]:
    ssh = f"{os.environ.get('PDSH_SSH_ARGS_APPEND', '')} {_ALIVE_OPTIONS}".strip()
    return {"DS_ENV_FILE": str(env_file), "PDSH_SSH_ARGS_APPEND": ssh}


def _ask_to_stop(directory: Path) -> None:
    try:
        (directory / STOP_FILE).touch()
    except OSError as error:
        text = f"the ranks cannot be asked to stop: {directory / STOP_FILE} cannot be created ({error.strerror})"
        print(f"swinv2-train: {text}", file=sys.stderr, flush=True)


def _end_at_once(
    hosts: list[Host], launch: LaunchConfig, config_file: Path, process: subprocess.Popen, environment: dict[str, str]
) -> None:
    """Kill the processes of this start on all hosts: those with its launch file on their command line."""
    options = environment["PDSH_SSH_ARGS_APPEND"] + (f" -p {launch.ssh_port}" if launch.ssh_port else "")
    names = ",".join(host.name for host in hosts)
    # The brackets keep the pattern from matching the shell that runs the search.
    pattern = f"[{config_file.name[0]}]{config_file.name[1:]}"
    command = ["pdsh", "-R", "ssh", "-w", names, "pkill", "-KILL", "-f", pattern]
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        subprocess.run(
            command, env={**environment, "PDSH_SSH_ARGS_APPEND": options}, capture_output=True, timeout=60, check=False
        )
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _what_hung(directory: Path, begun: float) -> str:
    """Return the watchdog report of this start; the rank that printed it may be on an unreachable host."""
    for path in sorted((directory / STACKS).glob("*/rank-*.txt")):
        with contextlib.suppress(OSError):
            if path.stat().st_mtime >= begun and (lines := path.read_text(errors="replace").splitlines()):
                return f"{lines[0]}: the stacks of the ranks are in {path.parent}"
    return ""


def describe_hosts(config: Config, hosts: list[Host], overrides: list[str]) -> list[str]:
    """Return the lines of a dry run about the hosts: one command for all, and the commands by hand, host by host."""
    port = config.launch.master_port or DEFAULT_PORT
    file = launch_file(Path(config.run.dir))
    command = hosts_command(config, hosts, file, port)
    environment = _launcher_environment(file.with_suffix(_DEEPSPEED_SUFFIX).resolve())
    lines = [
        f"hosts          {len(hosts)}: {', '.join(f'{host.name} ({host.slots})' for host in hosts)}",
        f"command        {shown(command, environment)}",
        "by hand        without ssh, on each host:",
    ]
    return [*lines, *(f"  {name}: {text}" for name, text in commands_by_hand(config, hosts, overrides, port))]
