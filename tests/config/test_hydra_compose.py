"""Composition without Hydra's own config: the same values and errors as those of Hydra, in half of the time."""

from __future__ import annotations

from pathlib import Path

import pytest

from swinv2_train.config import hydra_compose
from swinv2_train.config.compose import compose, to_yaml
from swinv2_train.config.errors import ConfigError

OWN = """\
# @package _global_
# My recipe.
defaults:
  - simmim_tiny
  - _self_
optim:
  lr: ${optim.min_lr}
"""


def by_hydra(overrides: list[str]) -> object:
    import hydra

    return hydra.compose("config", list(overrides))


def outcome(overrides: list[str], config_dir: Path | None = None) -> str:
    """The config, or the error."""
    try:
        return to_yaml(compose(overrides, config_dir))
    except ConfigError as error:
        return f"{type(error).__name__}: {error}"


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        ["+experiment=ade20k_tiny_512", "optim.lr=2e-3"],
        ["+experiment=simmim_tiny", "model=swinv2_large", "data.shards=[a,b]"],
        ["+experiment=mine"],
        ["+experiment=simmim_tiny", "+sweep=optuna"],  # it sets keys of Hydra itself
        ["+experiment=simmim_tiny", "hydra.job.name=x"],
        ["+experiment=simmim_tiny", "hydra.job.nam=x"],
        ["+experiment=simmim_tiny", "+hydra=none"],
        ["+experiment=simmim_tiny", "optim.lrr=1"],
        ["+experiment=simmim_tiny", "optim.lr=fast"],
        ["+experiment=simmim_tiny", "model=none"],
        ["+experiment=simmim_tiny", "seed=1,2"],
        ["+experiment=none"],
        ["experiment=simmim_tiny"],
    ],
    ids=" ".join,
)
def test_the_outcome_is_that_of_hydra(overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(OWN)
    found = outcome(overrides, tmp_path)
    monkeypatch.setattr(hydra_compose, "hydra_compose", by_hydra)
    assert outcome(overrides, tmp_path) == found


def test_a_recipe_composes_without_the_config_of_hydra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hydra_compose, "compose", None)
    assert compose(["+experiment=simmim_demo", "optim.lr=2e-3"]).optim.lr == 2e-3
