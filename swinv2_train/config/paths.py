"""Paths as a user writes them."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

from swinv2_train.config.errors import ConfigError


def user_path(text: Any) -> Path:
    """Return a path with its ~ expanded.

    Raises:
        ConfigError: if ~NAME names no user, or the system refuses the name for its length.
    """
    try:
        path = Path(text).expanduser()
        path.exists()
    except RuntimeError as error:
        user = Path(text).parts[0]
        raise ConfigError("", text, f"{text}: {user} is not the home of a user; write ./{text} for a name") from error
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            return path  # reading it names the error
        shown = f"{str(text)[:40]}..."
        raise ConfigError("", shown, f"{shown} is too long for a path ({len(str(text))} characters)") from error
    return path
