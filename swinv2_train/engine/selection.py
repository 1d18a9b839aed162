"""Effect of `optim.freeze` and `optim.lr_scales`, known before a run allocates memory."""

from __future__ import annotations

from typing import NamedTuple

from swinv2_train.config.checks import resolution
from swinv2_train.config.schema import Config


class Selection(NamedTuple):
    """Trained parameters and their rates."""

    frozen: int = 0
    """Number of parameters that are not trained."""
    lines: tuple[str, ...] = ()
    """Description in log lines; empty if everything is trained at the same rate."""


def selection(config: Config) -> Selection:
    """Return the selection of a config, from its model on the meta device; torch-free if it selects nothing.

    Raises:
        ConfigError: if `optim.freeze` or `optim.lr_scales` has a name that the model does not have.
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
