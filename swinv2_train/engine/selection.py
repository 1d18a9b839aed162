"""What `optim.freeze` and `optim.lr_scales` select, known before a run takes any memory."""

from __future__ import annotations

from typing import NamedTuple

from swinv2_train.config.checks import resolution
from swinv2_train.config.schema import Config


class Selection(NamedTuple):
    """What trains, and how fast."""

    frozen: int = 0
    """Number of parameters that do not train."""
    lines: tuple[str, ...] = ()
    """The selection in lines for a log; empty where all trains at one rate."""


def selection(config: Config) -> Selection:
    """What a config selects, from its model on the meta device; torch-free where it selects nothing.

    Raises:
        ConfigError: if `optim.freeze` or `optim.lr_scales` has a name that the model has not.
    """
    if config.optim.freeze is None and not config.optim.lr_scales:
        return Selection()
    from swinv2_train.interop.load import meta_model
    from swinv2_train.models.trainable import apply_freeze, count_trained, rate_factors, trained_text

    model = meta_model(config, resolution(config))
    apply_freeze(model, config.optim.freeze)
    rate_factors(model, config.optim.lr_scales)
    trained, total = count_trained(model)
    return Selection(total - trained, tuple(trained_text(model, config.optim.freeze, config.optim.lr_scales)))
