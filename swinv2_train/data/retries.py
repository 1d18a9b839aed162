"""Retries of remote requests, and the meaning of their failures: absent, forbidden, or worth another try."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import time
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, TypeVar

from swinv2_train.data.errors import DataError, UnreachableData

logger = logging.getLogger(__name__)
T = TypeVar("T")
_ABSENT = (404, 410)
_DENIED = (401, 403, 407)
_WORTH_ANOTHER_TRY = (408, 409, 425, 429)
"""Refusals (400 to 499) that may go away; every status of at least 500 may."""
_LONGEST_WAIT = 30.0
_LONGEST_ASKED_WAIT = 120.0
"""Longest wait, in seconds, that a server may ask for with Retry-After."""
_NO_CREDENTIALS = (
    "NoCredentialsError", "PartialCredentialsError", "TokenRetrievalError", "DefaultCredentialsError", "RefreshError",
    "ClientAuthenticationError",
)  # fmt: skip
"""Exceptions of botocore, google-auth, and azure that mean that there are no credentials."""
_HINTS = {
    "s3": "set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, to an account that may read the bucket",
    "gs": "set GOOGLE_APPLICATION_CREDENTIALS to an account that may read the bucket",
    "gcs": "set GOOGLE_APPLICATION_CREDENTIALS to an account that may read the bucket",
    "az": "set AZURE_STORAGE_CONNECTION_STRING to an account that may read the container",
    "abfs": "set AZURE_STORAGE_CONNECTION_STRING to an account that may read the container",
    "hf": "set HF_TOKEN to a token that may read the repository",
}


class AccessDeniedError(DataError):
    """The server does not allow the request."""


class WrongAnswerError(Exception):
    """A response that is not what was requested. `str(error)` describes the difference.

    Args:
        most_tries: maximum number of attempts, if another one is unlikely to help.
    """

    def __init__(self, text: str, most_tries: int | None = None) -> None:
        super().__init__(text)
        self.most_tries = most_tries


def with_retries(
    what: str, action: Callable[[], T], *, retries: int, backoff: float, through: tuple[type[Exception], ...] = ()
) -> T:
    """Call `action` until it succeeds, waiting longer each time.

    Args:
        what: the URL, for messages.
        retries: further tries after the first.
        backoff: seconds before the second try, doubled each time; a server may ask for a longer wait.
        through: errors that another try does not help; they are raised as they are.

    Raises:
        FileNotFoundError: if the server reports that the file does not exist; `filename` is `what`.
        AccessDeniedError: if the server does not allow it.
        DataError: if the server refuses the request.
        UnreachableData: after the last attempt.
    """
    attempt = 0
    while True:
        try:
            return action()
        except (DataError, *through):
            raise
        except Exception as error:  # every backend of fsspec brings its own; aiohttp's short body is not an OSError
            cause = _cause(error)
            status = http_status(cause)
            reason = _reason(cause, status)
            if status in _ABSENT or (isinstance(cause, FileNotFoundError) and status is None):
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), what) from error
            if status in _DENIED or isinstance(cause, PermissionError) or type(cause).__name__ in _NO_CREDENTIALS:
                raise AccessDeniedError(f"{what} may not be read ({reason}): {_hint(what)}") from error
            if status is not None and 400 <= status < 500 and status not in _WORTH_ANOTHER_TRY:
                raise DataError(f"{what} cannot be read: the server refuses the request ({reason})") from error
            most = min(retries + 1, getattr(cause, "most_tries", None) or retries + 1)
            attempt += 1
            if attempt >= most:
                raise UnreachableData(f"{what} could not be read after {attempt} tries ({reason})") from error
            wait = max(min(backoff * 2 ** (attempt - 1), _LONGEST_WAIT), _asked_wait(cause))
            logger.warning("%s: %s; trying again in %.1f s", what, reason, wait)
            time.sleep(wait)


def http_status(error: BaseException) -> int | None:
    """Return the HTTP status that an error of any backend carries; None without one."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):  # botocore
        metadata = response.get("ResponseMetadata")
        found = metadata.get("HTTPStatusCode") if isinstance(metadata, dict) else None
        return found if isinstance(found, int) else None
    candidates = [getattr(error, name, None) for name in ("status", "status_code", "code")]
    candidates.append(getattr(response, "status_code", None))
    for value in candidates:
        with contextlib.suppress(TypeError, ValueError):
            if not isinstance(value, bool) and 400 <= int(value) <= 599:
                return int(value)
    return None


def _cause(error: BaseException) -> BaseException:
    """Return the cause of an error: fsspec reports "not found" for any failure while it asks for a size."""
    cause = error.__cause__
    if isinstance(error, OSError) and cause is not None and http_status(error) is None:
        network = isinstance(cause, (ConnectionError, TimeoutError)) or type(cause).__module__.startswith("aiohttp")
        if network or http_status(cause) is not None:
            return cause
    return error


def _reason(error: BaseException, status: int | None) -> str:
    if status is not None:
        try:
            return f"HTTP {status} {HTTPStatus(status).phrase}"
        except ValueError:
            return f"HTTP {status}"
    text = " ".join(str(error).split())
    return text if isinstance(error, WrongAnswerError) else f"{type(error).__name__}: {text}".rstrip(": ")


def _hint(url: str) -> str:
    scheme, _, rest = url.partition("://")
    if scheme in _HINTS:
        return _HINTS[scheme]
    if "?" in rest:
        return "the signature or token in its query may have expired; make a new URL"
    return "the server wants a login or a token that the URL does not carry, or does not serve this address"


def _asked_wait(error: Any) -> float:
    """Return the seconds that a server asks to wait, at most two minutes."""
    with contextlib.suppress(AttributeError, TypeError, ValueError):
        return min(max(0.0, float(error.headers.get("Retry-After"))), _LONGEST_ASKED_WAIT)
    return 0.0
