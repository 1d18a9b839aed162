"""Paths as a user writes them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from swinv2_train.config.errors import ConfigError

_LONGEST_NAME, _LONGEST_PATH = 255, 4095
"""Bytes that a name and a path may have on Linux."""


def expanded(text: Any) -> Path:
    """Return a path with its ~ expanded. No file is touched.

    Raises:
        ConfigError: if ~NAME names no user.
    """
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        user = Path(text).parts[0]
        raise ConfigError("", text, f"{text}: {user} is not the home of a user; write ./{text} for a name") from error


def user_path(text: Any) -> Path:
    """Return a path with its ~ expanded, if the system accepts its length. No file is touched.

    Raises:
        ConfigError: if ~NAME names no user, or the path or a name in it is too long.
    """
    path = expanded(text)
    if len(os.fsencode(path)) > _LONGEST_PATH or any(len(os.fsencode(part)) > _LONGEST_NAME for part in path.parts):
        shown = f"{str(text)[:40]}..."
        raise ConfigError("", shown, f"{shown} is too long for a path ({len(str(text))} characters)")
    return path
