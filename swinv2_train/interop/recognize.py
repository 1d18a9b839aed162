"""Recognition of a Swin Transformer V2 among the keys of a file, below the prefixes of wrappers and of trainers.

`DistributedDataParallel` adds `module.`, `torch.compile` `_orig_mod.`, Lightning the name of an attribute such as
`model.`, and models of several parts `backbone.` or `encoder.`, in any combination.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from swinv2_train.config.errors import ConfigError

_WRAPPERS = {"module", "_orig_mod", "_forward_module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
"""Parts of names that wrappers insert, at any place."""
_USUAL = {"model", "net", "network", "backbone", "encoder", "swinv2"}
"""Usual names of the attribute that holds the model or its backbone."""
_PARTS = {"backbone", "encoder", "swinv2"}
"""Those of the backbone: the rest of the model is outside of it."""
_FIRST = {
    "patch_embed.proj.weight": "official",
    "patch_embed.projection.weight": "mmpretrain",
    "embeddings.patch_embeddings.projection.weight": "huggingface",
    "features.0.0.weight": "torchvision",
}
"""The patch embedding in each family of names, where a model begins."""
_BLOCK = {
    "mmpretrain": "stages.0.blocks.0.attn.w_msa.qkv.weight",
    "huggingface": "encoder.layers.0.blocks.0.layernorm_before.weight",
    "torchvision": "features.1.0.attn.logit_scale",
}
"""A second tensor, because other models have a patch embedding of the same name."""


@dataclass
class Recognized:
    """A model among the keys of a file."""

    layout: str | None = None
    """A key of `names.FORMATS`; None if the model is unknown."""
    names: dict[str, str] = field(default_factory=dict)
    """By key, its name in the model itself."""
    outside: list[tuple[str, str]] = field(default_factory=list)
    """Keys that do not belong to the model, each with the reason."""


def recognize(keys: Iterable[str], path: Path) -> Recognized:
    """Find the model in a file.

    Args:
        path: the file, for messages.

    Raises:
        ConfigError: if it holds several models.
    """
    plain = {key: _without_wrappers(key) for key in keys}
    places = {name.removesuffix(first) for name in plain.values() for first in _FIRST if _ends(name, first)}
    usual = [place for place in places if set(_parts(place)) <= _USUAL]
    found = sorted(usual if len(usual) == 1 else places)
    if len(found) > 1:
        listed = " and ".join(f"{place or 'no prefix'}" for place in found[:2])
        hint = f"{path} holds several models, whose names begin with {listed}; save the tensors of one of them"
        raise ConfigError("", path, hint)
    if not found:
        return Recognized(names=plain)
    prefix = _parts(found[0])
    outer = list(prefix)
    while outer and outer[-1] in _PARTS:
        outer.pop()
    recognized = Recognized()
    for key, name in plain.items():
        parts = _parts(name)
        if parts[: len(outer)] != outer:
            recognized.outside.append((key, f"outside of {'.'.join(outer)}"))
        else:
            recognized.names[key] = ".".join(parts[_common(parts, prefix) :])
    recognized.layout = _layout(set(recognized.names.values()))
    return recognized


def _layout(names: set[str]) -> str | None:
    layout = next(layout for first, layout in _FIRST.items() if first in names)
    if layout != "official":
        return layout if _BLOCK[layout] in names else None
    moved = "layers.0.downsample.reduction.weight" not in names and "layers.1.downsample.reduction.weight" in names
    return "timm" if moved or "head.fc.weight" in names else "official"


def _without_wrappers(key: str) -> str:
    return ".".join(part for part in key.split(".") if part not in _WRAPPERS)


def _ends(name: str, first: str) -> bool:
    return name == first or name.endswith(f".{first}")


def _parts(name: str) -> list[str]:
    return [part for part in name.split(".") if part]


def _common(parts: list[str], prefix: list[str]) -> int:
    """Return the number of leading parts that two names share."""
    number = 0
    while number < min(len(parts), len(prefix)) and parts[number] == prefix[number]:
        number += 1
    return number
