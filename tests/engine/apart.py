"""Ranks in processes of their own, forked from one that has imported torch already."""

from __future__ import annotations

import gc
import multiprocessing
import multiprocessing.forkserver
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from swinv2_train.config.schema import Config
from swinv2_train.launch.environment import free_port

_IMPORTS = ["deepspeed", "torch._dynamo", "swinv2_train.engine.run", "timm.data.auto_augment", "tests.engine.apart"]
"""Modules of a training, by which a server of all imports is known."""
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


def trained_in_turn(folder: Path, configs: Sequence[Config], *, ranks: int = 2, workers: bool = False) -> list[str]:
    """Run trainings one after the other in the same few processes; returns what each rank printed.

    Every rank prints the line `NAME: exit code N` for each of them.

    Args:
        configs: complete, each with a run.dir of its own.
        workers: True if some of them have data workers.
    """
    folder.mkdir(exist_ok=True)
    with Apart(folder) as processes:
        server = _server_with_everything() if workers else None
        processes.start_ranks(ranks, _train_each, configs, [free_port() for _ in configs], server)
        processes.exit_codes(seconds=500)
        return [processes.output(rank) for rank in range(ranks)]


def _server_with_everything() -> str:
    """Start the server that processes are forked from, with all imports of a training; returns its address."""
    server = multiprocessing.forkserver._forkserver
    if _IMPORTS[0] not in server._preload_modules:
        server._stop()  # it may have been started with less
        server.set_forkserver_preload(_IMPORTS)
    server.ensure_running()
    return server._forkserver_address


def _train_each(configs: Sequence[Config], ports: Sequence[int], server: str | None) -> None:
    from swinv2_train.engine.run import train
    from swinv2_train.launch.signals import StopRequest

    gc.freeze()  # DeepSpeed collects garbage 40 times in a start
    if server is not None:
        # The workers come from the server that this process came from: imports cost more than all of these steps.
        multiprocessing.forkserver._forkserver._forkserver_address = server
        multiprocessing.forkserver._forkserver.ensure_running = lambda: None
    stop = StopRequest()
    for config, port in zip(configs, ports, strict=True):
        os.environ["MASTER_PORT"] = str(port)
        print(f"{config.run.name}: exit code {train(config, stop)}", flush=True)
