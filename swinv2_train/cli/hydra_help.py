"""Hydra's own options of `swinv2-train`: `--info` prints the origin of a config, `--hydra-help` what replaces them."""

from __future__ import annotations

import argparse
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from swinv2_train.config.compose import applied_files
from swinv2_train.config.explain import conf_dir, options_of

_PACKAGES = ("swinv2-train", "torch", "deepspeed", "hydra-core", "omegaconf")
HYDRA_HELP = """\
swinv2-train composes its config with Hydra, once, and then checks and completes it. Hydra's options, and what to use:

  --help, -h            the experiments, examples, and exit codes
  --cfg job             print the complete config; it is always resolved, so --resolve is not needed
  --info                versions, search path, files of the config in their order, and groups
  --multirun, -m        a sweep, one run for each of the values in KEY=A,B; see conf/README.md
  --config-dir DIR      your own configs, searched before the built-in ones
  --config-name, --config-path, --package
                        put your file into DIR/experiment/NAME.yaml and run --config-dir DIR +experiment=NAME
  --run                 the default; run.dir=DIR sets its directory, instead of hydra.run.dir
  --experimental-rerun  run the same command again, which resumes; replay=FILE repeats a rejected step
  --shell-completion    eval "$(register-python-argcomplete swinv2-train)"

Overrides have Hydra's syntax: KEY=VALUE, +KEY=VALUE, ++KEY=VALUE, GROUP=NAME, and ${oc.env:NAME}. Keys of hydra.* apply
only to a sweep (-m)."""


class HydraHelp(argparse.Action):
    """Print `HYDRA_HELP` and exit."""

    def __init__(self, option_strings: Sequence[str], dest: str, **more: Any) -> None:
        super().__init__(option_strings, dest, nargs=0, **more)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        print(HYDRA_HELP)
        parser.exit()


def info(overrides: Sequence[str], config_dir: Path | None) -> str:
    """Return the origin of a config for display.

    Args:
        overrides, config_dir: as for `compose`, which has accepted them.
    """
    packages = ", ".join(f"{name} {_version(name)}" for name in _PACKAGES)
    places = [f"{config_dir.resolve()} (--config-dir)"] if config_dir else []
    groups = sorted({path.name for place in (conf_dir(), config_dir) if place for path in place.iterdir()})
    named = {group: options_of(group, config_dir) for group in groups}
    lines = [
        f"versions       Python {platform.python_version()}, {packages}",
        "search path",
        *(f"  {place}" for place in (*places, f"{conf_dir()} (built in)")),
        "files of the config, in the order in which they are merged; then the keys of the command line",
        *(f"  {line}" for line in applied_files(overrides, config_dir)),
        "groups",
        *(f"  {group:<12} {', '.join(names)}" for group, names in named.items() if names),
    ]
    return "\n".join(lines)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "is not installed"
