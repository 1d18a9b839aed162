"""Names of Swin Transformer V2 weights in other libraries, and conversion in both directions.

Canonical names are those of the official code without prefix: `patch_embed.proj.weight`,
`layers.0.blocks.1.attn.qkv.weight`, `layers.0.downsample.reduction.weight`, `norm.weight`, `head.weight`, `mask_token`,
`decoder.0.weight`. The layouts:

- swinv2-train: `backbone.` before the backbone of a classifier, `encoder.` before that of a SimMIM model.
- official (microsoft/Swin-Transformer): canonical, with buffers; SimMIM models have `encoder.` before backbone and mask
  token, and the released ones use `rpe_mlp` for `cpb_mlp`. SatVision-TOA (pytorch-caney) has `norm3` for `enorm`.
- timm (`swin_transformer_v2`): patch merging is at the start of the next stage, the head is `head.fc`.
- huggingface (`Swinv2Model`, `Swinv2ForImageClassification`, `Swinv2ForMaskedImageModeling`): other names throughout,
  with separate query, key, and value.
- torchvision and mmpretrain: see `arrange.py`.

Torch-free: tensors are only split and joined.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from swinv2_train.config.errors import ConfigError
from swinv2_train.config.model import ModelConfig
from swinv2_train.interop import arrange

if TYPE_CHECKING:
    from torch import Tensor

SIMMIM_ONLY = ("mask_token", "decoder.0.weight", "decoder.0.bias")
"""Canonical names of tensors that only a SimMIM model has."""
HEAD = ("head.weight", "head.bias")
"""Canonical names of the classification head."""
_BACKBONE = re.compile(r"(patch_embed|layers|norm|absolute_pos_embed)(\.|$)")
_NO_SIMMIM = ("timm", "torchvision")
HOLD_ANY = ("swinv2-train", "onnx", "torch-export")
"""Export formats that support every model."""
_BUFFERS = ("relative_coords_table", "relative_position_index", "attn_mask", "k_bias")


def has_buffers(names: Iterable[str]) -> bool:
    """Return whether tensors of the official code include those that it computes, which its files hold."""
    return any(name.rpartition(".")[2] in _BUFFERS for name in names)


_NOT_PLAIN = (
    "extra_norm_period", "extra_norm_stage", "norm_placement", "similarity", "position_bias", "absolute_position",
    "temporal_patch",
)  # fmt: skip
"""Fields of the model section that a plain SwinV2 leaves at their defaults."""
_HF_BLOCK = {
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attn.logit_scale": "attention.self.logit_scale",
    "attn.cpb_mlp": "attention.self.continuous_position_bias_mlp",
    "attn.proj": "attention.output.dense",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}
_HF_TOP = {
    "patch_embed.proj": "embeddings.patch_embeddings.projection",
    "patch_embed.norm": "embeddings.norm",
    "absolute_pos_embed": "embeddings.position_embeddings",
    "mask_token": "embeddings.mask_token",
    "norm": "layernorm",
}
_HF_SPLIT = {
    "attn.qkv.weight": ("query.weight", "key.weight", "value.weight"),
    "attn.q_bias": ("query.bias",),
    "attn.v_bias": ("value.bias",),
}
"""Query, key, and value, below `attention.self`; the key has no bias."""


@dataclass
class Located:
    """Location of the canonical tensors in a file."""

    parts: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """By canonical name, the keys of the file whose tensors, joined along their first dimension, form it."""
    arranged: dict[str, arrange.Arrangement] = field(default_factory=dict)
    """By canonical name, the arrangement of those that their tensor in the file does not equal."""
    dropped: list[tuple[str, str]] = field(default_factory=list)
    """Keys that are not weights, each with the reason."""


@dataclass(frozen=True)
class Format:
    """A naming scheme for the weights."""

    name: str
    to_canonical: Callable[[str], str]
    """Canonical name of a key, for keys that denote one complete tensor; an unknown key is returned unchanged."""
    from_canonical: Callable[[str, bool], str] | None
    """Key of a canonical name; the flag indicates a SimMIM model. None for a layout that is only read."""
    fused: bool = True
    """True if query, key, and value are one tensor."""
    plain_only: bool = False
    """True if it supports only the plain SwinV2: no extra norms, no clips, and no other norm, attention, or bias."""
    parts_of: Callable[[str], Mapping[str, arrange.Arrangement]] | None = None
    """Canonical tensors that are made from the one of this name; empty for a name that is canonical."""
    pack: Callable[[Mapping[str, Tensor]], dict[str, Tensor]] | None = None
    """The inverse: canonical tensors in the arrangement of the layout."""

    def locate(self, keys: Iterable[str], names: Mapping[str, str] | None = None) -> Located:
        """Find the canonical tensors among the keys of a file.

        Args:
            names: by key, its name in this layout, if the keys have prefixes (`recognize.py`).

        Raises:
            ConfigError: if two keys denote the same tensor, or a part of a split one is missing.
        """
        found = Located()
        apart: dict[str, dict[str, str]] = {}
        for key in keys:
            if key.rpartition(".")[2] in _BUFFERS:
                found.dropped.append((key, "a buffer, recomputed"))
                continue
            name = self.to_canonical(names[key] if names else key)
            split = None if self.fused else _split_part(name)
            if split:
                apart.setdefault(split[0], {})[split[1]] = key
                continue
            arranged = self.parts_of(name) if self.parts_of else {}
            for made in arranged or (name,):
                if made in found.parts:
                    raise ConfigError("", key, f"{key} and {found.parts[made][0]} both denote {made}")
                found.parts[made] = (key,)
            found.arranged.update(arranged)
        for name, parts in apart.items():
            wanted = _HF_SPLIT[_in_block(name)[1]]
            missing = [part for part in wanted if part not in parts]
            if missing:
                present = next(iter(parts.values()))
                raise ConfigError("", name, f"{present} is present, but its counterpart {missing[0]} is missing")
            found.parts[name] = tuple(parts[part] for part in wanted)
        return found

    def read(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors of this layout under canonical names; buffers are dropped.

        Raises:
            ConfigError: like `locate`.
        """
        located = self.locate(tensors)
        whole = {name: _joined([tensors[key] for key in keys]) for name, keys in located.parts.items()}
        return whole | {name: arranged.take(whole[name]) for name, arranged in located.arranged.items()}

    def write(self, tensors: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
        """Return canonical tensors in this layout. timm and torchvision have no SimMIM model, so mask token and decoder
        are dropped for them.

        Raises:
            ConfigError: if the layout cannot represent something in this model.
        """
        self.check(config)
        simmim = any(name in tensors for name in SIMMIM_ONLY)
        # Hugging Face's bare model has no prefix.
        bare = not simmim and not any(name in tensors for name in HEAD)
        written: dict[str, Tensor] = {}
        for name, tensor in (self.pack(tensors) if self.pack else tensors).items():
            if self.name in _NO_SIMMIM and name in SIMMIM_ONLY:
                continue
            for key, part in self._pieces(name, tensor, simmim):
                written[key.removeprefix("swinv2.") if bare else key] = part.contiguous()
        return written

    def check(self, config: ModelConfig) -> None:
        """Reject a model that this layout cannot represent.

        Raises:
            ConfigError: naming the field.
        """
        if self.from_canonical is None:
            raise ConfigError("", self.name, f"the layout of {self.name} is only read, not written")
        if not self.plain_only:
            return
        plain = ModelConfig(name="plain")
        for key in _NOT_PLAIN:
            value = getattr(config, key, None)
            if value != getattr(plain, key, None):
                hint = (
                    f"the layout of {self.name} does not support it; {', '.join(HOLD_ANY[:-1])} and {HOLD_ANY[-1]} do"
                )
                raise ConfigError(f"model.{key}", value, hint)

    def _pieces(self, name: str, tensor: Tensor, simmim: bool) -> Iterable[tuple[str, Tensor]]:
        assert self.from_canonical is not None  # rejected by `check`
        place, rest = _in_block(name)
        if self.fused or rest not in _HF_SPLIT:
            return [(self.from_canonical(name, simmim), tensor)]
        keys = [f"swinv2.encoder.{place}attention.self.{part}" for part in _HF_SPLIT[rest]]
        return zip(keys, tensor.chunk(len(keys)), strict=True)


def _joined(tensors: list[Tensor]) -> Tensor:
    import torch

    return tensors[0] if len(tensors) == 1 else torch.cat(tensors)


def _in_block(name: str) -> tuple[str, str]:
    """Return `layers.0.blocks.1.` and the rest of a name; an empty string and the name outside of blocks."""
    match = re.match(r"(layers\.\d+\.blocks\.\d+\.)(.+)", name)
    return (match[1], match[2]) if match else ("", name)


def _split_part(name: str) -> tuple[str, str] | None:
    """Return the canonical tensor that a name such as `layers.0.blocks.1.attention.self.key.weight` is a part of, and
    `key.weight`."""
    place, rest = _in_block(name)
    part = rest.removeprefix("attention.self.")
    whole = next((whole for whole, parts in _HF_SPLIT.items() if part in parts), None)
    return (place + whole, part) if place and whole and part != rest else None


def _swap(name: str, table: Mapping[str, str]) -> str:
    """Return the name with a prefix from the table replaced."""
    for old, new in table.items():
        if name == old or name.startswith(f"{old}."):
            return new + name.removeprefix(old)
    return name


def _official_to(key: str) -> str:
    place, rest = _in_block(key.removeprefix("encoder."))
    return place + _swap(rest, {"norm3": "enorm", "attn.rpe_mlp": "attn.cpb_mlp"})


def _official_from(name: str, simmim: bool) -> str:
    return f"encoder.{name}" if simmim and not name.startswith("decoder.") else name


def _own_to(key: str) -> str:
    return key.removeprefix("backbone.").removeprefix("encoder.")


def in_backbone(name: str) -> bool:
    """Return whether a canonical name belongs to the backbone; all others belong to a task."""
    return _BACKBONE.match(name) is not None


def _own_from(name: str, simmim: bool) -> str:
    if not in_backbone(name):
        return name
    return f"encoder.{name}" if simmim else f"backbone.{name}"


def _timm_to(key: str) -> str:
    moved = re.sub(r"^layers\.(\d+)\.downsample\.", lambda match: f"layers.{int(match[1]) - 1}.downsample.", key)
    return re.sub(r"^head\.fc\.", "head.", moved)


def _timm_from(name: str, simmim: bool) -> str:
    moved = re.sub(r"^layers\.(\d+)\.downsample\.", lambda match: f"layers.{int(match[1]) + 1}.downsample.", name)
    return re.sub(r"^head\.", "head.fc.", moved)


def _hf_to(key: str) -> str:
    name = key.removeprefix("swinv2.").removeprefix("encoder.")
    name = re.sub(r"^classifier\.", "head.", name)
    place, rest = _in_block(name)
    return place + _swap(rest, {new: old for old, new in (_HF_BLOCK if place else _HF_TOP).items()})


def _hf_from(name: str, simmim: bool) -> str:
    if name.startswith("decoder."):
        return name
    if name in HEAD:
        return name.replace("head.", "classifier.")
    place, rest = _in_block(name)
    if place or name.startswith("layers."):
        return f"swinv2.encoder.{place}{_swap(rest, _HF_BLOCK)}"
    return f"swinv2.{_swap(name, _HF_TOP)}"


FORMATS: dict[str, Format] = {
    layout.name: layout
    for layout in (
        Format("swinv2-train", _own_to, _own_from),
        Format("official", _official_to, _official_from),
        Format("timm", _timm_to, _timm_from, plain_only=True),
        Format("huggingface", _hf_to, _hf_from, fused=False, plain_only=True),
        Format(
            "torchvision",
            arrange.torchvision_to,
            arrange.torchvision_from,
            plain_only=True,
            parts_of=arrange.torchvision_parts,
            pack=arrange.torchvision_pack,
        ),
        Format("mmpretrain", arrange.mmpretrain_to, None, parts_of=arrange.mmpretrain_parts),
    )
}
"""Layouts by name."""
