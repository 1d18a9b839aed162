"""The task sections by name: ours, and those of modules that `task.module` names."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import os
import re
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from swinv2_train.config.errors import ConfigError
from swinv2_train.config.tasks.base import TaskConfig
from swinv2_train.config.tasks.classification import ClassificationConfig
from swinv2_train.config.tasks.simmim import SimMIMConfig

TASK_SECTIONS: dict[str, type[TaskConfig]] = {"simmim": SimMIMConfig, "classification": ClassificationConfig}
"""The section of each task by its name. `sections_of` adds those of the modules that were imported."""
_OURS = frozenset(TASK_SECTIONS)


def task_section(values: Mapping[str, Any]) -> type[TaskConfig]:
    """Return the section class of a task; the module that it is in is imported.

    Args:
        values: the section as plain data; of it `name` and `module` count.

    Raises:
        ConfigError: if there is no such module or no such task.
    """
    name, module = values.get("name"), values.get("module")
    if name in _OURS:
        return TASK_SECTIONS[name]
    if module is not None:
        found = sections_of(module)
        if name not in found:
            raise ConfigError("task.name", name, f"task.module={module} has no such task; it has {', '.join(found)}")
        return found[name]
    if name not in TASK_SECTIONS:
        options = ", ".join(TASK_SECTIONS)
        fix = f"there is no such task; take one of {options}, or set task.module to the module of your own"
        raise ConfigError("task.name", name, fix)
    return TASK_SECTIONS[name]


def sections_of(module: str) -> dict[str, type[TaskConfig]]:
    """Import a module and return the task sections in it by name.

    Raises:
        ConfigError: if it cannot be imported, has no task, or has one with a name of ours.
    """
    if not isinstance(module, str) or not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*", module):
        raise ConfigError("task.module", module, "is not the name of a Python module, such as my_package.my_task")
    try:
        with _without_working_directory():
            content = vars(importlib.import_module(module))
    except ModuleNotFoundError as error:
        if error.name is None or f"{module}.".startswith(f"{error.name}."):
            fix = (
                "is not on the import path: install it, or add its folder to PYTHONPATH (files in the working "
                "directory do not count)"
            )
        else:
            fix = f"needs {error.name}, which is not installed"
        raise ConfigError("task.module", module, fix) from error
    except Exception as error:  # a module of the user's may raise anything
        reason = " ".join(str(error).split())
        raise ConfigError("task.module", module, f"cannot be imported ({type(error).__name__}: {reason})") from error
    sections = [each for each in content.values() if _is_section(each) and each not in TASK_SECTIONS.values()]
    found = {name: section for section in sections if (name := _name_of(section))}
    known = {name: section for name, section in TASK_SECTIONS.items() if section in content.values()}
    for name, section in found.items():
        where = f"{section.__module__}.{section.__name__}"
        if name in _OURS:
            raise ConfigError("task.module", module, f"{where} has the name of our task {name}; give it another")
        if not section.IMPLEMENTATION:
            raise ConfigError("task.module", module, f"{where} has no IMPLEMENTATION, such as 'my_package.task:Task'")
    TASK_SECTIONS.update(found)
    own = {name: section for name, section in (known | found).items() if name not in _OURS}
    if not own:
        raise ConfigError("task.module", module, "defines no task: a subclass of TaskConfig with a name")
    return own


def _is_section(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, TaskConfig) and value is not TaskConfig


def _name_of(section: type[TaskConfig]) -> str:
    return next((str(spec.default) for spec in dataclasses.fields(section) if spec.name == "name"), "")


@contextlib.contextmanager
def _without_working_directory() -> Iterator[None]:
    """Import without the entry that `python -m` and `python -c` put in front: the working directory.

    A folder in PYTHONPATH, or of an installed package, has an entry of its own and stays.
    """
    first = sys.path[0] if sys.path and not sys.flags.safe_path else None
    if first is None or os.path.realpath(first or ".") != os.path.realpath(".") or first in sys.path[1:]:
        yield
        return
    del sys.path[0]
    try:
        yield
    finally:
        sys.path.insert(0, first)
