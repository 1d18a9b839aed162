"""Find the module of a custom task before Hydra composes, because its section is part of the schema."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from swinv2_train.config.errors import ConfigError
from swinv2_train.config.override_text import search_path
from swinv2_train.config.overrides import key_of
from swinv2_train.config.plugins import KEY as IMPORTS
from swinv2_train.config.plugins import import_plugins
from swinv2_train.config.schema import Config
from swinv2_train.config.tasks import TASK_SECTIONS, TaskConfig, module_of, sections_of

KEY = "task.module"
_MOST_STUBS = 9


def store_schemas(section: type[TaskConfig] | None, config_dir: Path | None) -> None:
    """Give Hydra the schema and the section of every task.

    Args:
        section: of a custom task: the run has it from the start, so files need not name its schema.
        config_dir: the user's configs; None without any.
    """
    from hydra.core.config_store import ConfigStore

    store = ConfigStore.instance()
    store.store("schema", _schema(section or TaskConfig))
    for name, each in TASK_SECTIONS.items():
        store.store(f"{name}_schema", _section_node(each), group="task")  # the file of a task chooses its section
    own = {name: each for name, each in TASK_SECTIONS.items() if module_of(name)}
    if section is not None:
        own[section().name] = section
    for name, each in own.items():  # task=NAME works without a file of that name; with one, Hydra would warn
        if config_dir is not None and (config_dir / "task" / f"{name}.yaml").is_file():
            store.repo["task"].pop(f"{name}.yaml", None)
        else:
            store.store(name, _section_node(each), group="task")


@cache
def _schema(section: type[TaskConfig]) -> Any:
    """Return the schema of a config as a node, of which Hydra stores copies; to build it takes longer than to copy it.

    `resume` is a mode or a section: see `compose._resume_section`.
    """
    from omegaconf import OmegaConf

    return OmegaConf.structured(Config(task=section(), resume="auto"))


@cache
def _section_node(section: type[TaskConfig]) -> Any:
    from omegaconf import OmegaConf

    return OmegaConf.structured(section)


def chosen_section(overrides: Sequence[str], config_dir: Path | None, conf_dir: Path) -> type[TaskConfig] | None:
    """Return the section of the task whose module an override or a user file names; None for a built-in task.

    Modules in the `imports` of user files are imported. The others, of the command line and of installed packages, are
    imported already.

    Hydra must be initialized.

    Args:
        config_dir: the user's configs; None without any.
        conf_dir: the built-in configs.

    Raises:
        ConfigError: if the module or the task does not exist.
    """
    found = {key_of(item): item.partition("=")[2] for item in overrides if key_of(item) in (KEY, "task.name", "task")}
    files: dict[str, Any] = {}
    if KEY not in found and config_dir is not None and _mentions_module(config_dir):
        files = _files(overrides, config_dir, conf_dir)
        import_plugins(files.get(IMPORTS) or [])
    of_files = files.get("task") if isinstance(files.get("task"), dict) else {}
    name = found.get("task.name") or of_files.get("name") or found.get("task")
    module = found.get(KEY, of_files.get("module"))
    if module in (None, "", "null"):
        return TASK_SECTIONS[name] if name and module_of(name) else None
    sections = sections_of(module)
    if name in sections:
        return sections[name]
    if name in TASK_SECTIONS:  # built-in, so the module is not needed
        return None
    if name and not any((place / "task" / f"{name}.yaml").is_file() for place in (config_dir, conf_dir) if place):
        raise ConfigError("task", name, f"{KEY}={module} has no such task; it has {', '.join(sections)}")
    if len(sections) > 1:
        names = ", ".join(sections)
        raise ConfigError(KEY, module, f"has several tasks ({names}); choose one with task=NAME")
    return next(iter(sections.values()))


def _mentions_module(config_dir: Path) -> bool:
    files = (path for path in config_dir.rglob("*.yaml") if path.is_file())
    return any(re.search(rf"\b(module|{IMPORTS})\b", path.read_text(errors="replace")) for path in files)


def _files(overrides: Sequence[str], config_dir: Path, conf_dir: Path) -> dict[str, Any]:
    """Return the values that the chosen files define, as far as possible without the schema of the task.

    Hydra itself resolves the files, so this also works for recipes that build on others. The schema is left open, and
    schemas that are not registered yet are empty.
    """
    from hydra import compose
    from hydra.core.config_store import ConfigStore
    from hydra.errors import HydraException
    from omegaconf import OmegaConf

    groups = [item for item in overrides if any((place / key_of(item)).is_dir() for place in (config_dir, conf_dir))]
    store, stubs = ConfigStore.instance(), []
    store.store("schema", {})
    for name in TASK_SECTIONS:
        store.store(f"{name}_schema", {"name": name}, group="task")
        store.repo["task"].pop(f"{name}.yaml", None)  # from an earlier composition in this process; the files decide
    try:
        while True:
            try:
                composed = compose("config", [*groups, *search_path(config_dir)])
                break
            except HydraException as error:
                missing = re.search(r"Could not (?:find|load) 'task/([^']+)'", str(error))
                if missing is None or len(stubs) == _MOST_STUBS:
                    return {}  # the composition itself reports it
                stubs.append(missing[1])
                stub = {} if missing[1].endswith("_schema") else {"name": missing[1]}
                store.store(missing[1], stub, group="task")
    finally:
        for name in stubs:  # otherwise a later composition would find a task of this name
            store.repo["task"].pop(f"{name}.yaml", None)
    return OmegaConf.to_container(composed, resolve=False)
