"""Which parameters train, and how fast: `optim.freeze` and `optim.lr_scales` for the names of a model.

A name of those settings is a module or a parameter as `named_parameters` has it, and stands for all that is below it.
It ends at a dot: `layers.1` is not `layers.10`. `backbone` is the backbone of any model, whatever that calls it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from swinv2_train.config.errors import ConfigError
from swinv2_train.models.backbone import SwinTransformerV2

BACKBONE = "backbone"


def backbone_name(model: nn.Module) -> str | None:
    """The name of the backbone in a model, empty where it is the model itself; None unless there is exactly one."""
    found = [name for name, module in model.named_modules() if isinstance(module, SwinTransformerV2)]
    return found[0] if len(found) == 1 else None


def below(name: str, prefix: str) -> bool:
    """Whether a parameter is the one of this name, or in the module of this name."""
    return name == prefix or name.startswith(f"{prefix}.")


def joined(prefix: str, name: str) -> str:
    """A name inside a module; the module may be the model itself, whose name is empty."""
    return f"{prefix}.{name}" if prefix else name


def apply_freeze(model: nn.Module, freeze: Any) -> None:
    """Turn off the gradients of what `optim.freeze` names. Call it before an optimizer sees the model.

    Raises:
        ConfigError: for a name that the model has not, or if nothing would train.
    """
    prefixes = frozen_prefixes(model, freeze)
    for name, parameter in model.named_parameters():
        if any(below(name, prefix) for prefix in prefixes):
            parameter.requires_grad_(False)
    if prefixes and not any(parameter.requires_grad for parameter in model.parameters()):
        raise ConfigError("optim.freeze", freeze, "freezes the whole model; leave something to train")


def frozen_prefixes(model: nn.Module, freeze: Any) -> list[str]:
    """The names in the model that `optim.freeze` stands for.

    Raises:
        ConfigError: for a name that the model has not.
    """
    if freeze is None:
        return []
    if isinstance(freeze, Mapping):
        return _first_stages(model, freeze["stages"])
    return list(_resolved(model, "optim.freeze", freeze).values())


def _first_stages(model: nn.Module, count: int) -> list[str]:
    backbone = backbone_name(model)
    if backbone is None:
        raise ConfigError("optim.freeze", f"{{stages:{count}}}", "the model has no backbone, or several; give names")
    parts = ["patch_embed", "absolute_pos_embed", *(f"layers.{stage}" for stage in range(count))]
    prefixes = [joined(backbone, part) for part in parts]
    present = [name for name, _ in model.named_parameters()]
    return [prefix for prefix in prefixes if any(below(name, prefix) for name in present)]


def rate_factors(model: nn.Module, lr_scales: Mapping[str, float] | None) -> dict[str, float]:
    """The factor of `optim.lr_scales` for each parameter that has one, by name; the longest prefix wins.

    Raises:
        ConfigError: for a name that the model has not.
    """
    if not lr_scales:
        return {}
    resolved = _resolved(model, "optim.lr_scales", lr_scales)
    shortest_first = sorted((prefix, lr_scales[given]) for given, prefix in resolved.items())
    return {
        name: factor
        for prefix, factor in shortest_first  # of those that a parameter is below, order by name is order by length
        for name, _ in model.named_parameters()
        if below(name, prefix)
    }


def _resolved(model: nn.Module, key: str, given: Iterable[str]) -> dict[str, str]:
    """For each name of a setting the one in the model."""
    known = _names(model)
    backbone = backbone_name(model)
    found: dict[str, str] = {}
    for name in given:
        own = name
        if name not in known and backbone is not None and below(name, BACKBONE):
            own = backbone + name.removeprefix(BACKBONE)
            own = own if backbone else own.removeprefix(".")
        if own not in known:
            near = difflib.get_close_matches(own, known, n=3, cutoff=0.6) or _roots(known)
            raise ConfigError(key, name, f"is no module or parameter of the model; the nearest are {', '.join(near)}")
        if own in found.values():
            raise ConfigError(key, name, f"is {own} in this model, which is given twice; remove one of the two")
        found[name] = own
    return found


def _names(model: nn.Module) -> list[str]:
    """All names of parameters and of the modules that hold them."""
    names: dict[str, None] = {}
    for name, _ in model.named_parameters():
        parts = name.split(".")
        names.update(dict.fromkeys(".".join(parts[:end]) for end in range(1, len(parts) + 1)))
    return list(names)


def _roots(names: Iterable[str]) -> list[str]:
    return [name for name in names if "." not in name]


def count_trained(model: nn.Module) -> tuple[int, int]:
    """Elements of the parameters that train, and of all."""
    sizes = [(getattr(one, "ds_numel", one.numel()), one.requires_grad) for one in model.parameters()]
    return sum(size for size, trains in sizes if trains), sum(size for size, _ in sizes)


def trained_text(model: nn.Module, freeze: Any, lr_scales: Mapping[str, float] | None) -> list[str]:
    """What `optim.freeze` and `optim.lr_scales` make of a model that they were applied to, in lines for a log."""
    lines = []
    if freeze is not None:
        trained, total = count_trained(model)
        lines.append(f"{trained:,} of {total:,} parameters train; frozen: {', '.join(frozen_prefixes(model, freeze))}")
    if lr_scales:
        named = _resolved(model, "optim.lr_scales", lr_scales)
        factors = ", ".join(f"{prefix} x {lr_scales[given]:g}" for given, prefix in named.items())
        lines.append(f"learning rates by module: {factors}")
    return lines
