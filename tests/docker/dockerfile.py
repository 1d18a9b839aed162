"""A small reader of our Dockerfile: instructions, the commands inside RUN, and what `.dockerignore` lets through."""

from __future__ import annotations

import fnmatch
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def instructions() -> list[tuple[str, str]]:
    """Every instruction as (name, the rest), its lines joined, without comments."""
    text = (ROOT / "docker" / "Dockerfile").read_text()
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(name, rest.strip()) for name, _, rest in (line.partition(" ") for line in joined.splitlines())]


def commands() -> list[list[str]]:
    """The shell commands of all RUN instructions as words, in order."""
    found = []
    for name, rest in instructions():
        if name == "RUN":
            plain = re.sub(r"--mount=\S+\s*", "", rest)
            found += [part.split() for part in plain.split("&&")]
    return found


def let_through(path: str) -> bool:
    """Return whether `.dockerignore` keeps a file in the build context: the last matching line decides."""
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    allowed = True
    for line in lines:
        pattern = line.lstrip("!")
        parts = path.split("/")
        above = ["/".join(parts[:count]) for count in range(1, len(parts) + 1)]
        names = parts if pattern.startswith("**/") else above
        if any(fnmatch.fnmatchcase(name, pattern.removeprefix("**/")) for name in names):
            allowed = line.startswith("!")
    return allowed
