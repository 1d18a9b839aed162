"""Model fields that must be equal in two models to transfer weights from one to the other."""

from __future__ import annotations

STRUCTURE = (
    "patch_size", "embed_dim", "depths", "num_heads", "mlp_ratio", "extra_norm_period", "absolute_position",
    "norm_placement", "similarity", "position_bias",
)  # fmt: skip
"""Fields of the model section in which source and target must agree; some of them change no shape, only the meaning."""
