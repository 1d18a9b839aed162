"""Removal of secrets from all text that is shown or stored: credentials in URLs and values from the environment.

A password or token before the host of a URL, and every query parameter that may be a signature, is replaced by `***`.
A value that `${oc.env:NAME}` in a config resolved to is replaced by that expression. Importing this module also applies
this to the records of `logging`, in every process that can raise one of this package's errors.
"""

from __future__ import annotations

import json
import logging
import re
import traceback
from collections.abc import Mapping
from types import TracebackType
from typing import Any

HIDDEN = "***"
_HARMLESS = (
    "versionid", "generation", "download", "dl", "raw", "alt", "x-amz-algorithm", "x-amz-date", "x-amz-expires",
    "x-amz-signedheaders", "x-goog-algorithm", "x-goog-date", "x-goog-expires", "x-goog-signedheaders", "se", "sp",
    "sv", "sr", "st", "spr", "expires",
)  # fmt: skip
"""Query parameters that are shown; any other may be a secret."""
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://(?:(?!,\s*[\"'\[]?[A-Za-z][A-Za-z0-9+.-]*://)[^\s\"'<>`])+")
_USER = re.compile(r"(?<=://)[^/?#]*@")
_PASSWORD = re.compile(r"(?<=://)[^/?#@:]*:(?!\d+(?:/|$))\S*@")
"""Credentials with a password in any spelling, including unquoted characters; text after a port is not a password."""
_PARAMETER = re.compile(r"([?&;#])([^=&;#?]+)=([^&;#]*)")
_HEADER = re.compile(r"\b(Bearer|Basic) [A-Za-z0-9._~+/=-]{8,}")
_SHORTEST = 4
"""Minimum length: shorter values are not secrets, and replacing them would garble every number."""

_values: dict[str, str] = {}


def hide(value: str, shown: str) -> None:
    """Replace a value by another text in everything that is shown from now on; very short values are kept."""
    if len(value) < _SHORTEST or value == shown:
        return
    _values[value] = shown
    _values.setdefault(json.dumps(value)[1:-1], shown)  # as JSON files contain it


def redact(text: str) -> str:
    """Return a text without secrets."""
    for value in sorted(_values, key=len, reverse=True):
        text = text.replace(value, _values[value])
    if "://" in text:
        text = _URL.sub(lambda found: _redact_url(found[0]), text)
    return _HEADER.sub(rf"\1 {HIDDEN}", text) if "Bearer " in text or "Basic " in text else text


def redacted(value: Any) -> Any:
    """Return plain data (mappings, lists, and text, for example) without secrets."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, Mapping):
        return {key: redacted(item) for key, item in value.items()}
    return [redacted(item) for item in value] if isinstance(value, (list, tuple)) else value


class Redacted:
    """An exception whose text contains no secrets; must be the first base class of this package's errors."""

    def __str__(self) -> str:
        return redact(super().__str__())


def excepthook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print a traceback without secrets: a `sys.excepthook`."""
    import sys

    sys.stderr.write(redact("".join(traceback.format_exception(kind, error, trace))))


def _redact_url(url: str) -> str:
    bare = url.rstrip(")]}.,:;")  # punctuation of the surrounding sentence
    if bare != url:
        return _redact_url(bare) + url[len(bare) :]
    url = _PASSWORD.sub(f"{HIDDEN}@", url)
    place, mark, rest = re.match(r"([^?#]*)([?#]?)(.*)", url, re.DOTALL).groups()  # type: ignore[union-attr]
    place = _USER.sub(_without_password, place)
    if not mark:
        return place
    if "=" not in rest:  # a query that is a single token
        return f"{place}{mark}{HIDDEN}" if len(rest) > _SHORTEST else f"{place}{mark}{rest}"
    return place + _PARAMETER.sub(_parameter, mark + rest)


def _without_password(found: re.Match[str]) -> str:
    # Without a password, this is a container (abfs://), a git user, or a token. Only the first two are short words, and
    # in a web URL it is a token.
    user, web = found[0][:-1], found.string[: found.start()].lower().endswith(("http://", "https://"))
    plain = not web and re.fullmatch(r"[a-z0-9][a-z0-9-]{0,19}", user)
    return found[0] if plain else f"{HIDDEN}@"


def _parameter(found: re.Match[str]) -> str:
    shown = found[3] if found[2].lower() in _HARMLESS else HIDDEN
    return f"{found[1]}{found[2]}={shown}"


def _install() -> None:
    before = logging.getLogRecordFactory()
    if getattr(before, "redacts", False):
        return

    def make(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = before(*args, **kwargs)
        if record.name.startswith("swinv2_train"):
            record.msg, record.args = redact(record.getMessage()), ()
        return record

    make.redacts = True  # type: ignore[attr-defined]
    logging.setLogRecordFactory(make)


_install()
