"""Text of `launch.dry_run` and `--cfg job`: everything that follows from a config, without a run."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from swinv2_train.checkpoint.identity import identity
from swinv2_train.cli.checks import batch_doubts, finish
from swinv2_train.cli.samples import Samples, count_samples
from swinv2_train.config.compose import to_yaml
from swinv2_train.config.doubts import doubts, doubts_of_data
from swinv2_train.config.plan import Plan, make_plan
from swinv2_train.config.schema import Config, LaunchConfig
from swinv2_train.engine.identity import check_same_run, refuse_used, run_identity, saved_metadata
from swinv2_train.engine.origin import origin_of
from swinv2_train.exit_codes import FINISHED
from swinv2_train.launch.environment import joined
from swinv2_train.redact import redact

if TYPE_CHECKING:
    from swinv2_train.data.card import Card
    from swinv2_train.planner.fit import Gpu


def _show(config: Config, plan: Plan, samples: Samples, device: str, overrides: list[str]) -> None:
    from swinv2_train.engine.selection import selection
    from swinv2_train.launch.launcher import launch_file, rank_command, shown
    from swinv2_train.launch.local_ranks import launch_environment
    from swinv2_train.planner.describe import describe

    print(redact(describe(config, plan, samples.source, *selection(config))))
    if joined():
        print("commands       none: a launcher has started the ranks")
    elif config.launch.hostfile:
        from swinv2_train.launch.hosts import describe_hosts, read_hostfile

        lines = describe_hosts(config, read_hostfile(Path(config.launch.hostfile)), overrides)
        print(redact("\n".join(lines)))
    elif plan.world_size == 1:
        print("commands       none: one rank runs inside this command")
    else:
        command = rank_command(launch_file(Path(config.run.dir)))
        print(f"commands       {plan.world_size} times, once per rank: {shown(command, launch_environment(device))}")


def show(config: Config, overrides: list[str], *, print_config: bool) -> int:
    """Print what would happen; under a launcher, only one rank prints."""
    from swinv2_train.data.channel_statistics import check_held_out_channels, resolve_statistics
    from swinv2_train.tasks.classes import check_held_out_classes, unused_classes

    samples = count_samples(config, required=False)
    from_data = config.task.open_fields()
    # A recipe may be inspected before its weights exist.
    finish(config, samples.card, weights=config.init_from is None or _exists(config.init_from))
    if config.launch.dry_run:  # a config can be printed whether or not it belongs to the run in its directory
        _check_resume(config, samples, from_data)
    if not config.not_packed:
        check_held_out_classes(config, samples.card)
        check_held_out_channels(config, samples.held_out.card if samples.held_out else None)
    if samples.shards is not None:
        resolve_statistics(config.data, samples.card, config.model.in_channels)  # rejects what the run would reject
    from swinv2_train.engine.selection import selection
    from swinv2_train.planner.fit import check_fit

    device, num_ranks = _planned_ranks(config.launch)
    plan = make_plan(config, num_ranks, samples.count)
    if os.environ.get("RANK", "0") == "0":
        if print_config:
            print(redact(to_yaml(config)))
        _show(config, plan, samples, device, overrides)
        unused = [] if config.task.classes is None else unused_classes(config.task.classes, samples.card)
        too_large = check_fit(config, plan, _gpu(config.launch, device, num_ranks), selection(config).frozen)
        place = origin_of(config)
        changed = batch_doubts(config, saved_metadata(place.run_dir, config, place.step))
        of_data = doubts_of_data(config, samples.card)
        for line in [*too_large, *changed, *doubts(config, plan), *unused, *of_data, *samples.warnings]:
            print(redact(f"warning        {line}"))
        for line in _init_lines(config, samples.card):
            print(redact(f"init_from      {line}"))
    return FINISHED


def _check_resume(config: Config, samples: Samples, from_data: Sequence[str]) -> None:
    """Refuse a resume that the run would refuse when it starts. Without shards, the data are not compared.

    Raises ConfigError.
    """
    refuse_used(config)
    place = origin_of(config)
    own = identity(config) if samples.shards is None else run_identity(config, samples.shards, from_data)
    check_same_run(place.run_dir, own, place.step)


def _exists(path: str) -> bool:
    return os.path.exists(os.path.expanduser(path))  # also if it is too long for a path


def _planned_ranks(launch: LaunchConfig) -> tuple[str, int]:
    """Return the device type and the number of ranks of the run that a command line describes."""
    if launch.hostfile and not joined():
        from swinv2_train.launch.hosts import read_hostfile

        return launch.device, sum(host.slots for host in read_hostfile(Path(launch.hostfile)))
    device, num_ranks = chosen_ranks(launch)
    return device, int(os.environ["WORLD_SIZE"]) if joined() else num_ranks


def _gpu(launch: LaunchConfig, device: str, num_ranks: int) -> Gpu | None:
    """Return the GPU of the run with the least memory; None if the run does not use this machine's GPUs."""
    if device != "cuda" or launch.hostfile or launch.gpu_memory_gib is not None:
        return None
    import torch

    from swinv2_train.planner.fit import Gpu

    found = [torch.cuda.get_device_properties(index) for index in range(min(num_ranks, torch.cuda.device_count()))]
    smallest = min(found, key=lambda each: each.total_memory, default=None)
    return None if smallest is None else Gpu(smallest.name, smallest.total_memory)


def _init_lines(config: Config, card: Card | None) -> list[str]:
    """Describe the effect of the weights that the run starts from."""
    source = config.init_from
    if source is None or config.replay:
        return []
    if not _exists(source):
        return [f"{source} does not exist (yet)"]
    place = origin_of(config)
    if saved_metadata(place.run_dir, config, place.step) is not None:
        whose = f"one of {place.run_dir}" if place.branches else "its own checkpoint"
        return [f"{source} applies only to a new run; the one in {config.run.dir} resumes from {whose}"]
    from swinv2_train.engine.init_from import preview
    from swinv2_train.tasks.classes import names_of_classes

    return preview(config, names_of_classes(config, card))


def chosen_ranks(launch: LaunchConfig) -> tuple[str, int]:
    """Return the device type and the number of ranks of a run that this command starts."""
    from swinv2_train.launch.local_ranks import LAUNCH_KEYS, choose_ranks

    return choose_ranks(launch.device, launch.nproc_per_node, LAUNCH_KEYS, only_planned=launch.dry_run)
