"""Ranks in processes of their own, forked from one that has imported torch already."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from swinv2_train.launch.environment import free_port

LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RESTART_COUNT")


def _begin(work: Callable[..., None], log: str, variables: dict[str, str], arguments: tuple[Any, ...]) -> None:
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    for name in LAUNCHER:
        os.environ.pop(name, None)
    os.environ.update(variables)
    work(*arguments)


class Apart:
    """Some processes and what they print. Use it as a context: what still runs at its end is killed."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["swinv2_train.launch.ranks", "swinv2_train.launch.watchdog"])
        self.processes: list[Any] = []

    def start(self, work: Callable[..., None], *arguments: Any, **variables: str) -> Any:
        """Call a function of a test module in a process of its own."""
        log = str(self._directory / f"output-{len(self.processes)}.txt")
        process = self._context.Process(target=_begin, args=(work, log, variables, arguments))
        process.start()
        self.processes.append(process)
        return process

    def start_ranks(self, count: int, work: Callable[..., None], *arguments: Any, **more: str) -> None:
        """Call a function in N processes, with a launcher's variables and more."""
        port = str(free_port())
        for rank in range(count):
            variables = {"RANK": str(rank), "WORLD_SIZE": str(count), "LOCAL_RANK": str(rank), **more}
            self.start(work, *arguments, MASTER_ADDR="127.0.0.1", MASTER_PORT=port, **variables)

    def exit_codes(self, seconds: float = 90) -> list[int | None]:
        """Return how the processes ended, in start order; None for one that has not ended within this many seconds."""
        for process in self.processes:
            process.join(seconds)
        return [process.exitcode for process in self.processes]

    def output(self, index: int) -> str:
        """Return the output of a process."""
        return (self._directory / f"output-{index}.txt").read_text()

    def __enter__(self) -> Apart:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            process.kill()
            process.join()
