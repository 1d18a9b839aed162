"""Overrides of a command line: their keys, their order, and rejection of repeated keys."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from swinv2_train.config.errors import ConfigError

if TYPE_CHECKING:
    from swinv2_train.config.schema import OptimConfig

FIRST_GROUPS = ("experiment", "sweep")
"""Groups whose files are applied before all other choices and values of the command line."""
SHARD_KEYS = ("data", "data.shards", "data.eval_shards", "probe", "probe.shards", "probe.eval_shards")
"""Keys whose values are shard patterns, which the shell expands unless they are quoted."""
_MOST_SHOWN = 3


def key_of(item: str) -> str:
    """Return the key of an override, without its prefix (+, ++, ~) and its package."""
    return item.partition("=")[0].lstrip("+~").partition("@")[0]


def in_order(items: Sequence[str]) -> list[str]:
    """Sort overrides into the order in which a run applies them: the experiment, the sweep file, then the rest."""
    places = {name: place for place, name in enumerate(FIRST_GROUPS)}
    return sorted(items, key=lambda item: places.get(key_of(item), len(places)))


def last_of_each(items: Iterable[str]) -> list[str]:
    """Keep the last override of every key, for lists in which a later source replaces an earlier one."""
    kept: dict[str, str] = {}
    for item in items:
        kept.pop(key_of(item), None)
        kept[key_of(item)] = item
    return list(kept.values())


def refuse_repeated(items: Iterable[str], *, lists: str = "") -> None:
    """Reject a key that occurs more than once: using the last value would silently ignore the others.

    Args:
        lists: advice for several values, for commands that have a notation for them.

    Raises:
        ConfigError: naming the key and its values.
    """
    given: dict[str, list[str]] = {}
    for item in items:
        if "=" in item or item.startswith("~"):
            given.setdefault(key_of(item), []).append(item.partition("=")[2])
    for key, values in given.items():
        if len(values) < 2:
            continue
        shown = values if len(values) <= _MOST_SHOWN else [*values[: _MOST_SHOWN - 1], "...", values[-1]]
        hint = f"{key} is set {len(values)} times ({', '.join(shown)}); set it once"
        if key in SHARD_KEYS:
            hint += (
                f". If the shell expanded a pattern, put it in single quotes, such as "
                f"{key}='shards/train-{{000000..000011}}.tar'; a list is {key}='[a.tar,b.tar]'"
            )
        elif lists:
            hint += f"; {lists}"
        raise ConfigError("", key, hint)


def refuse_hydra_keys(items: Iterable[str]) -> None:
    """Reject Hydra's own keys, such as `hydra.run.dir`, which only a sweep reads; `hydra.searchpath` has its effect.

    Raises:
        ConfigError: naming the key and its value.
    """
    for item in items:
        key = key_of(item)
        if key.startswith(("hydra.", "hydra/")) and key != "hydra.searchpath":
            hint = "is for several runs (-m) and has no effect on a single one"
            if key.startswith(("hydra.run", "hydra.sweep")):
                hint += ", whose directory is run.dir=DIR"
            raise ConfigError(key, item.partition("=")[2], hint)


def refuse_no_experiment(items: Iterable[str], optim: OptimConfig) -> None:
    """Reject a command line that names no experiment and sets no length either, so that nothing says what to train.

    Raises:
        ConfigError: naming both remedies.
    """
    if optim.steps is None and optim.epochs is None and "experiment" not in map(key_of, items):
        hint = (
            "no experiment is named: add +experiment=NAME, such as +experiment=simmim_demo (swinv2-train --help lists "
            "them), or set the length of your own mixture of groups with optim.epochs or optim.steps"
        )
        raise ConfigError("", "", hint)
