"""Errors of data: a data set that cannot be used, or one sample of it that cannot be read."""

from __future__ import annotations

from swinv2_train.exit_codes import FAILED, WRONG_USE
from swinv2_train.redact import Redacted


class DataError(Redacted, ValueError):
    """A data set that cannot be used. `str(error)` is the complete message for the user."""

    exit_code = WRONG_USE


class UnreachableData(DataError):  # noqa: N818 (a state, as the message names it)
    """A data set that cannot be read now: its server does not respond, or a process that reads it has died.

    The data may be right, so a retry of the command may succeed.
    """

    exit_code = FAILED


class UnwritableData(DataError):  # noqa: N818 (a state, as the message names it)
    """Shards that cannot be written now, because the disk is full."""

    exit_code = FAILED


class NoHeldOutImages(DataError):  # noqa: N818 (a state, as the message names it)
    """A source with so few images that its held-out share, or the rest, would be empty."""


class VideosFound(DataError):  # noqa: N818 (a state, as the message names it)
    """A folder of videos where one of images is expected."""


class OtherSamples(DataError):  # noqa: N818 (a state, as the message names it)
    """Shards of videos that were opened as images, or of images that were opened as videos.

    Args:
        place: shards or manifest.
        main: kind of main member that the samples have.
        wanted: kind that they were opened as.
    """

    def __init__(self, place: str, main: str, wanted: str) -> None:
        self.main = main
        super().__init__(f"the samples of {place} are {main}s, and {wanted}s are expected")


class BrokenSample(Redacted, Exception):  # noqa: N818 (an event that the loader counts and replaces, not the end of a run)
    """One sample that cannot be read or decoded; `reason` is the cause in a few words."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)
