"""Comparison of two models between which weights are transferred."""

from __future__ import annotations

import math

from swinv2_train.config.model import ModelConfig, extra_norms

_EXTRA_NORMS = ("extra_norm_period", "extra_norm_stage")
_STRUCTURE = (
    "patch_size", "embed_dim", "depths", "num_heads", "mlp_ratio", *_EXTRA_NORMS, "absolute_position",
    "norm_placement", "similarity", "position_bias", "temporal_patch",
)  # fmt: skip
"""Fields of the model section in which both must agree; some of them change no shape, only the meaning."""


def structural_difference(one: ModelConfig, other: ModelConfig) -> str | None:
    """Return the first field of the model section that prevents a transfer of weights from one to the other; None if
    they fit.

    Extra norms are compared by their places, which different values can describe. Weights of images fit any patch of
    clips, because they are inflated.
    """
    for name in _STRUCTURE:
        before, now = getattr(one, name), getattr(other, name)
        if name == "mlp_ratio":
            same = math.isclose(before, now, rel_tol=1e-6)
        else:
            same = before == now or (name in _EXTRA_NORMS and extra_norms(one) == extra_norms(other))
            same = same or (name == "temporal_patch" and not before)
        if not same:
            return name
    return None
