"""What can go wrong with a checkpoint."""

from __future__ import annotations


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be written, read or used. `str(error)` is one sentence for a person."""
