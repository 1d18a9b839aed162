"""Errors of Hydra and OmegaConf, rewritten as one sentence with the field, the value, and the fix."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from swinv2_train.config.errors import ConfigError
from swinv2_train.config.schema import Config
from swinv2_train.config.tasks import TASK_SECTIONS

_TYPES = (
    (r"Value '(?P<value>.*)' of type '\w+' could not be converted to Integer", "must be an integer, in digits"),
    (r"Value '(?P<value>.*)' of type '\w+' could not be converted to Float", "must be a number"),
    (r"Value '(?P<value>.*)' is not a valid bool", "must be true or false"),
    (r"[Ff]ield '.*' is not Optional", "cannot be null; omit the key to keep its default"),
    (r"Invalid value assigned: \w+ is not a ListConfig", "must be a list: write [value, value]"),
    (r"Cannot (?:convert|assign) .* to (?:\w+ )?string", "must be a string, not a list or a section"),
    (r"is not a subclass of (?!MISSING)\w+", "is a section; set one of its keys instead"),
    (r"does not support deletion", "cannot be removed; set it to another value"),
)
"""OmegaConf's messages for values of a wrong type, and their replacements."""


def wrong_type(text: str) -> tuple[str, str | None] | None:
    """Return (requirement, value or None) for an OmegaConf type error; None for other errors."""
    for pattern, fix in _TYPES:
        found = re.search(pattern, text)
        if found:
            return fix, found.groupdict().get("value")
    return None


def conf_dir() -> Path:
    """Return the directory of the built-in configs: inside the installed package, or next to it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    for candidate in (package / "conf", package.parent / "conf"):
        if (candidate / "config.yaml").is_file():
            return candidate
    raise ConfigError(
        "", "", f"the installation is broken: no conf/config.yaml in {package} or next to it; install again"
    )


def schema_keys(section: type = Config, prefix: str = "") -> Iterator[str]:
    """Yield every key that a config can contain, dotted, sections and leaves; `task` has the keys of every task."""
    for spec in dataclasses.fields(section):
        yield f"{prefix}{spec.name}"
        if (section, spec.name) == (Config, "task"):
            for task in TASK_SECTIONS.values():
                yield from schema_keys(task, "task.")
            continue
        inner = spec.default_factory if isinstance(spec.default_factory, type) else None
        if inner is not None and dataclasses.is_dataclass(inner):
            yield from schema_keys(inner, f"{prefix}{spec.name}.")


def _closest(key: str) -> str:
    keys = list(schema_keys())
    leaf = key.rsplit(".", 1)[-1]
    match = difflib.get_close_matches(key, keys, n=1, cutoff=0.75)
    match = match or [known for known in keys if known.rsplit(".", 1)[-1] == leaf][:1]
    match = match or difflib.get_close_matches(key, keys, n=1, cutoff=0.5)
    return f"; did you mean {match[0]}?" if match else "; swinv2-train --cfg job prints all keys"


def no_such_key(key: str) -> str:
    """Return the fix for a key that this run's config does not have."""
    owners = [name for name, section in TASK_SECTIONS.items() if key in schema_keys(section, "task.")]
    if owners:
        return f"is a key of task={owners[0]}, and this run has another task: choose a task as a whole, with task=NAME"
    return f"unknown key{_closest(key)}"


def _given(key: str, overrides: Sequence[str]) -> str:
    """Return the value of a key on the command line; the last one wins, as in Hydra."""
    given = (item.split("=", 1)[1] for item in reversed(overrides) if item.lstrip("+~").startswith(f"{key}="))
    return next(given, "?")


def options_of(group: str, config_dir: Path | None) -> list[str]:
    """Return the names in a group, including the user's own."""
    return sorted({path.stem for place in (config_dir, conf_dir()) if place for path in (place / group).glob("*.yaml")})


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
        options = options_of(group, config_dir)
        if not options:
            return ConfigError(group, name, f"there is no config group '{group}'{_closest(group)}")
        return ConfigError(group, name, f"unknown {group}; use one of {', '.join(options)}")
    unknown = re.search(r"Could not override '([^']+)'", text)
    if unknown:
        key = unknown[1]
        value = _given(key, overrides)
        if key.startswith("engine.deepspeed."):
            return ConfigError(key, value, f"add further keys for DeepSpeed with a plus: +{key}={value}")
        if key == "pipeline":
            return ConfigError(key, value, f"is a chain of runs: swinv2-pipeline pipeline={value} runs it")
        if (conf_dir() / key).is_dir():
            return ConfigError(key, value, f"choose from this group with a plus: +{key}={value}")
        return ConfigError(key, value, no_such_key(key))
    if "Config group override must be" in text:
        for item in overrides:
            if item.startswith("="):
                return ConfigError("", item, f"cannot read the override {item!r}: write key=value")
            group, _, name = item.lstrip("+~").partition("=")
            options = options_of(group, config_dir) if group else []
            if options and name not in options:
                return ConfigError(group, name, f"unknown {group}; use one of {', '.join(options)}")
    unset = re.search(r"Environment variable '([^']+)' not found", f"{cause} {text}")
    if unset:
        key = re.search(r"full_key: (\S+)", f"{cause} {text}")
        fix = (
            f"the environment variable {unset[1]} is not set; set it, or add a default: ${{oc.env:{unset[1]},DEFAULT}}"
        )
        return ConfigError(key[1] if key else "", f"${{oc.env:{unset[1]}}}", fix)
    several = re.search(r"Ambiguous value for argument '([^'=]+)=(.*?)'", text, re.DOTALL)
    if several:
        key, value = several[1], several[2]
        fix = "use one of them" if (conf_dir() / key.lstrip("+")).is_dir() else f"a list is {key}=[{value}]"
        return ConfigError("", value, f"{key}={value}: {fix}; -m sweeps over several values")
    absent_key = re.search(r"Could not delete from config\. '([^']+)' does not exist", text)
    if absent_key:
        return ConfigError("", absent_key[1], f"~{absent_key[1]}: {no_such_key(absent_key[1])}")
    for source in (cause, text):
        named = re.search(r"full_key:[ \t]*(\S*)", source)
        if named and (named[1] or file):
            return _of_key(named[1], source, file, overrides)
    if type(error).__name__ == "OverrideParseException":
        wrong = re.search(r"Error parsing override '(.*)'", text)
        item = wrong[1] if wrong else next((one for one in overrides if "=" not in one), " ".join(overrides))
        return ConfigError("", item, f"cannot read the override {item!r}: write key=value, and quote lists and braces")
    return ConfigError("", "", " ".join(text.split()))


def _reason(text: str) -> str:
    """Return the line of an OmegaConf error that states the cause."""
    lines = [line for line in text.splitlines() if not line.startswith("In '")]
    return lines[0].strip() if lines else text


def _of_key(key: str, text: str, file: Path | None, overrides: Sequence[str]) -> ConfigError:
    """Return OmegaConf's error about the value of a key; `file` is the file that sets it, if Hydra names it."""
    wrong = wrong_type(text)
    unknown = re.search(r"Key '([^']+)' not in '", text)
    given = _given(key, overrides)
    value = wrong[1] if given == "?" and wrong and wrong[1] is not None else given
    fix = wrong[0] if wrong else no_such_key(key) if unknown else _reason(text)
    task = _given("task", overrides)
    if file and task != "?" and key.startswith("task."):
        fix = f"{file} sets {key}, which task={task} does not have; choose an experiment for task={task}"
        return ConfigError("task", task, fix)
    if file and given == "?":
        shown = ": ".join([str(file), key] if value == "?" else [str(file), f"{key}={value}"])
        return ConfigError("", key, f"{shown}: {fix}" if key else f"{file}: {fix}")
    if value == "?":
        return ConfigError("", key, f"{key}: {fix}" if key else fix)
    return ConfigError(key, value, fix)
