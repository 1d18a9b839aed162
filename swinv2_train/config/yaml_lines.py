"""Places in a user's config files, for error messages: the line that sets a key, and the line that is not YAML."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any


def at_line(file: Path, key: str) -> str:
    """Return "FILE, line N" for the line that sets a dotted key; only the file if the key is not found.

    Args:
        key: as in the composed config. A file of a group, such as model/mine.yaml, does not repeat the section.
    """
    import yaml

    try:
        root = yaml.compose(file.read_text(), Loader=yaml.SafeLoader)
    except (OSError, ValueError, yaml.YAMLError):
        return str(file)
    names = re.sub(r"\[\d+\]", "", key).split(".")
    line = _line(root, names) or _line(root, names[1:])
    return f"{file}, line {line}" if line else str(file)


def _line(node: Any, names: list[str]) -> int | None:
    """Return the line of the last of some nested keys, counted from 1; None if one of them is not there."""
    line = None
    for name in names:
        pairs = node.value if hasattr(node, "value") and isinstance(node.value, list) else []
        found = next((pair for pair in pairs if isinstance(pair, tuple) and pair[0].value == name), None)
        if found is None:
            return None
        line, node = found[0].start_mark.line + 1, found[1]
    return line


def has_keys(file: Path) -> bool:
    """Return whether a YAML file consists of keys and values."""
    import yaml

    return isinstance(yaml.safe_load(file.read_text()), dict)


def not_yaml(error: Any, config_dir: Path | None) -> str:
    """Return a YAML error as one sentence, with the file and the line if the error knows them.

    Args:
        config_dir: a directory of the user's own configs, whose path is shown as it was given.
    """
    mark = getattr(error, "problem_mark", None)
    reason = " ".join(str(getattr(error, "problem", None) or error).split())
    if mark is None or mark.name.startswith("<"):
        return f"a config is not YAML: {' '.join(str(error).split())}"
    file = Path(mark.name)
    if config_dir is not None and file.is_relative_to(config_dir.resolve()):
        file = config_dir / file.relative_to(config_dir.resolve())
    return f"{file}, line {mark.line + 1}: is not YAML ({reason})"
