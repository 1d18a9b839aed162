"""Damaged files, read by the product and compared with intact twins: the outcome of a case, and damage to any file.

Every case is a function of its kind and number. Its outcome is one of
    same        the samples, or the run, are those of the twin
    reported    an error message or a warning says what is wrong
    valid       the damage made another valid archive, which Python's tarfile reads the same way
    silent      something else, without a message
    traceback   an error that no command turns into a message
"""

from __future__ import annotations

import json
import logging
import random
import traceback
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from swinv2_train.checkpoint.errors import CheckpointError
from swinv2_train.config.errors import ConfigError
from swinv2_train.data.errors import DataError
from swinv2_train.errors import RunError

MESSAGES = (ConfigError, DataError, CheckpointError, RunError)
"""Errors that every command ends with as one sentence."""
OUTCOMES = ("same", "reported", "valid", "silent", "traceback")
NUMBERS = (-1, 0, 1, 7, 2**31, 2**63, 10**30, 10**400, 0.5, 1e308, None, True, "x", [], {}, "9" * 50)


@dataclass(frozen=True)
class Outcome:
    """Result of a case."""

    outcome: str
    damage: str
    detail: str = ""


class _Listener(logging.Handler):
    """Keeps the warnings of the product."""

    def __init__(self, known: Collection[str]) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []
        self._known = known

    def emit(self, record: logging.LogRecord) -> None:
        if record.getMessage() not in self._known:
            self.lines.append(record.getMessage())


@contextmanager
def listening(known: Collection[str] = ()) -> Iterator[list[str]]:
    """The warnings of the product in this block, without those that are known."""
    listener, logger = _Listener(known), logging.getLogger("swinv2_train")
    propagates, logger.propagate = logger.propagate, False
    logger.addHandler(listener)
    try:
        yield listener.lines
    finally:
        logger.removeHandler(listener)
        logger.propagate = propagates


def judged(damage: str, action: Callable[[list[str]], tuple[bool, str]], twin_said: Collection[str] = ()) -> Outcome:
    """Run a case: `action` gets the list of warnings and returns whether the twin is matched, and how it differs.

    Args:
        twin_said: warnings that the twin has as well, such as those of links in it; they report no damage.
    """
    try:
        with listening(twin_said) as said:
            same, detail = action(said)
    except MESSAGES as error:
        whole = 0 < len(str(error)) < 2000 and "\n" not in str(error)
        return Outcome("reported" if whole else "traceback", damage, str(error)[:300])
    except Exception:
        return Outcome("traceback", damage, traceback.format_exc()[-1500:])
    if same:
        return Outcome("same", damage)
    if detail == "valid":
        return Outcome("valid", damage)
    return Outcome("reported", damage, said[0][:300]) if said else Outcome("silent", damage, detail)


def damage_bytes(data: bytearray, rng: random.Random) -> str:
    """Change any bytes in place; returns what was done."""
    kind = rng.choice(("bit", "bit", "byte", "cut", "inserted", "removed", "empty", "noise", "zeros", "page", "deep"))
    at = rng.randrange(max(1, len(data)))
    if kind == "bit" and data:
        data[at] ^= 1 << rng.randrange(8)
    elif kind == "byte" and data:
        data[at] = rng.randrange(256)
    elif kind == "cut":
        del data[at:]
    elif kind == "inserted":
        data[at:at] = rng.randbytes(rng.randint(1, 40))
    elif kind == "removed":
        del data[at : at + rng.randint(1, 200)]
    elif kind == "empty":
        data.clear()
    elif kind == "noise":
        data[:] = rng.randbytes(len(data))
    elif kind == "zeros":
        data[:] = bytes(len(data))
    elif kind == "page":
        data[:] = b"<html>log in</html>".ljust(len(data))
    else:
        data[:] = rng.choice((b"[", b'{"a":')) * 100_000
    return kind


def damage_json(text: str, rng: random.Random) -> str:
    """Replace or remove one value of a JSON text, wherever it is; every other value stays."""
    content = json.loads(text)
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        for key in list(node) if isinstance(node, dict) else range(len(node)):
            places.append((node, key))
            if isinstance(node[key], (dict, list)):
                walk(node[key])

    if not isinstance(content, (dict, list)) or not content:
        return json.dumps(rng.choice(NUMBERS))
    walk(content)
    node, key = rng.choice(places)
    if rng.random() < 0.2:
        del node[key]
    else:
        node[key] = rng.choice(NUMBERS)
    if rng.random() < 0.1:
        return json.dumps(rng.choice(([], {}, None, 5, "text", [content])))
    return json.dumps(content)


def damage_text_file(path: Path, rng: random.Random, *, lines: bool = False) -> str:
    """Damage a file of JSON, by bytes or by its values; returns what was done."""
    if rng.random() < 0.5:
        data = bytearray(path.read_bytes())
        kind = damage_bytes(data, rng)
        path.write_bytes(data)
        return kind
    parts = path.read_text().splitlines() if lines else [path.read_text()]
    number = rng.randrange(len(parts))
    parts[number] = damage_json(parts[number], rng)
    path.write_text("\n".join(parts) + ("\n" if lines else ""))
    return "value"
