"""Names of models: a name of the paper belongs to one size."""

from __future__ import annotations

import re
from typing import Any

from swinv2_train.config.errors import ConfigError
from swinv2_train.config.model import VARIANTS, ModelConfig

_SHAPE: dict[str, Any] = {"patch_size": 4, "mlp_ratio": 4.0, "extra_norm_period": 0}
"""Values of the paper's sizes in the fields that their entries in `VARIANTS` do not set."""


_OWN = re.compile(r"swinv2_c\d+_d[\d-]+")
"""Names that `name_of_shape` makes."""


def name_of_shape(model: ModelConfig) -> str:
    """Return the paper's name of a model, or else one that states its channels and depths: swinv2_c64_d2-2-6-2."""
    for name in VARIANTS:
        if not differences(model, name):
            return name
    return f"swinv2_c{model.embed_dim}_d{'-'.join(map(str, model.depths))}"


def differences(model: ModelConfig, name: str) -> list[str]:
    """Return the fields in which a model differs from a size of the paper, as `field=value`."""
    wanted = _SHAPE | VARIANTS[name]
    return [f"{key}={getattr(model, key)}" for key, value in wanted.items() if getattr(model, key) != value]


def true_name(model: ModelConfig) -> str:
    """Return the name of a model: its own, unless that states another size."""
    states_size = model.name in VARIANTS or _OWN.fullmatch(model.name)
    return name_of_shape(model) if states_size else model.name


def refuse_other_size(given: str, model: ModelConfig) -> None:
    """Reject a name that the command line sets and that belongs to another size.

    Raises:
        ConfigError: naming the fields that differ.
    """
    if given in VARIANTS and (found := differences(model, given)):
        hint = f"is another size, because this model has {', '.join(found)}; omit it, or choose model={given}"
        raise ConfigError("model.name", given, hint)
