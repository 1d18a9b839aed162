"""The table of attention backends."""

from __future__ import annotations

from swinv2_train.models.attention.contract import Backend
from swinv2_train.models.attention.reference import reference_attention
from swinv2_train.models.attention.sdpa import sdpa_attention
from swinv2_train.models.attention.sequential import sequential_attention

BACKENDS: dict[str, Backend] = {
    "reference": reference_attention,
    "sdpa": sdpa_attention,
    "sequential": sequential_attention,
}
"""Backends by the names of `model.attention`; `config.model.ATTENTION_BACKENDS` lists the same names without torch."""

NOT_COMPILED = frozenset({"sequential"})
"""Backends that run between compiled graphs: a graph of all chunks would be long, and free to keep their scores.

`SwinTransformerV2.compile_blocks` does this. `torch.compile` of an entire model does not, with the same results."""
