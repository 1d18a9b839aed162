"""Errors of Hydra and OmegaConf, rewritten as one sentence with the field, the value, and the fix."""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from swinv2_train.config.errors import ConfigError
from swinv2_train.config.schema import Config
from swinv2_train.config.tasks import TASK_SECTIONS
from swinv2_train.config.yaml_lines import at_line, has_keys

_LIST = "must be a list: write [value, value]"
_TYPES = (
    (r"Value '(?P<value>.*)' of type '\w+' could not be converted to Integer", "must be an integer, in digits"),
    (r"Value '(?P<value>.*)' of type '\w+' could not be converted to Float", "must be a number"),
    (r"Value '(?P<value>.*)' is not a valid bool", "must be true or false"),
    (r"[Ff]ield '.*' is not Optional|Incompatible value 'None'", "cannot be null; omit the key to keep its default"),
    (r"Invalid value assigned: \w+ is not a ListConfig", _LIST),
    (r"Cannot (?:convert|assign) .* to (?:\w+ )?string", "must be a string, not a list or a section"),
    (r"is not a subclass of (?!MISSING)\w+", "is a section; set one of its keys instead"),
)
"""OmegaConf's messages for values of a wrong type, and their replacements."""
_GLOBAL_GROUPS = ("experiment", "sweep", "variant")
"""Groups whose files set keys of any section, and therefore need the line `# @package _global_`."""
_PACKAGE_LINE = "# @package _global_"


def wrong_type(text: str) -> tuple[str, str | None] | None:
    """Return (requirement, value or None) for an OmegaConf type error; None for other errors."""
    for pattern, fix in _TYPES:
        found = re.search(pattern, text)
        if found:
            return fix, found.groupdict().get("value")
    return None


def must_be_list(key: str, value: str) -> str:
    """Return the fix of a value of a key that must be a list; of a pair, with its default as an example."""
    lists = (spec.default_factory() for name, spec in schema_fields() if name == key and callable(spec.default_factory))
    pair = next((value for value in lists if isinstance(value, list) and len(value) == 2), None)
    if pair is not None:
        return f"must be a pair of values: write {key}={str(pair).replace(' ', '')}, for example"
    return f"must be a list: write {key}=[{value}]" if re.fullmatch(r"[^][{}()]+", value) else _LIST


def conf_dir() -> Path:
    """Return the directory of the built-in configs: inside the installed package, or next to it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    for candidate in (package / "conf", package.parent / "conf"):
        if (candidate / "config.yaml").is_file():
            return candidate
    raise ConfigError(
        "", "", f"the installation is broken: no conf/config.yaml in {package} or next to it; install again"
    )


def schema_fields(section: type = Config, prefix: str = "") -> Iterator[tuple[str, dataclasses.Field[Any]]]:
    """Yield every key that a config can contain, dotted, with its field; `task` has the keys of every task."""
    for spec in dataclasses.fields(section):
        yield f"{prefix}{spec.name}", spec
        if (section, spec.name) == (Config, "task"):
            for task in TASK_SECTIONS.values():
                yield from schema_fields(task, "task.")
            continue
        inner = spec.default_factory if isinstance(spec.default_factory, type) else None
        if inner is not None and dataclasses.is_dataclass(inner):
            yield from schema_fields(inner, f"{prefix}{spec.name}.")


def schema_keys(section: type = Config, prefix: str = "") -> Iterator[str]:
    """Yield every key that a config can contain, dotted, sections and leaves; `task` has the keys of every task."""
    return (key for key, _ in schema_fields(section, prefix))


def closest_key(key: str) -> str | None:
    """Return the key that a misspelt one most likely means; None if none is similar."""
    keys = list(schema_keys())
    if "." in key:  # a section does not replace a key that is not in it
        keys = [known for known in keys if not any(other.startswith(f"{known}.") for other in keys)]
    leaf = key.rsplit(".", 1)[-1]
    match = difflib.get_close_matches(key, keys, n=1, cutoff=0.75)
    match = match or [known for known in keys if known.rsplit(".", 1)[-1] == leaf][:1]
    match = match or difflib.get_close_matches(key, keys, n=1, cutoff=0.5)
    return match[0] if match else None


def _closest(key: str) -> str:
    match = closest_key(key)
    return f"; did you mean {match}?" if match else "; swinv2-train --cfg job prints all keys"


def no_such_key(key: str) -> str:
    """Return the fix for a key that this run's config does not have."""
    owners = [name for name, section in TASK_SECTIONS.items() if key in schema_keys(section, "task.")]
    if owners:
        return f"is a key of task={owners[0]}, and this run has another task: choose a task as a whole, with task=NAME"
    return f"unknown key{_closest(key)}"


def _given(key: str, overrides: Sequence[str]) -> str:
    """Return the value of a key on the command line; the last one wins, as in Hydra."""
    names = (f"{key}=", "resume=") if key == "resume.mode" else (f"{key}=",)
    given = (item.split("=", 1)[1] for item in reversed(overrides) if item.lstrip("+~").startswith(names))
    return next(given, "?")


def options_of(group: str, config_dir: Path | None) -> list[str]:
    """Return the names in a group, including the user's own."""
    return sorted({path.stem for place in (config_dir, conf_dir()) if place for path in (place / group).glob("*.yaml")})


def is_group(key: str, config_dir: Path | None) -> bool:
    """Return whether a key chooses a file of a group, built-in or the user's own."""
    if not re.fullmatch(r"\w{1,64}", key):  # a dotted key needs no look at the files
        return False
    return any((place / key).is_dir() for place in (config_dir, conf_dir()) if place)


def has_default(group: str) -> bool:
    """Return whether every run has a file of a group, so that a choice from it needs no plus."""
    text = (conf_dir() / "config.yaml").read_text()
    return re.search(rf"^ *- {re.escape(group)}:", text, re.MULTILINE) is not None


def is_choice(group: str, name: str, config_dir: Path | None) -> bool:
    """Return whether a group has a file of a name."""
    places = [place for place in (config_dir, conf_dir()) if place]
    return any(os.path.isfile(place / group / f"{name.removesuffix('.yaml')}.yaml") for place in places)


def unknown_choice(group: str, name: str, config_dir: Path | None) -> str:
    """Return the fix for a name that a group does not have."""
    if group == "pipeline":
        return f"is a chain of runs: swinv2-pipeline pipeline={name} runs it"
    if group == "data" and re.search(r"/|\.tar|\{", name):
        return f"chooses a file of the group data; shards are data.shards='{name}'"
    options = options_of(group, config_dir)
    close = difflib.get_close_matches(name, options, n=1)
    wanted = f"did you mean {close[0]}?" if close else f"use one of {', '.join(options)}"
    return f"unknown {group}; {wanted}"


def _file_of(text: str, config_dir: Path | None) -> Path | None:
    """Return the file that Hydra's message refers to; the user's directory is searched before the built-in one."""
    named = re.match(r"In '([^']+)'", text)
    files = [place / f"{named[1]}.yaml" for place in (config_dir, conf_dir()) if place] if named else []
    return next((file for file in files if file.is_file()), None)


def explain(error: Exception, overrides: Sequence[str], config_dir: Path | None = None) -> ConfigError:
    """Return Hydra's or OmegaConf's error as a one-sentence `ConfigError`."""
    text = str(error)
    cause = str(error.__cause__ or "")
    file = _file_of(text, config_dir)
    absent = re.search(r"Could not load '([^']+)'", text)
    if file and absent:
        return ConfigError("", absent[1], f"{file}: its defaults name {absent[1]}, and there is no such config")
    missing = re.search(r"Could not find '([^']+?)/([^'/]*)'", text)
    if missing:
        group, name = missing[1], missing[2]
        if not options_of(group, config_dir):
            return ConfigError(group, name, f"there is no config group '{group}'{_closest(group)}")
        return ConfigError(group, name, unknown_choice(group, name, config_dir))
    unknown = re.search(r"Could not override '([^']+)'", text)
    if unknown:
        return _not_there(unknown[1], _given(unknown[1], overrides), config_dir)
    present = re.search(r"An item is already at '([^']+)'", text)
    if present:
        item = f"{present[1]}={_given(present[1], overrides)}"
        return ConfigError("", item, f"+{item}: the key already exists; omit the plus: {item}")
    if "Config group override must be" in text:
        for item in overrides:
            group, _, name = item.lstrip("+~").partition("=")
            options = options_of(group, config_dir) if group else []
            if options and name not in options:
                return ConfigError(group, name, unknown_choice(group, name, config_dir))
    unset = re.search(r"Environment variable '([^']+)' not found", f"{cause} {text}")
    if unset:
        key = re.search(r"full_key: (\S+)", f"{cause} {text}")
        fix = (
            f"the environment variable {unset[1]} is not set; set it, or add a default: ${{oc.env:{unset[1]},DEFAULT}}"
        )
        return ConfigError(key[1] if key else "", f"${{oc.env:{unset[1]}}}", fix)
    absent_key = re.search(r"Could not delete from config\. '([^']+)' does not exist", text)
    if absent_key:
        return ConfigError("", absent_key[1], f"~{absent_key[1]}: there is no such key to remove")
    for source in (cause, text):
        named = re.search(r"full_key:[ \t]*(\S*)", source)
        if named and (named[1] or file):
            return _of_key(named[1], source, file, overrides)
    return ConfigError("", "", " ".join(text.split()))


def _not_there(key: str, value: str, config_dir: Path | None) -> ConfigError:
    """Return the error of a key that the config does not have, and that no plus adds."""
    if key.startswith("engine.deepspeed"):
        return ConfigError(key, value, f"add further keys for DeepSpeed with a plus: +{key}={value}")
    if key == "pipeline":
        return ConfigError(key, value, unknown_choice(key, value, config_dir))
    if is_group(key, config_dir):
        return ConfigError(key, value, f"choose from this group with a plus: +{key}={value}")
    if any(other.startswith(f"{key}.") for other in schema_keys()):
        return ConfigError(key, value, "contains a key that does not exist; set its keys one by one")
    return ConfigError(key, value, no_such_key(key))


def _reason(text: str) -> str:
    """Return the line of an OmegaConf error that states the cause."""
    lines = [line for line in text.splitlines() if not line.startswith("In '")]
    reason = lines[0].strip() if lines else text
    absent = re.match(r"Interpolation key '([^']+)' not found", reason)
    if absent:
        return f"there is no key {absent[1]} to refer to; ${{oc.env:NAME}} is a variable of the environment"
    if re.match(r"no viable alternative|mismatched input|token recognition|extraneous input", reason):
        return "cannot be read: ${run.name} refers to a key, and ${oc.env:NAME} to a variable of the environment"
    return reason


def _of_key(key: str, text: str, file: Path | None, overrides: Sequence[str]) -> ConfigError:
    """Return OmegaConf's error about the value of a key; `file` is the file that sets it, if Hydra names it."""
    wrong = wrong_type(text)
    unknown = re.search(r"Key '([^']+)' not in '", text)
    given = _given(key, overrides)
    value = wrong[1] if given == "?" and wrong and wrong[1] is not None else given
    fix = wrong[0] if wrong else no_such_key(key) if unknown else _reason(text)
    if fix == _LIST and value != "?":
        fix = must_be_list(key, value)
    task = _given("task", overrides)
    if file and task != "?" and key.startswith("task."):
        fix = f"{file} sets {key}, which task={task} does not have; choose an experiment for task={task}"
        return ConfigError("task", task, fix)
    if file and unknown and key.partition(".")[0] in _GLOBAL_GROUPS and _PACKAGE_LINE not in file.read_text():
        fix = f"its first line must be '{_PACKAGE_LINE}', because it sets keys of other sections"
        return ConfigError("", file, f"{file}: {fix if has_keys(file) else 'must consist of keys and values'}")
    if file and given == "?":
        place = at_line(file, key)
        shown = ": ".join([place, key] if value == "?" else [place, f"{key}={value}"])
        return ConfigError("", key, f"{shown}: {fix}" if key else f"{place}: {fix}")
    if value == "?":
        return ConfigError("", key, f"{key}: {fix}" if key else fix)
    return ConfigError(key, value, fix)
