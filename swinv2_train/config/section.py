"""The base of every config section: plain dataclasses that can be frozen.

A `dataclass(frozen=True)` would be the obvious choice, but OmegaConf marks such nodes read-only and then refuses to
merge into them. So freezing is a separate step, taken once the config is complete.
"""

from __future__ import annotations

import dataclasses
from typing import Any


class Section:
    """A dataclass that refuses assignment after `freeze`."""

    def freeze(self) -> None:
        """Reject any further assignment here and in the sections below."""
        for spec in dataclasses.fields(self):
            value = getattr(self, spec.name)
            if isinstance(value, Section):
                Section.freeze(value)  # a section may have a field of this name: `optim.freeze`
        object.__setattr__(self, "_frozen", True)

    def __setattr__(self, name: str, value: Any) -> None:
        if getattr(self, "_frozen", False):
            raise AttributeError(f"the config is frozen: {type(self).__name__}.{name} cannot be changed after start")
        object.__setattr__(self, name, value)


def flat(section: Any, prefix: str = "") -> dict[str, Any]:
    """Return every value of a config by its dotted key."""
    values: dict[str, Any] = {}
    for spec in dataclasses.fields(section):
        value = getattr(section, spec.name)
        inner = dataclasses.is_dataclass(value)
        values.update(flat(value, f"{prefix}{spec.name}.") if inner else {f"{prefix}{spec.name}": value})
    return values
