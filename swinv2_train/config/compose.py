"""Compose a `Config` from command-line overrides. Hydra runs once, here; no other code sees a DictConfig.

Hydra's own messages describe its machinery. They are replaced by one sentence with the field, the value, and the fix.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from swinv2_train.config.environment import remember, stored, without_missing
from swinv2_train.config.errors import ConfigError
from swinv2_train.config.explain import (
    conf_dir,
    explain,
    must_be_list,
    no_such_key,
    options_of,
    schema_fields,
    wrong_type,
)
from swinv2_train.config.model_name import refuse_other_size, true_name
from swinv2_train.config.override_text import in_grammar, search_path, values_of
from swinv2_train.config.overrides import FIRST_GROUPS, in_order, key_of
from swinv2_train.config.plugins import import_installed, import_plugins, without_imports
from swinv2_train.config.schema import Config, ResumeConfig
from swinv2_train.config.task_module import chosen_section, store_schemas
from swinv2_train.config.tasks import TaskConfig, module_of, task_section
from swinv2_train.config.yaml_lines import not_yaml
from swinv2_train.reading import read_text

_DAMAGED = (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError, AssertionError)
"""Errors of YAML and OmegaConf, in addition to their own base classes, for text that is not a config at all."""


def experiments(config_dir: Path | None = None) -> list[tuple[str, str]]:
    """Return the available experiments as (name, description); the description is the first comment of the file.

    Args:
        config_dir: a directory of the user's own configs, which override built-in ones of the same name.
    """
    found = {}
    for place in (conf_dir(), config_dir):
        for path in sorted((place / "experiment").glob("*.yaml")) if place else ():
            text = path.read_text(errors="replace") if path.is_file() else ""
            lines = [line for line in text.splitlines() if line.startswith("#") and "@package" not in line]
            found[path.stem] = lines[0].lstrip("# ") if lines else ""
    return sorted(found.items())


def _task_section(values: dict[str, Any]) -> type[TaskConfig]:
    return task_section(values if isinstance(values, dict) else {"name": values})


def _reject_unknown(values: Any, section: type, prefix: str) -> None:
    # Hydra accepts `+model.foo=1` silently and the typed conversion then drops it, so check every key again.
    known = {spec.name: spec for spec in dataclasses.fields(section)}
    for key, value in values.items():
        if key not in known:
            raise ConfigError(f"{prefix}{key}", value, no_such_key(f"{prefix}{key}"))
        inner = known[key].default_factory
        if (section, key) == (Config, "task"):
            inner = _task_section(value)
        if isinstance(inner, type) and dataclasses.is_dataclass(inner):
            if not isinstance(value, dict):
                raise ConfigError(f"{prefix}{key}", value, "is a section; set one of its keys instead")
            _reject_unknown(value, inner, f"{prefix}{key}.")


def _resume_section(plain: dict[str, Any], own: Sequence[str]) -> dict[str, Any]:
    """Convert `resume` to a section if it is only a mode, and return the section.

    The command line, config files, and runs of earlier versions may set only the mode.

    Args:
        plain: the config; changed in place.
        own: overrides of keys of the section, which Hydra cannot apply to a mode.
    """
    from omegaconf import OmegaConf

    value = plain.get("resume", {})
    section = value if isinstance(value, dict) else {"mode": value}
    merged = OmegaConf.merge({"resume": section}, _changes(own))
    section = plain["resume"] = OmegaConf.to_container(merged)["resume"]
    if isinstance(section.get("allow"), str):
        raise ConfigError("resume.allow", section["allow"], must_be_list("resume.allow", section["allow"]))
    return section


def _changes(overrides: Sequence[str]) -> Any:
    """Return `key=value` overrides as a config; `resume=auto` sets only the mode, and no other key of the section."""
    from omegaconf import OmegaConf

    changes = OmegaConf.create({})
    for key, value in values_of(overrides):
        only_mode = key == "resume" and not isinstance(value, dict)
        OmegaConf.update(changes, "resume.mode" if only_mode else key, value)
    return changes


def _typed(composed: Any, own: Sequence[str] = (), *, only_read: bool = False) -> Config:
    """Return the typed config of composed or loaded values; `own` as in `_resume_section`.

    Args:
        only_read: the config will not be run, so modules in `imports` are not imported.
    """
    from omegaconf import OmegaConf

    raw = OmegaConf.to_container(composed, resolve=False)
    plain = OmegaConf.to_container(composed, resolve=True)
    resume = _resume_section(plain, own) if isinstance(plain, dict) else {}
    if isinstance(raw, dict):
        raw["resume"] = resume
        if not only_read:
            import_plugins(plain.get("imports") or [])
    _reject_unknown(plain, Config, "")
    # Hydra's result already has the types of the schema; values from a file or a container do not.
    typed = OmegaConf.get_type(composed) is Config
    if not typed or OmegaConf.get_type(composed.task) is not _task_section(plain["task"]):
        base = OmegaConf.structured(Config)
        if "task" in plain:
            base.task = OmegaConf.structured(_task_section(plain["task"]))
        composed = OmegaConf.merge(base, OmegaConf.create(raw))  # keeps the expressions, for `remember`
    config = OmegaConf.to_object(composed)
    assert isinstance(config, Config)
    config.resume = OmegaConf.to_object(OmegaConf.merge({"resume": ResumeConfig}, {"resume": resume}))["resume"]
    config.model.name = true_name(config.model)
    remember(config, raw, to_dict(config))
    if config.task.module is None:  # the task of a module in `imports`; the name alone would not find it again
        config.task.module = module_of(config.task.name)
    return config


_GROUPS = ("model", "task", "data", "optim", "engine", "tracking", "launch")
"""Groups with exactly one choice per run. Others, such as experiments, apply in the order of the command line."""
_CHOSEN = "__chosen__"
_PATHS = (("run", "dir"), ("sweep", "dir"), ("init", "label_map"))
"""Keys of paths in which a `~` is the home directory, as in the paths that are expanded where they are read."""


def _in_effect(overrides: Sequence[str], config_dir: Path | None) -> list[str]:
    """Order overrides so that a group chosen on the command line wins over the keys of an experiment file.

    Hydra loads the group file first and then merges the experiment's own keys over it, so `model=swinv2_large` would
    keep the depths of an experiment that sets them. To prevent this, merge the chosen files again, after the
    experiment and before the remaining overrides.
    """
    from hydra.core.config_store import ConfigStore

    chosen = {}
    for item in overrides:
        group, equals, name = item.partition("=")
        if equals and group in _GROUPS and name in options_of(group, config_dir):
            chosen[group] = name
    ordered = in_order(overrides)
    if not chosen:
        return ordered
    # A task file starts with its schema, whose defaults would undo the experiment's keys, so merge only its own keys.
    node: dict[str, Any] = {"defaults": [f"/{group}/{name}@{group}" for group, name in chosen.items()]}
    if "task" in chosen:
        node = {"defaults": [item for item in node["defaults"] if not item.startswith("/task/")]}
        node["task"] = _own_keys(_group_file("task", chosen["task"], config_dir))
        node["defaults"].append("_self_")
    ConfigStore.instance().store(group=_CHOSEN, name="files", node=node, package="_global_")
    place = next((i for i, item in enumerate(ordered) if key_of(item) not in FIRST_GROUPS), len(ordered))
    return [*ordered[:place], f"+{_CHOSEN}=files", *ordered[place:]]


def _group_file(group: str, name: str, config_dir: Path | None) -> Path:
    places = [place for place in (config_dir, conf_dir()) if place]
    return next(file for place in places if (file := place / group / f"{name}.yaml").is_file())


def _own_keys(path: Path) -> dict[str, Any]:
    import yaml

    values = yaml.safe_load(path.read_text()) or {}
    return {key: value for key, value in values.items() if key != "defaults"}


def compose(overrides: Sequence[str], config_dir: Path | None = None) -> Config:
    """Compose a config from command-line overrides such as `+experiment=simmim_demo optim.lr=1e-3`.

    Args:
        overrides: Hydra overrides.
        config_dir: a directory of the user's own configs, searched before the built-in ones.

    Raises:
        ConfigError: on any wrong key, value, or choice.
    """
    import yaml
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    GlobalHydra.instance().clear()
    modules, items = without_imports(overrides)
    items = in_grammar(items, config_dir)
    own = [item.lstrip("+") for item in items if item.lstrip("+").startswith("resume.")]
    others, mappings = _split_mappings([item for item in items if not item.lstrip("+").startswith("resume.")])
    try:
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            installed = import_installed()
            import_plugins(modules)
            store_schemas(chosen_section(others, config_dir, conf_dir()), config_dir)
            composed = hydra_compose("config", overrides=[*_in_effect(others, config_dir), *search_path(config_dir)])
            _put(composed, mappings)
            config = _typed(composed, own)
            config.imports = list(dict.fromkeys([*config.imports, *modules, *installed]))
    except yaml.YAMLError as error:
        raise ConfigError("", "", not_yaml(error, config_dir)) from error
    except ConfigError:
        raise
    except (UnicodeDecodeError, RecursionError) as error:  # Hydra does not name the file
        raise _unreadable(error, overrides, config_dir) from error
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise explain(error, overrides, config_dir) from error
    _refuse_other_unit(config, overrides)
    _refuse_other_size(config, items)
    for section, key in _PATHS:
        _expand_home(getattr(config, section), key)
    return config


def _unreadable(error: Exception, overrides: Sequence[str], config_dir: Path | None) -> ConfigError:
    """Return the error of a file that is not text, or whose brackets are too many for the parser."""
    chosen = [item for item in overrides if item.startswith(("+", "experiment")) and "=" in item]
    if isinstance(error, RecursionError):
        return ConfigError("", "", f"a config used by {', '.join(chosen) or 'the command'} is nested too deeply")
    places = [place for place in (config_dir, conf_dir()) if place]
    for file in (place / key_of(item) / f"{item.partition('=')[2]}.yaml" for item in chosen for place in places):
        try:
            file.read_bytes().decode()
        except OSError:
            continue
        except UnicodeDecodeError as wrong:
            line = wrong.object[: wrong.start].count(b"\n") + 1
            return ConfigError("", file, f"{file}, line {line}: is not UTF-8; save the file in this encoding")
    return ConfigError("", "", f"a config used by {', '.join(chosen) or 'the command'} is not UTF-8 ({error})")


def _refuse_other_unit(config: Config, overrides: Sequence[str]) -> None:
    """Reject milestones that a recipe sets in epochs if the command line sets the length in steps."""
    optim, given = config.optim, {key_of(item) for item in overrides}
    if optim.schedule != "multistep" or optim.steps is None or "optim.milestones" in given:
        return
    if {"optim.steps", "optim.epochs"} <= given and any(mark < optim.steps for mark in optim.milestones):
        hint = "are epochs in the recipe, and would be steps with optim.steps; give them in steps"
        raise ConfigError("optim.milestones", optim.milestones, hint)


def _refuse_other_size(config: Config, items: Sequence[str]) -> None:
    for _, value in values_of([item for item in items if key_of(item) == "model.name"]):
        refuse_other_size(value, config.model)


def _split_mappings(items: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """Return overrides without those that set a mapping, such as `optim.lr_scales={backbone:0.1}`, and these by key.

    They replace the value of a recipe, like all other overrides; Hydra would add to it, and cannot empty it.

    Raises:
        ConfigError: if another override sets a part of such a mapping, or one empties a section.
    """
    kinds = {key: str(spec.type) for key, spec in schema_fields()}
    others, found = [], {}
    for item in items:
        key, _, text = item.partition("=")
        if kinds.get(key, "").endswith("Config") and text.replace(" ", "") == "{}":
            raise ConfigError(key, text, "is a section, whose keys cannot be removed; set one of them instead")
        if text.lstrip().startswith("{") and (kinds.get(key) == "Any" or kinds.get(key, "").startswith("dict")):
            ((_, found[key]),) = values_of([item])
        else:
            found.pop(key_of(item), None)  # the last one counts
            others.append(item)
    for item in others:
        key = next((key for key in found if key_of(item).startswith(f"{key}.")), None)
        if key is not None:
            raise ConfigError(key, found[key], f"replaces all of it, and {item} sets a part; set all of it in braces")
    return others, found


def _put(config: Any, mappings: Mapping[str, Any]) -> None:
    """Replace values of a composed config."""
    from omegaconf import OmegaConf

    for key, value in mappings.items():
        OmegaConf.update(config, key, value, merge=False)


def _expand_home(section: Any, key: str) -> None:
    path = getattr(section, key)
    if isinstance(path, str) and path.startswith("~"):
        setattr(section, key, os.path.expanduser(path))


def to_yaml(config: Config) -> str:
    """Return the config as YAML for `from_yaml`; values from the environment are stored as expressions."""
    from omegaconf import OmegaConf

    plain = to_dict(config)
    node = OmegaConf.create(plain)
    for key, value in stored(config, plain):
        OmegaConf.update(node, key, value, merge=False)
    return OmegaConf.to_yaml(node)


def from_yaml(path: Path, *, only_read: bool = False) -> Config:
    """Read a `resolved.yaml` written by `to_yaml`.

    Args:
        only_read: the config will not be run, so environment variables may be unset.

    Raises:
        ConfigError: if the file is missing, is not YAML, or contains a key that this version does not know.
    """
    import yaml
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        loaded = OmegaConf.create(read_text(path))
        if only_read:
            loaded = OmegaConf.create(without_missing(OmegaConf.to_container(loaded, resolve=False)))
        return _typed(loaded, only_read=only_read)
    except ConfigError:
        raise
    except FileNotFoundError as error:
        raise ConfigError("", path, f"cannot read the config {path}: {error.strerror}") from error
    except (yaml.YAMLError, OmegaConfBaseException, *_DAMAGED) as error:
        wrong = wrong_type(str(error))
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        if wrong and (key := re.search(r"full_key: (\S+)", str(error))):
            reason = f"{key[1]}={wrong[1] or '?'}: {wrong[0]}"
        raise ConfigError("", path, f"{path} is not a valid config: {reason}") from error


def override(text: str, overrides: Sequence[str]) -> Config:
    """Return a config that `to_yaml` wrote, with some values replaced by plain `key=value` overrides.

    Raises:
        ConfigError: on a wrong key or value.
    """
    import yaml
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        wrong = next((item for item in overrides if "=" not in item or item[0] in "+~"), None)
        if wrong:
            raise ConfigError("", wrong, f"cannot read the override {wrong!r}: only key=value is allowed here")
        modules, others = without_imports(overrides)
        import_plugins(modules)
        others, mappings = _split_mappings(others)
        changed = OmegaConf.merge(OmegaConf.create(text), _changes(others))
        _put(changed, mappings)
        config = _typed(changed)
        config.imports = list(dict.fromkeys([*config.imports, *modules]))
        _refuse_other_size(config, overrides)
        return config
    except ConfigError:
        raise
    except (yaml.YAMLError, OmegaConfBaseException, *_DAMAGED) as error:
        raise explain(error, overrides) from error


def to_dict(section: Any) -> dict[str, Any]:
    """Return a section as plain data, for JSON files and W&B."""
    return dataclasses.asdict(section)


def applied_files(overrides: Sequence[str], config_dir: Path | None = None) -> list[str]:
    """Return the config files that a command line merges, in their order, each with the section that it sets.

    Arguments as for `compose`, which has accepted them.
    """
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.types import RunMode

    GlobalHydra.instance().clear()
    _, items = without_imports([item for item in overrides if not item.startswith("replay=")])
    others = [item for item in in_grammar(items, config_dir) if not item.lstrip("+").startswith("resume.")]
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        store_schemas(chosen_section(others, config_dir, conf_dir()), config_dir)
        loader = GlobalHydra.instance().config_loader()
        found = loader.compute_defaults_list(
            "config", [*_in_effect(others, config_dir), *search_path(config_dir)], RunMode.RUN
        )
    files = [(entry.config_path, entry.package) for entry in found.defaults]
    return [
        f"{path}.yaml -> {package or 'the config'}"
        for path, package in files
        if path and any((place / f"{path}.yaml").is_file() for place in (conf_dir(), config_dir) if place)
    ]
