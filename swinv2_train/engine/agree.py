"""Work that may go wrong on any rank: what it is ends all of them, is said once, and leaves nobody waiting."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from swinv2_train.checkpoint.errors import CheckpointError
from swinv2_train.config.errors import ConfigError
from swinv2_train.data.errors import DataError
from swinv2_train.engine.ranks import Ranks
from swinv2_train.errors import MainRankError, RunError

T = TypeVar("T")
_SAID = (ConfigError, DataError, CheckpointError, RunError, OSError)
"""What is a sentence for a person; anything else is a mistake of the program, and ends its rank with a traceback."""


def together(ranks: Ranks, work: Callable[[], T]) -> T:
    """What `work` returns on this rank, once it has succeeded on all of them. A collective; `work` may hold none.

    Raises:
        ConfigError, DataError, CheckpointError, RunError, OSError: what went wrong on the main rank; of another rank
            the main rank says it as a RunError. All other ranks end silently.
    """
    result, failure = None, None
    try:
        result = work()
    except _SAID as error:
        failure = error
    failures = ranks.gather(None if failure is None else str(failure))
    first = next((rank for rank, text in enumerate(failures) if text is not None), None)
    if first is None:
        return result  # type: ignore[return-value]
    if not ranks.is_main:
        raise MainRankError(failures[first])
    raise failure or RunError(f"rank {first}: {failures[first]}")


def on_main(ranks: Ranks, work: Callable[[], T]) -> T | None:
    """Do something on the main rank alone; None on the others. A collective; `work` may hold none.

    Raises:
        ConfigError, DataError, CheckpointError, RunError, OSError: what went wrong there; the other ranks end silently.
    """
    result, failure = None, None
    if ranks.is_main:
        try:
            result = work()
        except _SAID as error:
            failure = error
    message = ranks.broadcast(str(failure) if failure else None)
    if failure is not None:
        raise failure
    if message is not None:
        raise MainRankError(message)
    return result
