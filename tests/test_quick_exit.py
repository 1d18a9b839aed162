"""The quick end of a process: everything that is registered for its end has run, and the interpreter visits nothing."""

from __future__ import annotations

import runpy
import subprocess
import sys

import pytest

from tests.runs import environment

PROGRAM = """
import atexit, sys, threading, time, weakref
from swinv2_train.cli.ending import end

class Object:
    def __del__(self):
        print("visited")

kept = Object()
finalized = Object()
weakref.finalize(finalized, print, "finalized").atexit = True
atexit.register(print, "exit function")
threading.Thread(target=lambda: (time.sleep(0.1), print("thread"))).start()
print("output", end=" ")
print("errors", end=" ", file=sys.stderr)
"""
TORCH = "sys.modules['torch'] = sys\n"
"""It is enough that the process has imported something of that name, and spares the seconds of the real one."""
REGISTERED = "output thread\nexit function\nfinalized\n"


def ended(program: str, **pipes: object) -> tuple[int, str, str]:
    """Run a program; returns its exit code, output, and errors."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | pipes
    buffered = environment(PYTHONUNBUFFERED="")
    done = subprocess.run([sys.executable, "-c", program], env=buffered, text=True, **pipes)  # type: ignore[call-overload]
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("code", [0, 75])
def test_what_is_registered_runs_before_a_quick_end(code: int) -> None:
    assert ended(f"{PROGRAM}{TORCH}end({code}, whole_process=True)") == (code, REGISTERED, "errors ")


@pytest.mark.parametrize("end", ["end(1, whole_process=True)", f"{TORCH}end(1)"])
def test_other_processes_shut_down_in_order(end: str) -> None:
    """Those without torch, and those in which a command is a function among others."""
    code, output, _ = ended(f"{PROGRAM}{end}")
    assert (code, output[: len(REGISTERED)]) == (1, REGISTERED)
    assert output.count("visited") == 2


def test_an_exit_function_that_fails_changes_no_exit_code() -> None:
    code, output, errors = ended(f"{PROGRAM}{TORCH}atexit.register(int, 'x')\nend(75, whole_process=True)")
    assert (code, output) == (75, REGISTERED)
    assert "ValueError" in errors


def test_output_that_cannot_be_written_is_reported_by_the_interpreter() -> None:
    with open("/dev/full", "w") as full:
        code, _, errors = ended(f"{PROGRAM}{TORCH}end(0, whole_process=True)", stdout=full)
    assert code == 120
    assert "No space left on device" in errors


@pytest.mark.parametrize(
    ("arguments", "quick"), [(["-c", "from multiprocessing.forkserver import main"], True), ([], False)]
)
def test_only_the_server_of_the_workers_ends_quickly_after_its_imports(
    arguments: list[str], quick: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process that imports the same module has an exit code of its own."""
    codes: list[int] = []
    monkeypatch.setattr("swinv2_train.quick_exit.exit_quickly", codes.append)
    monkeypatch.setattr(sys, "orig_argv", [sys.executable, *arguments])
    runpy.run_module("swinv2_train.data.preload")
    assert codes == [0] * quick
