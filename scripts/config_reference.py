"""Write the reference of all config keys from the schema: python scripts/config_reference.py > conf/REFERENCE.md"""

from __future__ import annotations

import ast
import dataclasses
import html
import inspect
import sys
from typing import Any

from omegaconf import OmegaConf

from swinv2_train.config.schema import Config
from swinv2_train.config.tasks import TASK_SECTIONS

HEADER = """\
# Every key of the config

Generated from the schema in `swinv2_train/config/` by `python scripts/config_reference.py > conf/REFERENCE.md`; a test
checks that it is current. Defaults are those of the schema; experiments and the files of `conf/` override many of them.
`swinv2-train +experiment=NAME --cfg job` prints the values of a run. [README.md](README.md) describes how to set keys.
"""


def notes(section: type) -> dict[str, str]:
    """Return the text below every field of a dataclass, on one line; inherited fields included."""
    found: dict[str, str] = {}
    for owner in reversed(section.__mro__[:-1]):
        (node,) = ast.parse(inspect.getsource(owner)).body
        assert isinstance(node, ast.ClassDef)
        for field, text in zip(node.body, node.body[1:], strict=False):
            described = isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and described:
                found[field.target.id] = inspect.cleandoc(text.value.value)
    return found


def default(spec: dataclasses.Field[Any]) -> str:
    """Return the default value in YAML syntax."""
    value = spec.default if spec.default is not dataclasses.MISSING else spec.default_factory()
    if value is None:
        return "null"
    if isinstance(value, (dict, list)) and not value:
        return "{}" if isinstance(value, dict) else "[]"
    if isinstance(value, list):
        return f"[{', '.join(map(str, value))}]"
    if isinstance(value, bool):
        return str(value).lower()
    return OmegaConf.to_yaml(OmegaConf.create({"x": value}), resolve=False)[3:].strip()


def rows(section: type, prefix: str) -> list[str]:
    """Return the table of a section, followed by those of the sections inside it."""
    lines, inner = [], []
    text = notes(section)
    for spec in dataclasses.fields(section):
        below = spec.default_factory if isinstance(spec.default_factory, type) else None
        if below is not None and dataclasses.is_dataclass(below):
            inner += section_lines(below, f"{prefix}{spec.name}.")
            continue
        said = html.escape(text[spec.name], quote=False).replace("\n\n", "<br>").replace("\n", " ").replace("|", "\\|")
        kind = str(spec.type).replace(" | None", " or null")
        lines.append(f"| `{prefix}{spec.name}` | {kind} | `{default(spec)}` | {said} |")
    table = ["| key | type | default | |", "|---|---|---|---|", *lines, ""] if lines else []
    return table + inner


def section_lines(section: type, prefix: str, title: str | None = None) -> list[str]:
    """Return heading, description, and tables of a section."""
    described = inspect.cleandoc(section.__doc__ or "")
    return [f"## {title or prefix.rstrip('.')}", "", described, "", *rows(section, prefix)]


def reference() -> str:
    """Return the complete page."""
    lines = [HEADER, "## Top level", "", *rows(Config, "")]
    text = "\n".join(lines)
    start = text.index("\n## task\n")
    end = text.index("\n## ", start + 1)
    tasks = [
        line
        for name, section in TASK_SECTIONS.items()
        for line in section_lines(section, "task.", f"task, with `task={name}`")
    ]
    return (text[:start] + "\n" + "\n".join(tasks) + text[end:]).rstrip() + "\n"


if __name__ == "__main__":
    sys.stdout.write(reference())
