"""Configs of overrides that only set plain values, in a tenth of the time that Hydra takes for each."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from copy import deepcopy

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from swinv2_train.config.compose import compose
from swinv2_train.config.errors import ConfigError
from swinv2_train.config.schema import Config
from swinv2_train.config.validate import validate


@functools.cache
def _composed(base: tuple[str, ...]) -> DictConfig:
    return OmegaConf.structured(compose(base))


def _sets_a_value(override: Override, config: DictConfig) -> bool:
    key = override.key_or_group
    plain = override.type is OverrideType.CHANGE and not override.is_sweep_override() and "/" not in key
    elsewhere = key.partition(".")[0] in ("resume", "run")  # a mode or a section; a directory that depends on the name
    return plain and not elsewhere and not OmegaConf.is_dict(OmegaConf.select(config, key))


def quickly(base: Sequence[str], overrides: Sequence[str]) -> Config:
    """Return what `compose` returns for `base` and `overrides`, with Hydra only once for each base.

    The values are read by Hydra's grammar and converted to the types of the schema, as Hydra does. Everything else,
    such as groups, new keys, and values of a wrong type, goes to `compose`.
    """
    config = deepcopy(_composed(tuple(base)))
    try:
        for override in OverridesParser.create().parse_overrides(list(overrides)):
            if not _sets_a_value(override, config):
                return compose([*base, *overrides])
            OmegaConf.update(config, override.key_or_group, override.value(), merge=True)
        return OmegaConf.to_object(config)
    except (HydraException, OmegaConfBaseException, ValueError):
        return compose([*base, *overrides])


def assert_refused(base: Sequence[str], overrides: Sequence[str], parts: Sequence[str]) -> None:
    """Check that a config is refused in one sentence with all these parts: field, value, and remedy."""
    with pytest.raises(ConfigError) as caught:
        validate(quickly(base, overrides))
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message
