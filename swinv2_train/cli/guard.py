"""How the commands end: an exit code, and one sentence on stderr for whatever went wrong."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable

from swinv2_train.checkpoint.errors import CheckpointError
from swinv2_train.config.errors import ConfigError
from swinv2_train.data.errors import DataError
from swinv2_train.errors import MainRankError, RunError
from swinv2_train.exit_codes import FAILED, INTERRUPTED, WRONG_USE
from swinv2_train.shortage import shortage

_GPU_REMEDY = "lower batch (batch=..., --batch), or use device=cpu"


def guarded(command: str, run: Callable[[], int], *, failed: int = FAILED, interrupted: str = "interrupted") -> int:
    """Run a command of one or more ranks; returns the exit code, after one sentence on stderr for what went wrong.

    A SIGTERM ends it like a Ctrl-C, so that what it has begun to write is removed.

    Args:
        command: its name, for the sentence.
        failed: the exit code where it could not be done.
        interrupted: what to say after a Ctrl-C or a SIGTERM.
    """
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)

    def say(text: object) -> None:
        print(f"{command}: {text}", file=sys.stderr, flush=True)

    try:
        code = run()
        sys.stdout.flush()
        return code
    except MainRankError:  # the main rank has said it
        return failed
    except (ConfigError, DataError) as error:
        say(error)
        return WRONG_USE
    except (RunError, CheckpointError) as error:
        if type(error).__name__ == "LostRanks":
            _end_lost(say)
        say(error)
        return failed
    except BrokenPipeError:  # the reader of our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return failed
    except (OSError, MemoryError) as error:
        if (text := shortage(error, _GPU_REMEDY)) is not None:
            say(text)
            return failed
        say(f"{error.filename}: {error.strerror}" if error.filename else error.strerror or error)
        return failed
    except RuntimeError as error:
        if (text := shortage(error, _GPU_REMEDY)) is None:
            raise
        say(text)
        return failed
    except KeyboardInterrupt:
        if os.environ.get("RANK", "0") == "0":
            say(interrupted)
        return INTERRUPTED
    finally:
        signal.signal(signal.SIGTERM, before)


def _end_lost(say: Callable[[object], None]) -> None:
    """End a rank that others have left; a command that started the ranks says which died."""
    from swinv2_train.engine.signals import PARENT_VARIABLE

    if PARENT_VARIABLE not in os.environ:
        say("another rank has died or does not answer, so there is no result; run the command again")
    sys.stdout.flush()
    os._exit(FAILED)  # taking down collectives whose other end is gone may hang for ever
