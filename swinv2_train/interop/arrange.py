"""Names of torchvision and mmpretrain, and tensors that they store in another arrangement.

- torchvision (`swin_v2_t`, `swin_v2_s`, `swin_v2_b`): stages and patch merging are numbered together below `features`,
  and query, key, and value share one bias, whose key part is set to zero on every call.
- mmpretrain (`SwinTransformerV2`): patch merging is at the start of the next stage, and collects the four patches by
  `nn.Unfold`, which orders its inputs by channel first. The final norm is `norm3`, like the extra norms of the blocks.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

Shape = tuple[int, ...]
_MERGED = [0, 2, 1, 3]
"""Places of the four patches in the order of `nn.Unfold` (row first), in the order of the official code (column
first); its own inverse."""
_TORCHVISION_TOP = {"features.0.0.": "patch_embed.proj.", "features.0.2.": "patch_embed.norm."}
_TORCHVISION_BLOCK = {"mlp.0.": "mlp.fc1.", "mlp.3.": "mlp.fc2."}
_MMPRETRAIN_TOP = {"patch_embed.projection.": "patch_embed.proj.", "norm3.": "norm.", "head.fc.": "head."}
_MMPRETRAIN_BLOCK = {
    "attn.w_msa.": "attn.",
    "ffn.layers.0.0.": "mlp.fc1.",
    "ffn.layers.1.": "mlp.fc2.",
    "norm3.": "enorm.",
}


@dataclass(frozen=True)
class Arrangement:
    """A canonical tensor that is made from one tensor of a file."""

    take: Callable[[Tensor], Tensor]
    """Make it."""
    divides: int
    """A factor of the last dimension of the tensor in the file."""
    dimensions: int
    """Dimensions of the tensor in the file."""
    share: int = 1
    """Divisor of the last dimension."""

    def shape(self, stored: Shape) -> Shape:
        """Return the shape of the canonical tensor.

        Raises:
            ValueError: if the tensor in the file cannot have this arrangement.
        """
        if len(stored) != self.dimensions or stored[-1] % self.divides:
            raise ValueError(f"a last dimension that {self.divides} divides, of {self.dimensions} in all")
        return (*stored[:-1], stored[-1] // self.share)


_QUERY = Arrangement(lambda bias: bias.chunk(3)[0], 3, 1, share=3)
_VALUE = Arrangement(lambda bias: bias.chunk(3)[2], 3, 1, share=3)
_UNFOLDED = Arrangement(
    lambda weight: weight.unflatten(1, (-1, 4))[:, :, _MERGED].transpose(1, 2).flatten(1), divides=4, dimensions=2
)


def torchvision_to(key: str) -> str:
    """Return the canonical name of a key of torchvision."""
    match = re.match(r"features\.([1-9]\d*)\.(.+)", key)
    if not match:
        return _renamed(key, _TORCHVISION_TOP)
    stage, place = divmod(int(match[1]) - 1, 2)
    if place:
        return f"layers.{stage}.downsample.{match[2]}"
    block, _, rest = match[2].partition(".")
    return f"layers.{stage}.blocks.{block}.{_renamed(rest, _TORCHVISION_BLOCK)}"


def torchvision_from(name: str, simmim: bool) -> str:
    """Return the key of a canonical name in torchvision, which has no SimMIM model."""
    match = re.match(r"layers\.(\d+)\.(?:blocks\.(\d+)|downsample)\.(.+)", name)
    if not match:
        return _renamed(name, _inverse(_TORCHVISION_TOP))
    number = 2 * int(match[1]) + 1
    if match[2] is None:
        return f"features.{number + 1}.{match[3]}"
    return f"features.{number}.{match[2]}.{_renamed(match[3], _inverse(_TORCHVISION_BLOCK))}"


def torchvision_parts(name: str) -> dict[str, Arrangement]:
    """Return the canonical tensors inside a tensor of torchvision that is not one itself; empty for all others."""
    place = name.removesuffix("qkv.bias")
    return {} if place == name else {f"{place}q_bias": _QUERY, f"{place}v_bias": _VALUE}


def torchvision_pack(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return canonical tensors with the biases of query, key, and value in one."""
    import torch

    packed = {}
    for name, tensor in tensors.items():
        if name.endswith("attn.q_bias"):
            place = name.removesuffix("q_bias")
            packed[f"{place}qkv.bias"] = torch.cat([tensor, torch.zeros_like(tensor), tensors[f"{place}v_bias"]])
        elif not name.endswith("attn.v_bias"):
            packed[name] = tensor
    return packed


def mmpretrain_to(key: str) -> str:
    """Return the canonical name of a key of mmpretrain."""
    match = re.match(r"stages\.(\d+)\.(?:blocks\.(\d+)|downsample)\.(.+)", key)
    if not match:
        return _renamed(key, _MMPRETRAIN_TOP)
    if match[2] is None:
        return f"layers.{int(match[1]) - 1}.downsample.{match[3]}"
    return f"layers.{match[1]}.blocks.{match[2]}.{_renamed(match[3], _MMPRETRAIN_BLOCK)}"


def mmpretrain_parts(name: str) -> dict[str, Arrangement]:
    """Return the canonical tensor of the same name that a tensor of mmpretrain holds in another order, if it does."""
    return {name: _UNFOLDED} if name.endswith(".downsample.reduction.weight") else {}


def _renamed(name: str, prefixes: Mapping[str, str]) -> str:
    old = next((old for old in prefixes if name.startswith(old)), None)
    return name if old is None else prefixes[old] + name.removeprefix(old)


def _inverse(prefixes: Mapping[str, str]) -> dict[str, str]:
    return {new: old for old, new in prefixes.items()}
