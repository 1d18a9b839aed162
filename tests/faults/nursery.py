"""Ranks without the seconds that imports take: a process that has imported everything forks one for every request.

    python -m tests.faults.nursery

A request is a line of JSON on stdin: `module` (that runs as a program; empty: a rank), `arguments`, `environment`,
`output` (file for stdout and stderr) and `exit` (file for the exit code, negative for a signal). The answer is a line
with the process id. The end of stdin ends all.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import os
import runpy
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from swinv2_train.imports import lean_imports
from tests.faults import rank

ROOT = Path(__file__).resolve().parents[2]
"""Where `tests` can be imported from."""
_POLL_SECONDS = 0.02
_LATE = (
    "deepspeed.module_inject.auto_ep_layer", "deepspeed.runtime.zero.muon.muon_optimizer", "einops._torch_specific",
    "fsspec", "PIL.JpegImagePlugin", "PIL.PngImagePlugin", "swinv2_train.tasks.classification",
    "swinv2_train.tasks.simmim",
)  # fmt: skip
"""Modules that a rank imports only when it makes its engine and opens its data, half a second in each of them."""


class Nursery:
    """The other end: asks the nursery for ranks. Use it as a context."""

    def __init__(self, environment: dict[str, str]) -> None:
        self._environment = environment
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.nursery"],
            cwd=ROOT, env=environment, start_new_session=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
        )  # fmt: skip

    def __enter__(self) -> Nursery:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(self, module: str, arguments: list[str], folder: Path) -> tuple[int, str]:
        """Run `python -m MODULE` to its end, with two files in a folder: (exit code, output)."""
        output, exit_file = folder / "program-output.txt", folder / "program.exit"
        self.fork(arguments, self._environment, output, exit_file, module)
        while not exit_file.exists():
            if self._process.poll() is not None:
                raise RuntimeError(f"the nursery ended with code {self._process.returncode}")
            time.sleep(_POLL_SECONDS)
        return int(exit_file.read_text()), output.read_text()

    def fork(
        self, arguments: list[str], environment: dict[str, str], output: Path, exit_file: Path, module: str = ""
    ) -> int:
        """Start a rank, or another program; returns its process id."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        request = {
            "module": module,
            "arguments": arguments,
            "environment": environment,
            "output": str(output),
            "exit": str(exit_file),
        }
        self._process.stdin.write(json.dumps(request) + "\n")
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the nursery of ranks ended with code {self._process.wait()}")
        return int(answer)

    def close(self) -> None:
        """End the nursery and every rank of it that still runs."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def _import_everything() -> None:
    with lean_imports():
        import deepspeed  # noqa: F401
        import torch._dynamo  # noqa: F401 - activation checkpointing and stage 3 import it

        import swinv2_train.cli.train
        import swinv2_train.engine.run  # noqa: F401
        from swinv2_train.config.compose import compose

        for name in _LATE:
            with contextlib.suppress(ImportError):  # other versions of a library do without
                importlib.import_module(name)

    compose(["+experiment=simmim_demo"])
    gc.freeze()  # `lean_imports` unfreezes at the end
    if len(os.listdir("/proc/self/task")) > 1:
        raise RuntimeError("an import has started a thread, and a fork would lose it")


def _become_rank(request: dict[str, Any]) -> None:
    os.setsid()
    output = os.open(request["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (output, 1), (output, 2)):
        os.dup2(source, target)
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.argv = ["swinv2-train", *request["arguments"]]


def _run_to_the_end(program: Callable[[], object]) -> None:
    """Run a program and end the process with its exit code, without the interpreter's shutdown.

    The shutdown visits every object of the imports. In a forked process that copies their memory, which takes three
    times as long as a tiny run. What programs rely on at their end is done: threads, exit functions, and output.
    """
    code: object = 0
    try:
        program()
    except SystemExit as error:
        code = error.code
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        code = 1
    if isinstance(code, str):
        print(code, file=sys.stderr)
    threading._shutdown()  # type: ignore[attr-defined] - waits for the threads that are not daemons
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


def serve(answers: int) -> dict[str, Any] | None:
    """Fork ranks until stdin ends; returns the request in a forked rank, None in the nursery at its end."""
    running: dict[int, str] = {}
    unread = b""
    while True:
        ready, _, _ = select.select([0], [], [], _POLL_SECONDS)
        if ready:
            data = os.read(0, 1 << 16)
            if not data:
                for pid in running:
                    os.kill(pid, signal.SIGKILL)
                return None
            *lines, unread = (unread + data).split(b"\n")
            for line in lines:
                request = json.loads(line)
                pid = os.fork()
                if pid == 0:
                    os.close(answers)
                    return request
                running[pid] = request["exit"]
                os.write(answers, f"{pid}\n".encode())
        for pid in list(running):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                _write_whole(Path(running.pop(pid)), str(os.waitstatus_to_exitcode(status)))


def _write_whole(path: Path, text: str) -> None:
    temporary = path.with_suffix(".partial")
    temporary.write_text(text)
    temporary.replace(path)


def main() -> None:
    answers = os.dup(1)
    os.dup2(2, 1)  # output of libraries is not an answer
    _import_everything()
    request = serve(answers)
    if request is None:
        os._exit(0)
    _become_rank(request)
    module = request["module"]
    _run_to_the_end(partial(runpy.run_module, module, run_name="__main__") if module else rank.main)


if __name__ == "__main__":
    main()
