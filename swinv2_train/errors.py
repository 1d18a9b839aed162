"""Errors that end a run."""

from __future__ import annotations

from swinv2_train.exit_codes import FAILED
from swinv2_train.redact import Redacted


class RunError(Redacted, RuntimeError):
    """The run cannot continue. `str(error)` is a one-sentence message for the user.

    Args:
        exit_code: exit code of the command. All ranks of a run end with the same code.
    """

    def __init__(self, text: str, exit_code: int = FAILED) -> None:
        super().__init__(text)
        self.exit_code = exit_code


class MainRankError(RunError):
    """The main rank could not continue and has reported the cause; the other ranks end with it, silently."""


class LostRanks(RunError):  # noqa: N818 (what happened, as a message says it)
    """Another rank has died or does not respond."""
