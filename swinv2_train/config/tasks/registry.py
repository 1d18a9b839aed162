"""Task sections by name: the built-in ones, and those of modules that `task.module` or `imports` name."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import os
import re
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from swinv2_train.config import own_parts
from swinv2_train.config.errors import ConfigError
from swinv2_train.config.tasks.base import TaskConfig
from swinv2_train.config.tasks.classification import ClassificationConfig
from swinv2_train.config.tasks.detection import DetectionConfig
from swinv2_train.config.tasks.segmentation import SegmentationConfig
from swinv2_train.config.tasks.simmim import SimMIMConfig
from swinv2_train.config.tasks.video import VideoConfig

TASK_SECTIONS: dict[str, type[TaskConfig]] = {
    "simmim": SimMIMConfig,
    "classification": ClassificationConfig,
    "segmentation": SegmentationConfig,
    "detection": DetectionConfig,
    "video": VideoConfig,
}
"""Section of each task by name. `import_parts` adds those of imported modules."""
_OURS = frozenset(TASK_SECTIONS)
_MODULES: dict[str, str] = {}
"""Module of each task that is not built in."""


def task_section(values: Mapping[str, Any]) -> type[TaskConfig]:
    """Return the section class of a task, importing its module if necessary.

    Args:
        values: the section as plain data; only `name` and `module` are used.

    Raises:
        ConfigError: if the module or the task does not exist.
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
        fix = f"unknown task; use one of {options}, or --import the module of your own"
        raise ConfigError("task.name", name, fix)
    return TASK_SECTIONS[name]


def module_of(name: str) -> str | None:
    """Return the module that the task of a name was imported from; None for a built-in one."""
    return None if name in _OURS else _MODULES.get(name)


def sections_of(module: str) -> dict[str, type[TaskConfig]]:
    """Import a module and return its task sections by name.

    Raises:
        ConfigError: if it cannot be imported, has no task, or has a task with the name of a built-in one.
    """
    own = import_parts(module, "task.module")
    if not own:
        raise ConfigError("task.module", module, "defines no task: a subclass of TaskConfig with a name")
    return own


def import_parts(module: str, key: str) -> dict[str, type[TaskConfig]]:
    """Import a module of the user, make its parts known, and return its task sections by name.

    Args:
        key: the config key that names it.

    Raises:
        ConfigError: if it cannot be imported, or has a part with the name of another one.
    """
    content = _imported(module, key)
    sections = [each for each in content.values() if _is_section(each) and each not in TASK_SECTIONS.values()]
    found = {name: section for section in sections if (name := _name_of(section))}
    known = {name: section for name, section in TASK_SECTIONS.items() if section in content.values()}
    for name, section in found.items():
        where = f"{section.__module__}.{section.__name__}"
        if name in _OURS:
            raise ConfigError(key, module, f"{where} has the name of the built-in task {name}; rename it")
        if key != "task.module" and _MODULES.get(name, module) != module:
            hint = f"{where} has the name of a task of {_MODULES[name]}; rename it"
            raise ConfigError(key, module, hint)
        if not section.IMPLEMENTATION:
            raise ConfigError(key, module, f"{where} has no IMPLEMENTATION, such as 'my_package.task:Task'")
    TASK_SECTIONS.update(found)
    _MODULES.update(dict.fromkeys(found, module))
    own = {name: section for name, section in (known | found).items() if name not in _OURS}
    plugins = tuple(each for each in content.values() if isinstance(each, own_parts.Plugin))
    if own or plugins:
        own_parts.register(module, plugins)
    return own


def _imported(module: str, key: str) -> dict[str, Any]:
    if not isinstance(module, str) or not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*", module):
        raise ConfigError(key, module, "is not the name of a Python module, such as my_package.my_task")
    try:
        with _without_working_directory():
            return vars(importlib.import_module(module))
    except ModuleNotFoundError as error:
        if error.name is None or f"{module}.".startswith(f"{error.name}."):
            fix = (
                "is not on the import path: install it, or add its folder to PYTHONPATH (files in the working "
                "directory do not count)"
            )
        else:
            fix = f"needs {error.name}, which is not installed"
        raise ConfigError(key, module, fix) from error
    except Exception as error:  # a user's module may raise anything
        reason = " ".join(str(error).split())
        raise ConfigError(key, module, f"cannot be imported ({type(error).__name__}: {reason})") from error


def _is_section(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, TaskConfig) and value is not TaskConfig


def _name_of(section: type[TaskConfig]) -> str:
    return next((str(spec.default) for spec in dataclasses.fields(section) if spec.name == "name"), "")


@contextlib.contextmanager
def _without_working_directory() -> Iterator[None]:
    """Exclude the working directory from the import path, which `python -m` and `python -c` put in front.

    A folder in PYTHONPATH or of an installed package has a separate entry and stays.
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
