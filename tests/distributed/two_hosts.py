"""Two hosts on one machine: network namespaces joined by a cable (a veth pair), each with a name and an sshd.

They share the file system, as the hosts of a cluster do. Needs root, iproute2, util-linux, openssh and pdsh. What it
makes, it removes, and what a killed run of the tests has left behind as well.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

PREFIX = "swinv2test"
PORT = 2222
_SSHD = """\
Port {port}
HostKey {key}
AuthorizedKeysFile {key}.pub
PermitRootLogin yes
StrictModes no
PasswordAuthentication no
UsePAM no
PidFile none
LogLevel ERROR
"""
_SSH = """\
Port {port}
IdentityFile {key}
UserKnownHostsFile /dev/null
StrictHostKeyChecking no
LogLevel ERROR
"""


def missing() -> str | None:
    """Why two hosts cannot be made here; None if they can."""
    if os.geteuid() != 0:
        return "two hosts on one machine need root"
    programs = ("ip", "unshare", "sshd", "ssh", "ssh-keygen", "pdsh")
    absent = [name for name in programs if shutil.which(name, path=_PATH) is None]
    if absent:
        return f"two hosts on one machine need {', '.join(absent)} (apt install iproute2 openssh-server pdsh)"
    probe = subprocess.run(["ip", "netns", "add", f"{PREFIX}-probe"], capture_output=True, text=True, check=False)
    subprocess.run(["ip", "netns", "del", f"{PREFIX}-probe"], capture_output=True, check=False)
    return None if probe.returncode == 0 else f"no network namespaces here: {probe.stderr.strip()}"


_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin:/usr/bin:/bin"


@dataclass
class TwoHosts:
    """The two hosts, `alpha` and `beta`."""

    directory: Path
    names: tuple[str, str] = ("alpha", "beta")
    _daemons: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def hostfile(self) -> Path:
        return self.directory / "hostfile"

    def address(self, host: int) -> str:
        return f"10.213.77.{host + 1}"

    def namespace(self, host: int) -> str:
        return f"{PREFIX}-{self.names[host]}"

    def open(self) -> None:
        """Make namespaces, cable, names, keys and daemons."""
        self.directory.mkdir(parents=True)
        remove_leftovers()
        for host in (0, 1):
            _ip("netns", "add", self.namespace(host))
        _ip(
            "link",
            "add",
            "eth0",
            "netns",
            self.namespace(0),
            "type",
            "veth",
            "peer",
            "eth0",
            "netns",
            self.namespace(1),
        )
        for host in (0, 1):
            _ip("-n", self.namespace(host), "addr", "add", f"{self.address(host)}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                _ip("-n", self.namespace(host), "link", "set", device, "up")
        key = self.directory / "key"
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
        (self.directory / "sshd_config").write_text(_SSHD.format(port=PORT, key=key))
        (self.directory / "ssh_config").write_text(_SSH.format(port=PORT, key=key))
        # First on the path, so that nobody's own ~/.ssh is read or written.
        wrapper = self.directory / "bin" / "ssh"
        wrapper.parent.mkdir()
        wrapper.write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {self.directory}/ssh_config "$@"\n')
        wrapper.chmod(0o755)
        Path("/run/sshd").mkdir(exist_ok=True)
        sshd = shutil.which("sshd", path=_PATH)
        for host in (0, 1):
            log = self.directory / f"sshd-{self.names[host]}.log"
            command = [str(sshd), "-D", "-f", str(self.directory / "sshd_config"), "-E", str(log)]
            self._daemons.append(subprocess.Popen(self.on(host, command), start_new_session=True))
        self.hostfile.write_text("".join(f"{self.address(host)} slots=1\n" for host in (0, 1)))
        for host in (0, 1):
            self._wait_for(host)

    def on(self, host: int, command: list[str]) -> list[str]:
        """The command line that runs a command on a host."""
        named = f'hostname {self.names[host]} && exec "$@"'
        return ["ip", "netns", "exec", self.namespace(host), "unshare", "--uts", "sh", "-c", named, "sh", *command]

    def environment(self) -> dict[str, str]:
        """Return the environment that commands on a host need."""
        return {"PATH": f"{self.directory / 'bin'}:{_PATH}"}

    def cable(self, state: str) -> None:
        """Plug the cable in (`up`) or out (`down`)."""
        _ip("-n", self.namespace(1), "link", "set", "eth0", state)

    def processes(self, text: str) -> list[int]:
        """Processes, on whichever host, with this text in their command line."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal() and int(entry.name) != os.getpid():
                with contextlib.suppress(OSError):
                    if text.encode() in (entry / "cmdline").read_bytes():
                        found.append(int(entry.name))
        return found

    def _wait_for(self, host: int) -> None:
        environment = {**os.environ, **self.environment()}
        command = self.on(0, ["ssh", "-o", "ConnectTimeout=2", self.address(host), "true"])
        for _ in range(50):
            if subprocess.run(command, env=environment, capture_output=True, check=False).returncode == 0:
                return
            time.sleep(0.1)
        raise RuntimeError(f"no sshd on {self.names[host]}: {(self.directory / 'sshd_config').read_text()}")

    def close(self) -> None:
        """Remove everything again."""
        for daemon in self._daemons:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(daemon.pid, signal.SIGKILL)
            daemon.wait()
        remove_leftovers()


def remove_leftovers() -> None:
    """Remove namespaces of this name, and what still runs in them."""
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=False).stdout
    for name in [line.split()[0] for line in listed.splitlines() if line.startswith(PREFIX)]:
        inside = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True, check=False).stdout
        for process in inside.split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(process), signal.SIGKILL)
        _ip("netns", "del", name)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


@contextlib.contextmanager
def two_hosts(directory: Path) -> Iterator[TwoHosts]:
    """Two hosts for as long as the block lasts."""
    hosts = TwoHosts(directory)
    try:
        hosts.open()
        yield hosts
    finally:
        hosts.close()
