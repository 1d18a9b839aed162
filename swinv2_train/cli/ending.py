"""End of the commands: an exit code, and one sentence on stderr for any error."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

from swinv2_train.errors import LostRanks, MainRankError
from swinv2_train.exit_codes import FAILED, INTERRUPTED, code_of
from swinv2_train.quick_exit import exit_quickly
from swinv2_train.redact import excepthook, redact
from swinv2_train.shortage import Remedies, shortage

_FREE = "end other programs here, or use a machine with more memory"


def run_command(command: str, run: Callable[[], int], *, interrupted: str = "interrupted", memory: str = _FREE) -> int:
    """Run a command of one or more ranks; return the exit code, after one sentence on stderr for any error.

    A SIGTERM ends it like a Ctrl-C, so that partially written output is removed.

    Args:
        command: its name, for the message.
        interrupted: message after a Ctrl-C or a SIGTERM.
        memory: what the user can do if memory runs out.
    """
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)

    def say(text: object) -> None:
        print(redact(f"{command}: {text}"), file=sys.stderr, flush=True)

    prepare_output()
    warnings = _Said(say)
    if os.environ.get("RANK", "0") == "0":
        logging.getLogger("swinv2_train").addHandler(warnings)
    try:
        code = run()
        sys.stdout.flush()
        _report_remarks(say)
        return code
    except MainRankError as error:  # the main rank has reported it
        return error.exit_code
    except BrokenPipeError:  # the reader of our output has exited
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except Exception as error:
        if (text := shortage(error, Remedies(gpu=f"{memory}, or use device=cpu", host=memory))) is not None:
            say(text)
            return FAILED
        code = code_of(error)
        if code is None:
            return end_of_bug(error)
        if isinstance(error, LostRanks):
            _report_lost(say)
        elif isinstance(error, OSError):
            say(f"{error.filename}: {error.strerror}" if error.filename else error.strerror or error)
        else:
            say(error)
        return code
    except KeyboardInterrupt:
        if os.environ.get("RANK", "0") == "0":
            say(interrupted)
        return INTERRUPTED
    finally:
        logging.getLogger("swinv2_train").removeHandler(warnings)
        signal.signal(signal.SIGTERM, before)


class _Said(logging.Handler):
    """Prints warnings of the data code, such as a truncated shard or a failing server."""

    def __init__(self, say: Callable[[object], None]) -> None:
        super().__init__(logging.WARNING)
        self._say = say

    def emit(self, record: logging.LogRecord) -> None:
        self._say(f"warning: {record.getMessage()}")


def prepare_output() -> None:
    """Make the process print any text without secrets and without encoding errors.

    A file name need not be UTF-8, and a traceback may quote a URL.
    """
    sys.excepthook = excepthook
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def end(code: int, *, whole_process: bool = False) -> NoReturn:
    """Exit with a code; after an error of one of several ranks, without the interpreter's own shutdown.

    Args:
        whole_process: True if the process consists of this command, and so may end as `exit_quickly` does.

    Such a rank cannot leave its process groups in order, because the others may wait in a collective. Destroying the
    groups may then hang, or abort the process, whose exit code would be that of SIGABRT instead of this one.
    """
    if not _holds_groups():
        if whole_process:
            exit_quickly(code)
        sys.exit(code)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # the reader has exited, or the stream is closed
            stream.flush()
    os._exit(code)


def end_of_bug(error: Exception) -> int:
    """Return the exit code of an error that is none of this package's, after its traceback on stderr.

    Raises:
        Exception: the error itself, in a process that can shut down in order.
    """
    if not _holds_groups():
        raise error
    sys.excepthook(type(error), error, error.__traceback__)
    return FAILED


def _holds_groups() -> bool:
    distributed = sys.modules.get("torch.distributed")
    return distributed is not None and distributed.is_available() and distributed.is_initialized()


def _report_remarks(say: Callable[[object], None]) -> None:
    """Report how often image decoders complained about images that were used, if any were decoded."""
    remarks = sys.modules.get("swinv2_train.data.remarks")
    for line in remarks.lines() if remarks is not None else ():
        say(line)


def _report_lost(say: Callable[[object], None]) -> None:
    """Report that other ranks are gone; a command that started the ranks reports which one died."""
    from swinv2_train.launch.signals import PARENT_VARIABLE

    if PARENT_VARIABLE not in os.environ:
        say("another rank has died or does not answer, so there is no result; rerun the command")
