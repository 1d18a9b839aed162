"""Exit codes of the commands, and the code of every error with a message for the user."""

from __future__ import annotations

FINISHED = 0
"""Everything that was requested is done."""
FAILED = 1
"""The command began, or could have begun, and failed; a retry may succeed."""
WRONG_USE = 2
"""A usage error, found before anything began: a command line, config, or data path that a retry would not change."""
STOPPED = 75
"""Stopped by a signal: the step was finished and saved, and the same command resumes the run (EX_TEMPFAIL)."""
INTERRUPTED = 130
"""Ctrl-C before the run began, or a second one during it."""


def code_of(error: BaseException) -> int | None:
    """Return the exit code of an error whose text is a message for the user; None for any other error.

    The classes of such errors carry their code as `exit_code`. An `OSError` is a failure of the machine.
    """
    code = getattr(error, "exit_code", None)
    return FAILED if code is None and isinstance(error, OSError) else code
