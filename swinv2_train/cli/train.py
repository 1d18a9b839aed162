"""The command `swinv2-train`: compose, check, then run here, start ranks, or join the ranks that a launcher started."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from swinv2_train.config.compose import compose, experiments, from_yaml, to_yaml
from swinv2_train.config.errors import ConfigError
from swinv2_train.config.plan import Plan, make_plan
from swinv2_train.config.schema import Config
from swinv2_train.config.validate import validate
from swinv2_train.engine.identity import check_same_run, is_used
from swinv2_train.exit_codes import FAILED, FINISHED, WRONG_USE

USAGE = "swinv2-train [+experiment=NAME] [KEY=VALUE ...] [options]"
EXAMPLES = """\
examples:
  swinv2-train +experiment=simmim_demo
  swinv2-train +experiment=simmim_tiny data.shards=shards/train-{000000..000011}.tar optim.epochs=100
  swinv2-train +experiment=simmim_giant launch.dry_run=true
  deepspeed --num_accelerators 8 --module swinv2_train.cli.train +experiment=simmim_base data.shards=...

The same command again continues the run in its run.dir (default outputs/NAME).
Exit codes: 0 finished, 1 failed, 2 wrong use, 75 stopped by a signal after saving (run it again to continue)."""


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line; prints help and exits where that is asked for."""
    listed = "\n".join(f"  {name:<16} {line}" for name, line in experiments())
    parser = argparse.ArgumentParser(
        prog="swinv2-train",
        usage=USAGE,
        description="Pretrain Swin Transformer V2 under DeepSpeed ZeRO.",
        epilog=f"experiments:\n{listed}\n\n{EXAMPLES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="config values, and +experiment=NAME")
    parser.add_argument("--cfg", choices=["job"], help="print the whole config and what follows from it, and stop")
    parser.add_argument("--config-dir", type=Path, metavar="DIR", help="your own configs (DIR/experiment/*.yaml)")
    parser.add_argument("--version", action="version", version=_version())
    parser.add_argument("--resolved", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)
    return parser.parse_intermixed_args(argv)


def _version() -> str:
    from importlib.metadata import version

    return f"swinv2-train {version('swinv2-train')}"


def load(arguments: argparse.Namespace) -> Config:
    """The config of a command line, checked and frozen.

    Raises:
        ConfigError: if it cannot be run.
    """
    if arguments.config_dir and not arguments.config_dir.is_dir():
        raise ConfigError("", arguments.config_dir, f"--config-dir {arguments.config_dir}: there is no such directory")
    config = from_yaml(arguments.resolved) if arguments.resolved else compose(arguments.overrides, arguments.config_dir)
    validate(config)
    config.freeze()
    return config


def count_samples(config: Config, *, required: bool) -> tuple[int, str]:
    """Number of training samples, and where the number comes from.

    Raises:
        ConfigError: if there are no shards, and `required` or no expected number.
        DataError: if shards are given that cannot be used.
    """
    from swinv2_train.data.shards import ShardSet

    given = {"data.shards": config.data.shards, "data.eval_shards": config.data.eval_shards}
    counts = {
        key: ShardSet.open(spec, config.data.cache_dir, config.data.cache_gib).num_samples
        for key, spec in given.items()
        if spec
    }
    if "data.shards" in counts:
        return counts["data.shards"], "counted in data.shards"
    if required or config.data.expected_samples is None:
        raise ConfigError(
            "data.shards",
            "''",
            "is empty; give tar files of images, such as data.shards=shards/train-*.tar (swinv2-data pack makes them)",
        )
    return config.data.expected_samples, "data.expected_samples; data.shards is not set"


def _show(config: Config, plan: Plan, samples_from: str, num_ranks: int, device: str) -> None:
    from swinv2_train.engine.launcher import launch_command, launch_environment, shown
    from swinv2_train.planner.describe import describe

    print(describe(config, plan, samples_from))
    if num_ranks == 1:
        print("commands       none: one rank runs inside this command")
    else:
        resolved = Path(config.run.dir) / "resolved.yaml"
        command = launch_command(num_ranks, resolved, config.launch.master_port or "PORT")
        print(f"commands       {shown(command, launch_environment(device, num_ranks))}")


def run(config: Config, *, print_config: bool, launched: bool) -> int:
    """Do what a checked config asks for; returns the exit code.

    Args:
        print_config: print the config and what follows from it, and do no more.
        launched: whether this is a rank that the command itself has started.
    """
    if print_config:
        print(to_yaml(config))
    show_only = print_config or config.launch.dry_run
    num_samples, samples_from = count_samples(config, required=not show_only)
    directory = Path(config.run.dir)
    # A rank of our own finds what the command that started it has just written.
    if config.resume == "never" and not launched and is_used(directory):
        raise ConfigError(
            "resume",
            "never",
            f"the directory {directory} holds a run already; take another run.dir, or resume=auto to continue it",
        )
    check_same_run(directory, config, num_samples)
    if launched or ("RANK" in os.environ and "WORLD_SIZE" in os.environ):
        from swinv2_train.engine.run import train

        return train(config)

    device, available = _accelerators(config.launch.device)
    num_ranks = config.launch.nproc_per_node or available
    plan = make_plan(config, num_ranks, num_samples)
    if show_only:
        _show(config, plan, samples_from, num_ranks, device)
        return FINISHED
    if num_ranks > 1:
        from swinv2_train.engine.launcher import launch
        from swinv2_train.engine.ranks import free_port

        directory.mkdir(parents=True, exist_ok=True)
        resolved = directory / "resolved.yaml"
        resolved.write_text(to_yaml(config))
        return launch(config, num_ranks, device, resolved, config.launch.master_port or free_port())

    from swinv2_train.engine.run import train

    return train(config)


def _accelerators(wanted: str) -> tuple[str, int]:
    """The device type of a run without a launcher, and how many ranks this machine has for it."""
    import torch

    available = torch.cuda.device_count() if wanted != "cpu" else 0
    if wanted == "cuda" and not available:
        raise ConfigError("launch.device", "cuda", "no CUDA device is visible here; take launch.device=cpu")
    return ("cuda", available) if available else ("cpu", 1)


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of `swinv2-train`."""
    arguments = parse(sys.argv[1:] if argv is None else argv)
    try:
        config = load(arguments)
        code = run(config, print_config=arguments.cfg == "job", launched=arguments.resolved is not None)
    except Exception as error:
        code = exit_code(error)
        if code is None:
            raise
        print(f"swinv2-train: {error}", file=sys.stderr, flush=True)
    sys.exit(code)


def exit_code(error: Exception) -> int | None:
    """The exit code of an error that is a sentence for a person; None for one that is not."""
    from swinv2_train.checkpoint.errors import CheckpointError
    from swinv2_train.data.errors import DataError
    from swinv2_train.errors import RunError

    if isinstance(error, (ConfigError, DataError)):
        return WRONG_USE
    if isinstance(error, (RunError, CheckpointError, OSError)):
        return FAILED
    return None


if __name__ == "__main__":
    main()
