"""The error of an invalid config: one sentence with field, value, and fix."""

from __future__ import annotations

from typing import Any

from swinv2_train.exit_codes import WRONG_USE
from swinv2_train.redact import Redacted


class ConfigError(Redacted, ValueError):
    """A config that cannot be run. `str(error)` is the complete message for the user."""

    exit_code = WRONG_USE

    def __init__(self, key: str, value: Any, hint: str) -> None:
        self.key, self.value, self.hint = key, value, hint
        super().__init__(f"{key}={plain(value)}: {hint}" if key else hint)


def plain(value: Any) -> Any:
    """Return a value as a command line has it: null, true, and false instead of their names in Python."""
    return {None: "null", True: "true", False: "false"}[value] if value is None or isinstance(value, bool) else value


def percent(value: float) -> str:
    """Return the likely intention of a fraction above 1, for the end of a message; empty for any other value."""
    return f"; {value:g}% is {value / 100:g}" if 1 < value <= 100 else ""
