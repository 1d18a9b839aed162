"""A run that is started again and again, and the job of one start: wait for a moment in it, kill, signal, wait."""

from __future__ import annotations

import contextlib
import json
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import psutil

from swinv2_train.config.compose import compose, to_yaml
from swinv2_train.engine.fill_in import complete
from tests.faults.nursery import ROOT, Nursery
from tests.faults.patches import VARIABLE, Faults
from tests.runs import environment

FORKED, COMMAND = "forked", "command"
"""Ways to start: the ranks alone, with what the command hands to its ranks, forked from the nursery; or the command."""
_POLL_SECONDS = 0.01
_GIVE_UP_SECONDS = 180
_GRACE_SECONDS = 30


class Forked:
    """A rank forked by the nursery."""

    def __init__(self, pid: int, exit_file: Path) -> None:
        self.pid, self._exit_file = pid, exit_file

    def poll(self) -> int | None:
        return int(self._exit_file.read_text()) if self._exit_file.exists() else None


class Job:
    """One start of a run: all its processes."""

    def __init__(self, faults: Faults, processes: list[Any], output: Path, run_dir: Path) -> None:
        self.faults, self.run_dir = faults, run_dir
        self._processes, self._output = processes, output
        self.stuck: list[int] = []
        """Ranks that did not end by themselves after another one was gone."""

    @property
    def output(self) -> str:
        """Output of its processes."""
        return self._output.read_text(errors="replace") if self._output.exists() else ""

    def lines(self, rank: int) -> list[dict[str, Any]]:
        """Return what a rank has recorded so far."""
        return read_record(self.faults.record(rank))

    def steps_done(self, rank: int = 0) -> int:
        return sum("step" in line for line in self.lines(rank))

    def pid(self, rank: int) -> int | None:
        """The process id of a rank, once it has begun."""
        lines = self.lines(rank)
        return lines[0]["pid"] if lines else None

    @property
    def ended(self) -> bool:
        return all(process.poll() is not None for process in self._processes)

    def wait_until(self, condition: Callable[[], bool]) -> bool:
        """Wait for a condition; False if the job ended without it."""
        deadline = time.monotonic() + _GIVE_UP_SECONDS
        while not condition():
            if self.ended:
                return condition()
            if time.monotonic() > deadline:
                self.kill_all()
                raise TimeoutError(f"{self.run_dir} did not come so far:\n{self.output[-4000:]}")
            time.sleep(_POLL_SECONDS)
        return True

    def wait_for_step(self, count: int, rank: int = 0) -> bool:
        """Wait until a rank has done N steps in this start."""
        return self.wait_until(lambda: self.steps_done(rank) >= count)

    def wait_for_save(self) -> bool:
        """Wait until a checkpoint is being written."""
        return self.wait_until(lambda: any((self.run_dir / "checkpoints").glob(".saving-*")))

    def wait_for_hold(self) -> bool:
        return self.wait_until(self.faults.held.exists)

    def release(self) -> None:
        """Let the ranks that wait go on."""
        self.faults.released.touch()

    def signal(self, number: int, rank: int | None = None) -> None:
        """Signal one rank; None: the command, or every rank where there is none."""
        pids = [process.pid for process in self._processes] if rank is None else [self.pid(rank)]
        for pid in pids:
            with contextlib.suppress(ProcessLookupError, psutil.NoSuchProcess):
                if pid is not None:
                    psutil.Process(pid).send_signal(number)

    def kill_all(self) -> None:
        """SIGKILL for every process of the job, workers and launchers included."""
        while victims := [victim for process in self._processes for victim in _tree(process.pid)]:
            for victim in victims:
                with contextlib.suppress(psutil.Error):
                    victim.kill()
            time.sleep(_POLL_SECONDS)

    def wait(self) -> int:
        """Wait for the end and return the exit code: 0, or that of the process that was the first to fail.

        Like a batch system it kills what is left of a job when one rank has failed, after a while.
        """
        first, deadline = 0, time.monotonic() + _GIVE_UP_SECONDS
        while not self.ended:
            if first == 0:
                first = next((code for code in map(self._code, self._processes) if code), 0)
                deadline = time.monotonic() + _GRACE_SECONDS if first else deadline
            if time.monotonic() > deadline:
                self.stuck = [index for index, process in enumerate(self._processes) if process.poll() is None]
                self.kill_all()
                if not first:
                    raise TimeoutError(f"{self.run_dir} does not end:\n{self.output[-4000:]}")
            time.sleep(_POLL_SECONDS)
        return first or next((code for code in map(self._code, self._processes) if code), 0)

    @staticmethod
    def _code(process: Any) -> int:
        return process.poll() or 0


class FaultyRun:
    """A run, and the starts that it takes to finish it.

    Args:
        directory: its run.dir; the records are next to it.
        overrides: of every start.
        nursery: where forked ranks come from.
        trace: where the records of its starts go; by default next to the run.
    """

    def __init__(self, directory: Path, overrides: list[str], nursery: Nursery, trace: Path | None = None) -> None:
        self.directory, self.overrides, self.nursery = directory, overrides, nursery
        self.trace = trace or directory.with_name(f"{directory.name}-trace")
        self.jobs: list[Job] = []

    def start(self, ranks: int = 1, *, way: str = FORKED, **faults: Any) -> Job:
        """Start it with faults planted (see `Faults`)."""
        self.trace.mkdir(parents=True, exist_ok=True)
        place = {"trace": str(self.trace), "start": len(self.jobs), "harness": os.getpid()}
        planted = Faults(**place, world_size=ranks, **faults)
        output = self.trace / f"start-{planted.start:03d}-output.txt"
        if way == COMMAND:
            processes = [_start_command([*self.overrides, f"launch.nproc_per_node={ranks}"], planted, output)]
        else:
            processes = self._fork(planted, output)
        job = Job(planted, processes, output, self.directory)
        self.jobs.append(job)
        return job

    def go(self, ranks: int = 1, **options: Any) -> int:
        """Start it and wait for the end; returns the exit code."""
        return self.start(ranks, **options).wait()

    def close(self) -> None:
        """End what is left of its jobs."""
        for job in self.jobs:
            if not job.ended:
                job.kill_all()

    def _fork(self, faults: Faults, output: Path) -> list[Any]:
        port, processes = _free_port(), []
        for rank in range(faults.world_size):
            job = {
                "RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": faults.world_size,
                "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
            } if faults.world_size > 1 else {}  # fmt: skip
            variables = environment(**{VARIABLE: faults.to_json()}, **{key: str(value) for key, value in job.items()})
            exit_file = self.trace / f"start-{faults.start:03d}-rank-{rank}.exit"
            arguments = ["--resolved", str(self._resolved)]
            processes.append(Forked(self.nursery.fork(arguments, variables, output, exit_file), exit_file))
        return processes

    @cached_property
    def _resolved(self) -> Path:
        # Composed once: it takes longer than a few steps.
        path = self.trace / "config.yaml"
        path.write_text(to_yaml(complete(compose(self.overrides), None)))
        return path

    @property
    def log(self) -> str:
        """The run's log.txt."""
        return (self.directory / "log.txt").read_text()

    def checkpoints(self) -> list[Path]:
        """The checkpoints of the run, oldest first."""
        return sorted((self.directory / "checkpoints").glob("step-*"))


def read_record(path: Path) -> list[dict[str, Any]]:
    """The complete lines of a rank's record; none where it has not begun."""
    *lines, _unfinished = path.read_text().split("\n") if path.exists() else [""]
    return [json.loads(line) for line in lines]


def _start_command(overrides: list[str], faults: Faults, output: Path) -> subprocess.Popen[bytes]:
    with output.open("ab") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "tests.faults.command", *overrides],
            cwd=ROOT,
            env=environment(**{VARIABLE: faults.to_json()}),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
        )


def _free_port() -> int:
    """A port that no outgoing connection gets: those of Linux begin at 32768."""
    for port in random.SystemRandom().sample(range(12000, 20000), 100):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise RuntimeError("100 ports in a row are taken")


def _tree(pid: int) -> list[psutil.Process]:
    try:
        root = psutil.Process(pid)
        found = [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []
    return [process for process in found if _alive(process)]


def _alive(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
