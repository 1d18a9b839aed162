"""How the commands end: an exit code, and one sentence on stderr for whatever went wrong."""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Callable

from swinv2_train.errors import LostRanks, MainRankError
from swinv2_train.exit_codes import FAILED, INTERRUPTED, code_of
from swinv2_train.redact import excepthook, redact
from swinv2_train.shortage import shortage

_GPU_REMEDY = "lower batch (batch=..., --batch), or use device=cpu"


def run_command(command: str, run: Callable[[], int], *, interrupted: str = "interrupted") -> int:
    """Run a command of one or more ranks; returns the exit code, after one sentence on stderr for what went wrong.

    A SIGTERM ends it like a Ctrl-C, so that what it has begun to write is removed.

    Args:
        command: its name, for the sentence.
        interrupted: what to say after a Ctrl-C or a SIGTERM.
    """
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)

    def say(text: object) -> None:
        print(redact(f"{command}: {text}"), file=sys.stderr, flush=True)

    prepare_output()
    try:
        code = run()
        sys.stdout.flush()
        return code
    except MainRankError as error:  # the main rank has said it
        return error.exit_code
    except BrokenPipeError:  # the reader of our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except Exception as error:
        if (text := shortage(error, _GPU_REMEDY)) is not None:
            say(text)
            return FAILED
        code = code_of(error)
        if code is None:
            raise
        if isinstance(error, LostRanks):
            _end_lost(say)
        if isinstance(error, OSError):
            say(f"{error.filename}: {error.strerror}" if error.filename else error.strerror or error)
        else:
            say(error)
        return code
    except KeyboardInterrupt:
        if os.environ.get("RANK", "0") == "0":
            say(interrupted)
        return INTERRUPTED
    finally:
        signal.signal(signal.SIGTERM, before)


def prepare_output() -> None:
    """Have the process print any text without secrets and without an encoding error.

    A file name need not be UTF-8, and a traceback may quote a URL.
    """
    sys.excepthook = excepthook
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _end_lost(say: Callable[[object], None]) -> None:
    """End a rank that others have left; a command that started the ranks says which died."""
    from swinv2_train.launch.signals import PARENT_VARIABLE

    if PARENT_VARIABLE not in os.environ:
        say("another rank has died or does not answer, so there is no result; run the command again")
    sys.stdout.flush()
    os._exit(FAILED)  # taking down collectives whose other end is gone may hang for ever
