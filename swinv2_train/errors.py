"""Errors that end a run."""

from __future__ import annotations


class RunError(RuntimeError):
    """The run cannot go on. `str(error)` is one sentence for a person."""
