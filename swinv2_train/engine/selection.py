"""The parameters that `optim.freeze` and `optim.lr_scales` select, known before a run takes any memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from swinv2_train.config.checks import resolution
from swinv2_train.config.schema import Config

if TYPE_CHECKING:  # a dry run that selects nothing does without torch
    from torch import nn


def selected_model(config: Config) -> nn.Module | None:
    """The model of a run on the meta device, without gradients where it is frozen; None where all trains at one rate.

    Raises:
        ConfigError: if `optim.freeze` or `optim.lr_scales` has a name that the model has not.
    """
    if config.optim.freeze is None and not config.optim.lr_scales:
        return None
    from swinv2_train.interop.load import meta_model
    from swinv2_train.models.trainable import apply_freeze, rate_factors

    model = meta_model(config, resolution(config))
    apply_freeze(model, config.optim.freeze)
    rate_factors(model, config.optim.lr_scales)
    return model
