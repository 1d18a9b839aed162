"""Reading files that may be damaged: every defect of their content is one kind of error.

A crash, a bad disk or an editor can leave anything in a file: no UTF-8, half of a JSON value, a folder in its place.
Callers decide what that means: a file that only describes a run is reported and passed over, state is refused.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


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
        FileNotFoundError: if there is none.
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


def read_json(path: Path) -> Any:
    """Read a file with one JSON value; raises what `read_text` and `parse_json` raise."""
    return parse_json(read_text(path))


def read_object(path: Path) -> dict[str, Any]:
    """Read a file with one JSON object.

    Raises:
        FileNotFoundError: if there is none.
        UnreadableError: if it holds anything else.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        raise UnreadableError(f"a JSON object is expected, not {type(content).__name__}")
    return content


def is_count(value: Any, most: int = 2**53) -> bool:
    """Return whether a value from a file is an integer from 0 to `most`, which every JSON writer keeps exactly."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= most


def _not_text(error: UnicodeDecodeError) -> str:
    return f"not text: byte {error.object[error.start]:#04x} at {error.start} is not UTF-8"
