"""Composition by Hydra without Hydra's own config, which takes half of the time and is not part of the result."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hydra import compose
from hydra._internal.config_repository import CachingConfigRepository, ConfigRepository
from hydra._internal.defaults_list import create_defaults_list
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

_PRIMARY = "config"
_SEARCH_PATH = "hydra.searchpath"


def hydra_compose(overrides: Sequence[str]) -> Any:
    """Return what `hydra.compose("config", overrides)` returns; Hydra must be initialized.

    Overrides and files that concern Hydra itself, such as those of a sweep, need its config, so it composes them.

    Raises:
        HydraException: as `hydra.compose`.
    """
    try:
        return _without_hydra(list(overrides))
    except OmegaConfBaseException:
        pass
    except HydraException as error:
        if "hydra" not in f"{error} {error.__cause__}":
            raise
    return compose(_PRIMARY, list(overrides))


def _without_hydra(overrides: list[str]) -> Any:
    """Do the steps of `ConfigLoaderImpl._load_configuration_impl` that concern the config of the user."""
    loader = GlobalHydra.instance().config_loader()
    parsed = OverridesParser.create().parse_overrides(overrides=overrides)
    repository = _Repository(ConfigRepository(loader.config_search_path))
    loader._process_config_searchpath(_PRIMARY, parsed, repository)
    loader.validate_sweep_overrides_legal(overrides=parsed, run_mode=RunMode.RUN, from_shell=False)
    chosen = create_defaults_list(repository, _PRIMARY, parsed, prepend_hydra=False, skip_missing=False)
    config = loader._compose_config_from_defaults_list(defaults=chosen.defaults, repo=repository)
    OmegaConf.set_struct(config, True)
    values = [each for each in chosen.config_overrides if each.key_or_group != _SEARCH_PATH]
    loader._apply_overrides_to_config(values, config)
    return config


class _Repository(CachingConfigRepository):
    """A cache of a repository that nothing else uses, and which is therefore not copied, with all schemas."""

    def __init__(self, repository: ConfigRepository) -> None:
        self.delegate = repository
        self.cache = {}
