"""Names of classes in files: a name per line, or the manifest of shards or of a checkpoint."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from swinv2_train.data.errors import DataError
from swinv2_train.data.sources import MANIFEST_SUFFIX, parse_manifest
from swinv2_train.reading import UnreadableError, decode_text, parse_json

CHECKPOINT_MANIFEST = "manifest.json"
"""Name of the file in a checkpoint whose metadata names the classes of its run."""


def read_class_names(path: Path, *, label_maps: bool = False) -> list[str]:
    """Return the classes in the order of their numbers.

    Args:
        path: a file with a name per line, or the manifest of shards (*.dataset.json) or of a checkpoint
            (manifest.json).
        label_maps: of shards with objects as well, return the classes of the label maps, not the categories.

    Raises:
        DataError: if there are none, a line between them is blank, or one is there twice.
    """
    try:
        text = decode_text(path.read_bytes())
    except (OSError, UnreadableError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise DataError(f"the class names {path} cannot be read ({reason}): check the path") from None
    if path.name.endswith(MANIFEST_SUFFIX):
        card = parse_manifest(text, str(path)).card
        names = card.get("classes", {}).get("names")
        if label_maps and "objects" in card:
            names = card.get("label_maps", {}).get("names")
        if not names:
            raise DataError(f"{path} knows no names of classes: its split was packed without --classes")
        return list(names)
    if path.name == CHECKPOINT_MANIFEST:
        return _names_of_checkpoint(text, path)
    names = [line.strip() for line in text.rstrip().splitlines()]
    if not names:
        raise DataError(f"the class names {path} are empty: write a name per line, in the order of the numbers")
    if "" in names:
        raise DataError(
            f"the class names {path}, line {names.index('') + 1}: the line is blank, and the lines number the classes: "
            "write a name there, or remove the line if there is no such class"
        )
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        lines = [number for number, name in enumerate(names, 1) if name == twice[0]]
        raise DataError(
            f"the class names {path}, line {lines[1]}: {twice[0]!r} is in line {lines[0]}, too: every class needs its "
            "own name, so rename one of them or remove the line"
        )
    return names


def _names_of_checkpoint(text: str, path: Path) -> list[str]:
    try:
        names = parse_json(text)["geometry"]["classes"]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"the class names {path} are not the manifest of a checkpoint ({error})") from None
    if not isinstance(names, list) or not names:
        raise DataError(f"{path} has no names of classes: its run has none")
    return list(map(str, names))
