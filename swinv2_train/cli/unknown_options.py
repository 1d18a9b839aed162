"""Options that a training command does not have, such as --lr 1e-3, because its settings are KEY=VALUE items."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from swinv2_train.cli.arguments import Parser
from swinv2_train.config.explain import has_default, is_group, schema_keys

_OTHER_NAMES = {
    "batch_size": "optim.global_batch", "batch": "optim.global_batch", "wd": "optim.weight_decay",
    "learning_rate": "optim.lr", "output_dir": "run.dir", "output": "run.dir", "out": "run.dir",
    "data": "data.shards", "data_path": "data.shards", "gpus": "launch.nproc_per_node",
    "workers": "data.num_workers", "pretrained": "init_from", "config": "experiment",
}  # fmt: skip
"""Common names of options of other programs, and the keys here."""


class RunParser(Parser):
    """A parser that names the KEY=VALUE item to write instead of an option that does not exist."""

    line: Sequence[str] = ()
    """The complete command line."""

    def error(self, message: str) -> Any:
        """Exit with one sentence."""
        super().error(_reworded(message, self.line))


def item_meant(name: str, value: str) -> str | None:
    """Return the override that an option means, such as +experiment=X or optim.lr=1e-3; None if none is similar."""
    name = _OTHER_NAMES.get(name, name)
    if is_group(name, None):
        return f"{'' if has_default(name) or name == 'pipeline' else '+'}{name}={value}"
    keys = list(schema_keys())
    found = [key for key in keys if name == key] or [key for key in keys if name == key.rpartition(".")[2]]
    return f"{found[0]}={value}" if found else None


def _reworded(message: str, line: Sequence[str]) -> str:
    """Return a message of the parser; if it is about an unknown option, with the item to write instead."""
    found = re.match(r"unrecognized arguments:.*?(?<!\S)(--?[A-Za-z][\w.-]*)", message, re.DOTALL)
    place = next((place for place, word in enumerate(line) if found and word.partition("=")[0] == found[1]), None)
    if found is None or place is None:
        return message
    _, equals, value = line[place].partition("=")
    if not equals:
        after = line[place + 1] if place + 1 < len(line) else ""
        value = "VALUE" if not after or "=" in after or after.startswith("-") else after
    item = item_meant(found[1].lstrip("-").replace("-", "_"), value)
    return f"unknown option {found[1]}{f'; write {item}' if item else ''}"
