"""Errors of checkpoints."""

from __future__ import annotations

from swinv2_train.exit_codes import FAILED
from swinv2_train.redact import Redacted


class CheckpointError(Redacted, RuntimeError):
    """A checkpoint that cannot be written, read or used. `str(error)` is a one-sentence message for the user."""

    exit_code = FAILED
