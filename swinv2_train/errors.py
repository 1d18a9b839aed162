"""Errors that end a run."""

from __future__ import annotations


class RunError(RuntimeError):
    """The run cannot go on. `str(error)` is one sentence for a person."""


class MainRankError(RunError):
    """The main rank could not go on and has said why; the others end with it, silently."""
