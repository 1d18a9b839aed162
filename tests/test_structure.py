"""The rules of the house: which part may import which, one place that knows DeepSpeed, files that fit in the head."""

from __future__ import annotations

import ast
import functools
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
    "engine": {
        "config",
        "data",
        "models",
        "tasks",
        "checkpoint",
        "tracking",
        "interop",
        "launch",
        "analysis",
        "planner",
    },
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
    "api": {"config", "data", "models", "launch", "analysis", "interop", "cli"},
}
"""Imports run one way. The modules directly in the package (errors, exit codes) are everyone's."""
FILES = sorted(PACKAGE.rglob("*.py"))


@functools.cache
def nodes(path: Path) -> list[ast.AST]:
    """All nodes of a file, the module first."""
    return list(ast.walk(ast.parse(path.read_text())))


@functools.cache
def imports(path: Path) -> set[str]:
    """The full names of the modules that a file imports, wherever in it."""
    found = set()
    for node in nodes(path):
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


def runtime_imports(path: Path, modules: set[str]) -> set[str]:
    """The modules of the package that a file imports, wherever in it, other than for annotations alone."""
    tree = ast.parse(path.read_text())
    typing = [node for node in ast.walk(tree) if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    for node in typing:
        node.body = []
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            full = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (full & modules) or {node.module}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found & modules


@pytest.mark.slow
def test_imports_make_no_circle() -> None:
    """Inside folders either: a file can be read after those that it imports."""
    paths = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in FILES}
    waiting = {name: runtime_imports(path, set(paths)) - {name} for name, path in paths.items()}
    while ready := [name for name, needed in waiting.items() if not needed & waiting.keys()]:
        for name in ready:
            del waiting[name]
    assert sorted(waiting) == []


@pytest.mark.slow
def test_functions_are_short_and_take_few_parameters() -> None:
    """At most 80 lines and 8 parameters; dataclasses, which only hold, may have more fields."""
    wrong = []
    for path in FILES:
        for node in nodes(path):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                given = node.args
                names = [one.arg for one in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
                count = len([name for name in names if name not in ("self", "cls")])
                if node.end_lineno - node.lineno >= 80 or count > 8:
                    wrong.append(f"{path.relative_to(ROOT)}: {node.name}")
    assert wrong == []


@pytest.mark.slow
def test_deepspeed_is_imported_in_one_file() -> None:
    users = [path for path in FILES if any(name.split(".")[0] == "deepspeed" for name in imports(path))]
    assert users == [PACKAGE / "engine" / "deepspeed.py"]


@pytest.mark.slow
def test_hydra_stays_at_the_door() -> None:
    users = {path.name for path in FILES if any(name.split(".")[0] in ("hydra", "omegaconf") for name in imports(path))}
    assert users == {"compose.py", "multirun.py", "override_text.py", "task_module.py"}


OUTSIDE = [path for path in FILES if path.relative_to(PACKAGE).parts[0] not in ("tasks", "config")]


@pytest.mark.slow
def test_tasks_are_asked_and_never_told_apart_elsewhere() -> None:
    """No check of a section's class, and no comparison with a task's name."""
    from swinv2_train.config.tasks import TASK_SECTIONS

    found = []
    for path in OUTSIDE:
        for node in nodes(path):
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


@pytest.mark.slow
def test_every_module_says_what_it_is_for() -> None:
    silent = [str(path) for path in FILES if path.read_text().strip() and not ast.get_docstring(nodes(path)[0])]
    assert silent == []


@pytest.mark.slow
@pytest.mark.parametrize("script", sorted((ROOT / "scripts").glob("*.sh")), ids=lambda path: path.name)
def test_scripts_are_valid_shell(script: Path) -> None:
    subprocess.run(["bash", "-n", str(script)], check=True)
