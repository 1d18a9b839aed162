"""Reading files that may be damaged: every defect of their content raises the same error.

A crash, a bad disk, or an editor can leave anything in a file: invalid UTF-8, half a JSON value, a folder in its
place. Callers decide what that means: a file that only describes a run is reported and skipped; damaged state is
rejected.
"""

from __future__ import annotations

import codecs
import json
import math
import reprlib
import types
import typing
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

ASIDE_SUFFIX = ".unreadable"
_T = TypeVar("_T")
_MOST = 2**63 - 1


class UnreadableError(ValueError):
    """Content that cannot be used. `str(error)` is the reason, without the path."""


def parse_json(text: str | bytes) -> Any:
    """Parse a JSON value.

    Raises:
        UnreadableError: if it is not JSON, not UTF-8, nested too deeply, or has a number of thousands of digits.
    """
    try:
        return json.loads(text)
    except UnicodeDecodeError as error:
        raise UnreadableError(_not_text(error)) from error
    except ValueError as error:
        raise UnreadableError(f"not JSON: {error}") from error
    except RecursionError as error:
        raise UnreadableError("not JSON: nested too deeply") from error


def read_text(path: Path) -> str:
    """Read a text file.

    Raises:
        FileNotFoundError: if the file does not exist.
        UnreadableError: if it is not UTF-8 or cannot be read.
    """
    try:
        return path.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise UnreadableError(_not_text(error)) from error
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UnreadableError(f"cannot be read: {error.strerror}") from error


def decode_text(data: bytes) -> str:
    """Decode a text that a user wrote: UTF-8 with or without a byte-order mark, UTF-16 and UTF-32 with one.

    Raises:
        UnreadableError: with the line that cannot be decoded.
    """
    encoding = "utf-8-sig"
    if data.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        encoding = "utf-32"
    elif data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encoding = "utf-16"
    elif b"\0" in data:
        raise UnreadableError("it has zero bytes, as UTF-16 without a byte-order mark has: save it as UTF-8")
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        name = "UTF-8" if encoding == "utf-8-sig" else encoding.upper()
        line = data[: error.start].count(b"\n") + 1
        raise UnreadableError(f"byte {error.start} (line {line}) is not {name}: save it as UTF-8") from error


def read_json(path: Path) -> Any:
    """Read a file with one JSON value; raises what `read_text` and `parse_json` raise."""
    return parse_json(read_text(path))


def read_object(path: Path) -> dict[str, Any]:
    """Read a file with one JSON object.

    Raises:
        FileNotFoundError: if the file does not exist.
        UnreadableError: if it contains anything else.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        raise UnreadableError(f"a JSON object is expected, not {type(content).__name__}")
    return content


def from_object(kind: type[_T], values: Any) -> _T:
    """Build a dataclass from a JSON object and check the type of every value; unknown keys are ignored.

    Raises:
        UnreadableError: naming an entry that is missing or has a wrong type.
    """
    if not isinstance(values, dict):
        raise UnreadableError(f"a JSON object is expected, not {type(values).__name__}")
    hints = typing.get_type_hints(kind)
    known = {spec.name: values[spec.name] for spec in fields(kind) if spec.name in values}  # type: ignore[arg-type]
    for name, value in known.items():
        if not _fits(value, hints[name]):
            raise UnreadableError(f"{name} is {reprlib.repr(value)}")
    try:
        return kind(**known)
    except TypeError as error:
        raise UnreadableError(f"an entry is missing ({error})") from error


def _fits(value: Any, hint: Any) -> bool:
    """Return whether a JSON value has an annotated type; numbers must be finite and have at most 64 bits."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, argument) for argument in arguments)
    if origin is list:
        return isinstance(value, list) and all(_fits(item, arguments[0]) for item in value)
    if origin is dict:
        return isinstance(value, dict) and all(_fits(item, arguments[1]) for item in value.values())
    if hint is float:
        return finite_number(value) is not None
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= _MOST
    return isinstance(value, hint)


def finite_number(value: Any) -> float | None:
    """Return a value from a file as a float; None if it is not a number, not finite, or too large."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def put_aside(path: Path) -> Path:
    """Rename an unusable file, or a folder in its place, so that a new one can be written; never overwrite.

    Raises:
        OSError: if it cannot be renamed.
    """
    aside, number = path.with_name(f"{path.name}{ASIDE_SUFFIX}"), 1
    while aside.exists():
        number += 1
        aside = path.with_name(f"{path.name}{ASIDE_SUFFIX}-{number}")
    path.rename(aside)
    return aside


def is_count(value: Any, most: int = 2**53) -> bool:
    """Return whether a value from a file is an integer from 0 to `most`, which every JSON writer keeps exactly."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= most


def _not_text(error: UnicodeDecodeError) -> str:
    return f"not text: byte {error.object[error.start]:#04x} at {error.start} is not UTF-8"
