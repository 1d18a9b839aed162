"""Quick end of a process that has imported torch: without the interpreter's visit to every object."""

from __future__ import annotations

import atexit
import os
import sys


def exit_quickly(code: int) -> None:
    """Have this process end with a code as soon as everything that is registered for its end has run.

    The interpreter's own shutdown visits every object that the imports of torch and DeepSpeed have made, which takes
    half as much CPU time as the imports. Nothing needs it: threads have been joined by then, exit functions have run,
    and the output is flushed. Call this just before `sys.exit`.

    A process without torch shuts down as usual, which is quick enough.
    """
    if "torch" in sys.modules:
        atexit.register(_exit, code)


def _exit(code: int) -> None:
    atexit.unregister(_exit)
    atexit._run_exitfuncs()
    try:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
    except (OSError, ValueError):
        return  # the disk is full, or the stream is closed: the interpreter reports it in its own shutdown
    os._exit(code)
