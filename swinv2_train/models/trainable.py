"""Trained parameters and their learning rates: `optim.freeze` and `optim.lr_scales`, resolved to a model's names.

A name in these settings is a module or a parameter as in `named_parameters`, and includes everything below it. It ends
at a dot: `layers.1` does not match `layers.10`. `backbone` is the backbone of any model, whatever the model calls it.
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
    """Return the name of the backbone in a model, empty if it is the model itself; None unless there is exactly one."""
    found = [name for name, module in model.named_modules() if isinstance(module, SwinTransformerV2)]
    return found[0] if len(found) == 1 else None


def below(name: str, prefix: str) -> bool:
    """Return whether a parameter has this name or is in the module of this name."""
    return name == prefix or name.startswith(f"{prefix}.")


def joined(prefix: str, name: str) -> str:
    """Return a name inside a module; the module may be the model itself, whose name is empty."""
    return f"{prefix}.{name}" if prefix else name


def apply_freeze(model: nn.Module, freeze: Any) -> None:
    """Turn off the gradients of everything that `optim.freeze` names. Call it before creating the optimizer.

    Raises:
        ConfigError: if the model does not have a name, or if nothing would be trained.
    """
    prefixes = frozen_prefixes(model, freeze)
    for name, parameter in model.named_parameters():
        if any(below(name, prefix) for prefix in prefixes):
            parameter.requires_grad_(False)
    if prefixes and not any(parameter.requires_grad for parameter in model.parameters()):
        raise ConfigError("optim.freeze", freeze, "freezes the entire model; at least one parameter must be trained")


def frozen_prefixes(model: nn.Module, freeze: Any) -> list[str]:
    """Return the names in the model that `optim.freeze` refers to.

    Raises:
        ConfigError: if the model does not have a name.
    """
    if freeze is None:
        return []
    if isinstance(freeze, Mapping):
        return _first_stages(model, freeze["stages"])
    return list(_resolved(model, "optim.freeze", freeze).values())


def _first_stages(model: nn.Module, count: int) -> list[str]:
    backbone = backbone_name(model)
    if backbone is None:
        raise ConfigError("optim.freeze", f"{{stages:{count}}}", "the model has no backbone, or several; use names")
    parts = ["patch_embed", "absolute_pos_embed", *(f"layers.{stage}" for stage in range(count))]
    prefixes = [joined(backbone, part) for part in parts]
    present = [name for name, _ in model.named_parameters()]
    return [prefix for prefix in prefixes if any(below(name, prefix) for name in present)]


def rate_factors(model: nn.Module, lr_scales: Mapping[str, float] | None) -> dict[str, float]:
    """Return the `optim.lr_scales` factor of each parameter that has one, by name; the longest prefix wins.

    Raises:
        ConfigError: if the model does not have a name.
    """
    if not lr_scales:
        return {}
    resolved = _resolved(model, "optim.lr_scales", lr_scales)
    shortest_first = sorted((prefix, lr_scales[given]) for given, prefix in resolved.items())
    return {
        name: factor
        for prefix, factor in shortest_first  # among the prefixes of one parameter, sorting by name sorts by length
        for name, _ in model.named_parameters()
        if below(name, prefix)
    }


def _resolved(model: nn.Module, key: str, given: Iterable[str]) -> dict[str, str]:
    """Return a setting's names, each mapped to the name in the model."""
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
            if own != name and backbone:  # show the word that was used
                near = [BACKBONE + each.removeprefix(backbone) if below(each, backbone) else each for each in near]
            raise ConfigError(
                key, name, f"is not a module or parameter of the model; the closest names are {', '.join(near)}"
            )
        if own in found.values():
            raise ConfigError(key, name, f"is {own} in this model, which is set twice; remove one of the two")
        found[name] = own
    return found


def _names(model: nn.Module) -> list[str]:
    """Return all names of parameters and of the modules that contain them."""
    names: dict[str, None] = {}
    for name, _ in model.named_parameters():
        parts = name.split(".")
        names.update(dict.fromkeys(".".join(parts[:end]) for end in range(1, len(parts) + 1)))
    return list(names)


def _roots(names: Iterable[str]) -> list[str]:
    return [name for name in names if "." not in name]


def count_trained(model: nn.Module) -> tuple[int, int]:
    """Return the number of elements of the trained parameters, and of all parameters."""
    sizes = [(getattr(one, "ds_numel", one.numel()), one.requires_grad) for one in model.parameters()]
    return sum(size for size, trains in sizes if trains), sum(size for size, _ in sizes)


def trained_text(model: nn.Module, freeze: Any, lr_scales: Mapping[str, float] | None) -> list[str]:
    """Describe in log lines what `optim.freeze` and `optim.lr_scales` select in a model; both are already applied."""
    lines = []
    if freeze is not None:
        trained, total = count_trained(model)
        lines.append(f"{trained:,} of {total:,} parameters train; frozen: {', '.join(frozen_prefixes(model, freeze))}")
    if lr_scales:
        named = _resolved(model, "optim.lr_scales", lr_scales)
        factors = ", ".join(f"{prefix} x {lr_scales[given]:g}" for given, prefix in named.items())
        lines.append(f"learning rates by module: {factors}")
    return lines
