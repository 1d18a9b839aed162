"""What can go wrong with data: a data set that cannot be used, or one sample of it that cannot be read."""

from __future__ import annotations


class DataError(ValueError):
    """A data set that cannot be used. `str(error)` is the whole message for a person."""


class BrokenSample(Exception):  # noqa: N818 (an event that the loader counts and replaces, not the end of a run)
    """One sample that cannot be read or decoded; `reason` says why in a few words."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)
