"""The command `swinv2-train`: compose, check, then run here, start ranks, or join ranks that a launcher started."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from swinv2_train.cli.checks import check_memory, finish
from swinv2_train.cli.completion import offer, run_words
from swinv2_train.cli.dry_run import chosen_ranks, show
from swinv2_train.cli.ending import end, end_of_bug, prepare_output
from swinv2_train.cli.hydra_help import HydraHelp, info
from swinv2_train.cli.loading import loading
from swinv2_train.cli.manual import manual
from swinv2_train.cli.plugins import add_imports, as_overrides
from swinv2_train.cli.samples import Samples, count_samples, require_shards
from swinv2_train.cli.unknown_options import RunParser
from swinv2_train.cli.values import file_path
from swinv2_train.config.checks import check_directory
from swinv2_train.config.compose import compose, experiments, from_yaml
from swinv2_train.config.errors import ConfigError
from swinv2_train.config.override_text import plain_text
from swinv2_train.config.overrides import refuse_hydra_keys, refuse_no_experiment, refuse_repeated
from swinv2_train.config.paths import user_path
from swinv2_train.config.schema import Config
from swinv2_train.config.validate import validate
from swinv2_train.engine.identity import check_same_run, refuse_used, run_identity
from swinv2_train.engine.origin import origin_of
from swinv2_train.errors import MainRankError, RunError
from swinv2_train.exit_codes import FAILED, FINISHED, INTERRUPTED, STOPPED, code_of
from swinv2_train.imports import lean_imports
from swinv2_train.launch.environment import adopt_forwarded, adopt_slurm, joined, prepare, read_env_file
from swinv2_train.launch.signals import StopRequest
from swinv2_train.launch.status import read_status
from swinv2_train.redact import redact
from swinv2_train.shortage import remedied, shortage

if TYPE_CHECKING:
    from swinv2_train.data.configured import OpenedSets
    from swinv2_train.data.shards import ShardSet

USAGE = "swinv2-train [+experiment=NAME] [KEY=VALUE ...] [options]"
EXAMPLES = """\
examples:
  swinv2-train +experiment=simmim_demo
  swinv2-train +experiment=own_simmim images=my-images run.dir=runs/mine
  swinv2-train +experiment=simmim_tiny data.shards='shards/train-{000000..000011}.tar' optim.epochs=100 \\
      optim.milestones=[87]
  swinv2-train +experiment=simmim_giant launch.dry_run=true
  deepspeed --num_accelerators 8 --module swinv2_train.cli.train +experiment=simmim_base data.shards=...
  swinv2-train +experiment=in1k_base_256 data.shards=... init_from=outputs/supervised_base_22k
  swinv2-train -m +sweep=lr_wd +experiment=simmim_demo
  swinv2-train -m +experiment=simmim_demo optim.lr=1e-3,5e-4 seed=0,1
  swinv2-train replay=outputs/simmim_demo/incidents/step-00000123-batch-00000122.json

Rerun the same command to resume the run in its run.dir (default outputs/NAME).
Exit codes: 0 finished, 1 failed, 2 usage error, 75 stopped by a signal after saving (rerun the command to resume),
130 interrupted immediately."""


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line; print help and exit if requested."""
    listed = "\n".join(f"  {name:<16} {line}" for name, line in experiments(_own_configs(argv)))
    parser = RunParser(
        prog="swinv2-train",
        usage=USAGE,
        description="Train Swin Transformer V2 under DeepSpeed ZeRO: SimMIM, supervised training, fine-tuning.",
        epilog=f"experiments:\n{listed}\n\n{EXAMPLES}\n\n{manual('conf')}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="config values, and +experiment=NAME")
    parser.add_argument("--cfg", choices=["job"], help="print the complete config and the derived values, and exit")
    parser.add_argument("--config-dir", type=file_path, metavar="DIR", help="your own configs (DIR/experiment/*.yaml)")
    parser.add_argument(
        "-m", "--multirun", action="store_true", help="a sweep: one run for each of the values in KEY=A,B,..."
    )
    add_imports(parser, "tasks, transforms, attention backends, and decoders")
    parser.add_argument("--info", action="store_true", help="print the origin of the config, and exit")
    parser.add_argument("--hydra-help", action=HydraHelp, help="print what replaces Hydra's options, and exit")
    parser.add_argument("--version", action="version", version=_version())
    parser.add_argument("--resolved", type=file_path, help=argparse.SUPPRESS)
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)
    offer(parser, run_words)
    parser.line = argv
    arguments = parser.parse_intermixed_args(argv)
    arguments.overrides += as_overrides(arguments)
    return arguments


def _own_configs(argv: Sequence[str]) -> Path | None:
    """Return the value of --config-dir before the command line is parsed, for the help text."""
    values = [*argv, ""]
    given = [after for before, after in pairwise(values) if before == "--config-dir"]
    given += [item.partition("=")[2] for item in argv if item.startswith("--config-dir=")]
    return Path(given[-1]) if given else None


def _version() -> str:
    from importlib.metadata import version

    return f"swinv2-train {version('swinv2-train')}"


def load(arguments: argparse.Namespace) -> Config:
    """Return the config of a command line, checked but not complete: data and weights may have to fill in values.

    Raises:
        ConfigError: if it cannot be run.
    """
    if arguments.config_dir and not arguments.config_dir.is_dir():
        raise ConfigError("", arguments.config_dir, f"--config-dir {arguments.config_dir}: no such directory")
    refuse_repeated(arguments.overrides, lists="-m KEY=A,B sweeps over several values")
    refuse_hydra_keys(arguments.overrides)
    incident = [item.partition("=")[2] for item in arguments.overrides if item.startswith("replay=")]
    if arguments.resolved:
        config = from_yaml(arguments.resolved)
    elif incident:
        from swinv2_train.engine.incidents import replay_config

        if arguments.config_dir:
            hint = "a replay uses the config of its run; omit --config-dir"
            raise ConfigError("", arguments.config_dir, f"--config-dir {arguments.config_dir}: {hint}")
        others = [item for item in arguments.overrides if not item.startswith("replay=")]
        config = replay_config(user_path(plain_text(incident[-1])), others)
    else:
        config = compose(arguments.overrides, arguments.config_dir)
        refuse_no_experiment(arguments.overrides, config.optim)
        of_sweep = next(
            (item for item in arguments.overrides if item.lstrip("+").startswith(("sweep=", "sweep."))), None
        )
        if of_sweep and config.sweep.job is None:
            raise ConfigError("", of_sweep, f"{of_sweep} applies to several runs: add -m")
    only_show = bool(arguments.cfg or arguments.info or config.launch.dry_run)
    if config.images is not None:
        from swinv2_train.cli.images import use_images

        use_images(config, arguments.overrides, only_show=only_show)
    validate(config)
    check_directory("run.dir", config.run.dir, written=not only_show)
    if config.launch.env_file:
        read_env_file(Path(config.launch.env_file))  # report errors here, and not on every rank
    return config


def run(config: Config, stop: StopRequest | None, *, launched: bool) -> int:
    """Execute a checked config and return the exit code.

    Args:
        stop: stop requests to this rank, if a launcher has started it.
        launched: True if this is a rank that the command itself has started.
    """
    directory = Path(config.run.dir)
    again = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
    if again and read_status(directory).get("status") == "stopped":
        return STOPPED  # torchrun treats a stopped run as a failure and restarts it
    if joined():
        return _run_rank(config, stop, launched=launched, begins=not (launched or again))
    samples = _check(config)
    with _only_start(config):
        code = _launch(config, samples)
        if code is not None:
            return code
        assert samples.shards is not None  # `_check` requires them
        opened = (samples.shards, samples.held_out)
        return _train(config, stop, prepare(config.launch), begins=True, opened=opened)


def _run_rank(config: Config, stop: StopRequest | None, *, launched: bool, begins: bool) -> int:
    """Run one rank of a job, whose main rank opens the data for all; an error here reaches the other ranks too.

    Args:
        begins: as in `swinv2_train.engine.run.train`.
    """
    environment = prepare(config.launch)
    _say_loading(config)
    problem = None
    try:
        require_shards(config)
        if launched:
            config.freeze()  # the command that started this rank has completed and checked it
        else:
            refuse_used(config)
    except Exception as error:
        if code_of(error) is None:
            raise
        problem = error
    complete = None if launched else partial(_complete, config)
    return _train(config, stop, environment, problem, begins=begins, complete=complete)


@contextlib.contextmanager
def _only_start(config: Config) -> Iterator[None]:
    """Keep other commands out of the run directory until this one has reported how the run ended.

    Raises:
        ConfigError: if another is active there, or has used the directory in the meantime and `resume.mode` is never.
    """
    if config.launch.preflight_only:
        yield
        return
    from swinv2_train.launch.lock import StartLock

    directory = Path(config.run.dir)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = StartLock(directory)
    except OSError as error:
        raise ConfigError("run.dir", directory, f"cannot be written to ({remedied(error)})") from error
    try:
        refuse_used(config)
        yield
    finally:
        lock.release()


def _train(
    config: Config,
    stop: StopRequest | None,
    environment: Sequence[str],
    problem: Exception | None = None,
    *,
    begins: bool,
    opened: OpenedSets | None = None,
    complete: Callable[[ShardSet], None] | None = None,
) -> int:
    """Train on this rank; arguments as in `swinv2_train.engine.run.train` and its `Data`."""
    requests = stop or StopRequest()
    try:
        with lean_imports():
            from swinv2_train.engine.run import Data, train

        return train(config, requests, environment, problem, begins=begins, data=Data(opened, complete))
    finally:
        if stop is None:
            requests.restore()


def _check(config: Config) -> Samples:
    """Complete and freeze a config, and check that its data exists and that its directory belongs to this run."""
    from swinv2_train.data.channel_statistics import check_held_out_channels

    samples = count_samples(config, required=True)
    refuse_used(config)
    assert samples.shards is not None  # `required=True` above
    _complete(config, samples.shards)
    check_held_out_channels(config, samples.held_out.card if samples.held_out else None)
    return samples


def _complete(config: Config, shards: ShardSet) -> None:
    """Complete and freeze a config from its training shards, and check that its directory belongs to this run."""
    from_data = config.task.open_fields()
    finish(config, shards.card)
    place = origin_of(config)
    check_same_run(place.run_dir, run_identity(config, shards, from_data), place.step)


def _launch(config: Config, samples: Samples) -> int | None:
    """Start the ranks if several are needed and return their exit code. None: this process is the only rank."""
    launch = config.launch
    if launch.hostfile:
        from swinv2_train.launch.hosts import DEFAULT_PORT, launch_on_hosts, read_hostfile

        hosts = read_hostfile(Path(launch.hostfile))
        check_memory(config, sum(host.slots for host in hosts), samples)
        _say_loading(config)
        return launch_on_hosts(config, hosts, launch.master_port or DEFAULT_PORT)
    if launch.nproc_per_node:
        check_memory(config, launch.nproc_per_node, samples)  # errors are reported before torch is imported
    device, num_ranks = chosen_ranks(launch)
    check_memory(config, num_ranks, samples)
    _say_loading(config)
    if num_ranks == 1:
        return None
    from swinv2_train.launch.environment import free_port
    from swinv2_train.launch.launcher import launch as launch_here

    return launch_here(config, num_ranks, device, launch.master_port or free_port())


def _say_loading(config: Config) -> None:
    loading("swinv2-train", f"{config.run.name} in {config.run.dir}")


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of `swinv2-train`."""
    prepare_output()
    arguments = parse(sys.argv[1:] if argv is None else argv)
    stop: StopRequest | None = None
    try:
        if arguments.resolved:
            adopt_forwarded(arguments.resolved)
        adopt_slurm()
        if joined() and not arguments.multirun:
            stop = StopRequest()  # before anything slow, so that no signal is lost
        if arguments.multirun:
            from swinv2_train.cli.sweep import run as run_sweep

            end(run_sweep(arguments), whole_process=argv is None)
        config = load(arguments)
        if arguments.info:
            print(redact(info(arguments.overrides, arguments.config_dir)))
            code = FINISHED
        elif arguments.cfg == "job" or config.launch.dry_run:
            place = ["--config-dir", str(arguments.config_dir)] if arguments.config_dir else []
            code = show(config, [*place, *arguments.overrides], print_config=arguments.cfg == "job")
        else:
            code = run(config, stop, launched=arguments.resolved is not None)
    except KeyboardInterrupt:
        code = INTERRUPTED
    except Exception as error:
        text = shortage(error)
        code = FAILED if text else code_of(error)
        if code is None:
            code = end_of_bug(error)
        else:
            _complain(error if text is None else RunError(text))
    finally:
        if stop is not None:
            stop.restore()
    end(code, whole_process=argv is None)


def _complain(error: Exception) -> None:
    if not isinstance(error, MainRankError):
        print(redact(f"swinv2-train: {error}"), file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
