"""The rules of the house: which part may import which, one place that knows DeepSpeed, files that fit in the head."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "swinv2_train"
MAY_IMPORT = {
    "config": set(),
    "models": {"config"},
    "data": {"config"},
    "checkpoint": {"config"},
    "tracking": {"config"},
    "planner": {"config"},
    "launch": {"config", "data", "checkpoint", "tracking"},
    "interop": {"config", "data", "models", "checkpoint"},
    "tasks": {"config", "data", "models", "tracking", "launch"},
    "analysis": {"config", "data", "models", "tasks", "tracking", "interop", "launch"},
    "engine": {"config", "data", "models", "tasks", "checkpoint", "tracking", "interop", "launch", "analysis"},
    "pipeline": {"config", "checkpoint", "engine", "launch"},
    "sweep": {"config", "engine", "tracking", "launch"},
    "cli": {
        "config",
        "data",
        "models",
        "tasks",
        "launch",
        "analysis",
        "engine",
        "planner",
        "checkpoint",
        "tracking",
        "interop",
        "pipeline",
        "sweep",
    },
}
"""Imports run one way. The modules directly in the package (errors, exit codes) are everyone's."""
FILES = sorted(PACKAGE.rglob("*.py"))


def imports(path: Path) -> set[str]:
    """The full names of the modules that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_one_way(path: Path) -> None:
    part = path.relative_to(PACKAGE).parts[0]
    if part.endswith(".py"):
        return
    for name in imports(path):
        pieces = name.split(".")
        if pieces[0] == "swinv2_train" and len(pieces) > 2 and pieces[1] != part:
            assert pieces[1] in MAY_IMPORT[part], f"{part} may not import {name}"


def test_deepspeed_is_imported_in_one_file() -> None:
    users = [path for path in FILES if any(name.split(".")[0] == "deepspeed" for name in imports(path))]
    assert users == [PACKAGE / "engine" / "deepspeed.py"]


def test_hydra_stays_at_the_door() -> None:
    users = {path.name for path in FILES if any(name.split(".")[0] in ("hydra", "omegaconf") for name in imports(path))}
    assert users == {"compose.py", "multirun.py", "task_module.py"}


OUTSIDE = [path for path in FILES if path.relative_to(PACKAGE).parts[0] not in ("tasks", "config")]


def test_tasks_are_asked_and_never_told_apart_elsewhere() -> None:
    """No check of a section's class, and no comparison with a task's name."""
    from swinv2_train.config.tasks import TASK_SECTIONS

    found = []
    for path in OUTSIDE:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("isinstance", "issubclass"):
                bad = re.search(r"Config\b", ast.unparse(node.args[1]))
            else:
                compared = [node.left, *node.comparators] if isinstance(node, ast.Compare) else []
                constants = [each for side in compared for each in ast.walk(side) if isinstance(each, ast.Constant)]
                bad = any(each.value in TASK_SECTIONS for each in constants if isinstance(each.value, str))
            if bad:
                found.append(f"{path.relative_to(ROOT)}:{node.lineno}: {ast.unparse(node)}")
    assert found == []


def test_files_fit_in_the_head() -> None:
    long = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in FILES}
    assert {name: lines for name, lines in long.items() if lines > 450} == {}


def test_every_module_says_what_it_is_for() -> None:
    silent = [
        str(path) for path in FILES if path.read_text().strip() and not ast.get_docstring(ast.parse(path.read_text()))
    ]
    assert silent == []


@pytest.mark.parametrize("script", sorted((ROOT / "scripts").glob("*.sh")), ids=lambda path: path.name)
def test_scripts_are_valid_shell(script: Path) -> None:
    subprocess.run(["bash", "-n", str(script)], check=True)
