"""The command `swinv2-pipeline`: run a chain of stages, each from the weights of an earlier one, and show it.

Exit status as of `swinv2-train`: 0 all stages are finished; 1 one failed; 2 wrong use; 75 stopped by a signal after
saving; 130 interrupted at once.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING

from swinv2_train.checkpoint.errors import CheckpointError
from swinv2_train.cli.arguments import Parser
from swinv2_train.cli.completion import offer, pipeline_words
from swinv2_train.cli.ending import run_command
from swinv2_train.cli.manual import manual
from swinv2_train.config.errors import ConfigError
from swinv2_train.exit_codes import FINISHED
from swinv2_train.pipeline.spec import Pipeline, load_pipeline, pipelines, split_arguments
from swinv2_train.reading import UnreadableError
from swinv2_train.redact import redact

if TYPE_CHECKING:
    from swinv2_train.pipeline.plan import PlannedStage

USAGE = """swinv2-pipeline pipeline=NAME [KEY=VALUE ...] [stages.STAGE.KEY=VALUE ...] [options]
       swinv2-pipeline status DIR | pipeline=NAME [--json]"""
EXAMPLES = """\
examples:
  swinv2-pipeline pipeline=demo
  swinv2-pipeline pipeline=giant launch.dry_run=true
  swinv2-pipeline pipeline=giant dir=/runs/giant stages.simmim.data.shards=/data/in22k-ext/train
  swinv2-pipeline pipeline=demo stages.supervised.optim.lr=5e-4 --redo supervised
  swinv2-pipeline status outputs/demo

KEY=VALUE sets a key of the config in every stage, stages.STAGE.KEY=VALUE in one (and in its baselines). Keys of the
pipeline: dir (where the stages' run directories are; default outputs/NAME), experiment (of the stages that name none),
launcher (put before swinv2-train, such as "torchrun --nproc-per-node=8 --no-python").

The same command again goes on where the chain stopped, and does nothing where all is done. A stage whose recipe has
changed since it ran stays as it is until --redo or --redo-changed; what it left is kept beside it, never removed.
Exit codes: 0 finished, 1 a stage failed, 2 wrong use, 75 stopped by a signal after saving, 130 interrupted at once."""


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line; prints help and exits where that is asked for."""
    listed = "\n".join(f"  {name:<12} {line}" for name, line in pipelines())
    parser = Parser(
        prog="swinv2-pipeline",
        usage=USAGE,
        description="Run a chain of stages, such as SimMIM, supervised training and a task.",
        epilog=f"pipelines:\n{listed}\n\n{EXAMPLES}\n\n{manual('conf')}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("items", nargs="*", metavar="KEY=VALUE", help="what to run, and config values")
    parser.add_argument("--redo", action="append", default=[], metavar="STAGE", help="run this stage anew; repeatable")
    parser.add_argument(
        "--redo-changed", action="store_true", help="run anew what has changed, and what started from replaced weights"
    )
    parser.add_argument(
        "--config-dir", type=Path, metavar="DIR", help="your own configs (DIR/pipeline, DIR/experiment)"
    )
    parser.add_argument("--json", action="store_true", help="status: for scripts")
    offer(parser, pipeline_words)
    return parser.parse_intermixed_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of `swinv2-pipeline`."""
    arguments = parse(sys.argv[1:] if argv is None else argv)
    work = show_status if arguments.items[:1] == ["status"] else run
    sys.exit(run_command("swinv2-pipeline", lambda: work(arguments)))


def _pipeline(arguments: argparse.Namespace, items: Sequence[str]) -> Pipeline:
    directory = arguments.config_dir
    if directory and not directory.is_dir():
        raise ConfigError("", directory, f"--config-dir {directory}: there is no such directory")
    name, changes = split_arguments(items)
    if name is None:
        known = ", ".join(name for name, _ in pipelines(directory))
        raise ConfigError("", "", f"give the pipeline, such as pipeline=demo; there are {known}")
    return load_pipeline(name, changes, directory)


def show_status(arguments: argparse.Namespace) -> int:
    """Print the chain of a directory."""
    from swinv2_train.pipeline.report import as_json, chain_text, comparison_text, views
    from swinv2_train.pipeline.state import read_state

    if arguments.redo or arguments.redo_changed:
        raise ConfigError("", "", "status runs nothing: leave --redo and --redo-changed out")
    items = arguments.items[1:]
    if len(items) == 1 and "=" not in items[0]:
        directory = Path(items[0])
    elif items:
        directory = _pipeline(arguments, items).directory
    else:
        raise ConfigError("", "", "give the directory of a pipeline, such as swinv2-pipeline status outputs/demo")
    try:
        state = read_state(directory)
    except UnreadableError as error:
        hint = f"{directory}/pipeline.json is damaged ({error}): the next call that runs the pipeline writes a new one"
        raise ConfigError("", directory, hint) from error
    if state is None:
        raise ConfigError("", directory, f"there is no pipeline.json in {directory}: no pipeline has run there")
    stages = views(directory, state)
    if arguments.json:
        print(as_json(state.pipeline, stages))
        return FINISHED
    print(f"pipeline {state.pipeline} in {directory}")
    print(chain_text(stages))
    comparison = comparison_text(stages)
    if comparison:
        print(f"\n{comparison}")
    return FINISHED


def run(arguments: argparse.Namespace) -> int:
    """Check the whole chain, and run it; returns the exit code."""
    from swinv2_train.pipeline.plan import plan
    from swinv2_train.pipeline.report import is_finished
    from swinv2_train.pipeline.run import Redo, dry_run, run_pipeline

    if arguments.json:
        raise ConfigError("", "", "--json goes with status: swinv2-pipeline status DIR --json")
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        raise ConfigError(
            "", "", "start swinv2-pipeline once, without torchrun or deepspeed; launcher=... is for those"
        )
    pipeline = _pipeline(arguments, arguments.items)
    planned = plan(pipeline, arguments.config_dir)
    for name in arguments.redo:
        if name not in [item.name for item in planned]:
            raise ConfigError("--redo", name, f"there is no such stage; there are {', '.join(s.name for s in planned)}")
    dry = any(item.config.launch.dry_run for item in planned)
    if dry and not all(item.config.launch.dry_run for item in planned):
        raise ConfigError("launch.dry_run", "true", "holds for the whole chain; give it without stages.NAME")
    for item in planned:
        if not is_finished(item.run_dir) or item.name in arguments.redo:
            _check_start(item, required=not dry)
    if dry:
        return dry_run(pipeline, planned, _say)
    return run_pipeline(pipeline, planned, Redo(arguments.redo, arguments.redo_changed), _say)


def _say(text: str) -> None:
    with contextlib.suppress(OSError):  # the terminal may be gone, which is no reason to leave a stage alone
        print(redact(text), flush=True)


def _check_start(item: PlannedStage, *, required: bool) -> None:
    """See that a stage's shards, length, classes and weights are usable now, and not only when its turn comes.

    Args:
        required: its shards must be there.

    Raises:
        ConfigError: with the name of the stage.
    """
    from swinv2_train.cli.samples import count_samples
    from swinv2_train.cli.train import finish
    from swinv2_train.config.plan import make_plan
    from swinv2_train.data.errors import DataError
    from swinv2_train.pipeline.report import is_begun
    from swinv2_train.tasks.classes import check_held_out_classes

    config = deepcopy(item.config)
    try:
        samples = count_samples(config, required=required)
        make_plan(config, config.launch.nproc_per_node or 1, samples.count)
        start = config.init_from if item.stage.source is None and not is_begun(item.run_dir) else None
        if required and start and not Path(start).expanduser().exists():
            raise ConfigError("init_from", start, "there is no such run, checkpoint or file")
        label_map = config.init.label_map
        if required and label_map and not is_begun(item.run_dir) and not Path(label_map).is_file():
            raise ConfigError("init.label_map", label_map, "there is no such file")
        finish(config, samples.card, weights=required and start is not None)
        check_held_out_classes(config, samples.card)
    except (ConfigError, DataError, CheckpointError) as error:
        named = ConfigError("", item.name, f"stage {item.name}: {error}")
        named.exit_code = error.exit_code
        raise named from error


if __name__ == "__main__":
    main()
