"""Failure handling across ranks: an error on any rank ends them all, is reported once, and leaves none waiting."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from swinv2_train.checkpoint.errors import CheckpointError
from swinv2_train.config.errors import ConfigError
from swinv2_train.data.errors import DataError
from swinv2_train.errors import MainRankError, RunError
from swinv2_train.exit_codes import FAILED, code_of
from swinv2_train.launch.ranks import Ranks

T = TypeVar("T")
_REPORTED = (ConfigError, DataError, CheckpointError, RunError, OSError)
"""Errors with a message for the user. Anything else is a bug and ends its rank with a traceback."""


def together(ranks: Ranks, work: Callable[[], T]) -> T:
    """Return the result of `work` on this rank once it has succeeded on all. A collective; `work` may contain none.

    Raises:
        ConfigError, DataError, CheckpointError, RunError, OSError: the error of the main rank; for another rank's
            error, the main rank raises it as a RunError. All other ranks end silently.
    """
    result, failure = None, None
    try:
        result = work()
    except _REPORTED as error:
        failure = error
    failures = ranks.gather(None if failure is None else (str(failure), code_of(failure) or FAILED))
    first = next((rank for rank, found in enumerate(failures) if found is not None), None)
    if first is None:
        return result  # type: ignore[return-value]
    text, code = failures[first]  # all ranks end with one code, whichever of them a launcher sees end first
    if not ranks.is_main:
        raise MainRankError(text, code)
    raise failure or RunError(f"rank {first}: {text}", code)


def on_main(ranks: Ranks, work: Callable[[], T]) -> T | None:
    """Run `work` on the main rank only and return its result; None on the others. A collective; `work` may contain
    none.

    Raises:
        ConfigError, DataError, CheckpointError, RunError, OSError: the main rank's error; the other ranks end silently.
    """
    result, failure = None, None
    if ranks.is_main:
        try:
            result = work()
        except _REPORTED as error:
            failure = error
    reported = ranks.broadcast((str(failure), code_of(failure) or FAILED) if failure else None)
    if failure is not None:
        raise failure
    if reported is not None:
        raise MainRankError(*reported)
    return result


def from_main(ranks: Ranks, work: Callable[[], T]) -> T:
    """Return the result of `work` on the main rank, sent to every rank. A collective; arguments and errors as for
    `on_main`."""
    return ranks.broadcast(on_main(ranks, work))


@contextmanager
def begun() -> Iterator[None]:
    """Convert a usage error to a failure, for work that has already begun.

    Data that was readable at the start and no longer is does not count as a usage error: a retry may succeed.
    """
    try:
        yield
    except MainRankError as error:
        raise MainRankError(str(error)) from error
    except (ConfigError, DataError) as error:
        raise RunError(str(error)) from error
