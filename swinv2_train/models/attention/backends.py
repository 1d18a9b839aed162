"""The table of attention backends."""

from __future__ import annotations

from swinv2_train.config import own_parts
from swinv2_train.models.attention.contract import Backend
from swinv2_train.models.attention.reference import reference_attention
from swinv2_train.models.attention.sdpa import sdpa_attention
from swinv2_train.models.attention.sequential import sequential_attention

BACKENDS: dict[str, Backend] = {
    "reference": reference_attention,
    "sdpa": sdpa_attention,
    "sequential": sequential_attention,
}
"""Backends by the names of `model.attention`; `own_parts.ATTENTION_BACKENDS` lists the same names without torch."""

NOT_COMPILED = frozenset({"sequential"})
"""Backends that run between compiled graphs: a graph of all chunks would be long, and free to keep their scores.

`SwinTransformerV2.compile_blocks` does this. `torch.compile` of an entire model does not, with the same results."""


def backend_of(name: str) -> Backend:
    """Return a backend of `BACKENDS`, or one of the user's modules (`config/own_parts.py`).

    Raises:
        ConfigError: if the function of an own backend does not exist.
    """
    return BACKENDS.get(name) or own_parts.function_of(own_parts.parts("attention")[name])
