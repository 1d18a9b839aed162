"""The command `swinv2-pipeline`: run a chain of stages, each from the weights of an earlier one, and show it.

Exit status like that of `swinv2-train`: 0 all stages are finished; 1 one failed; 2 usage error; 75 stopped by a signal
after saving; 130 interrupted immediately.
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
from swinv2_train.cli.completion import offer, pipeline_words
from swinv2_train.cli.ending import end, run_command
from swinv2_train.cli.manual import manual
from swinv2_train.cli.plugins import add_imports, as_overrides
from swinv2_train.cli.unknown_options import RunParser
from swinv2_train.cli.values import file_path
from swinv2_train.config.errors import ConfigError
from swinv2_train.config.paths import user_path
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
pipeline: dir (of the stages' run directories; default outputs/NAME), experiment (of the stages that name none),
launcher (a prefix of swinv2-train, such as "torchrun --nproc-per-node=8 --no-python").

The same command resumes where the chain stopped, and does nothing if all stages are finished. A stage whose recipe has
changed since it ran is not repeated without --redo or --redo-changed; its old results are kept, never removed.
Exit codes: 0 finished, 1 a stage failed, 2 usage error, 75 stopped by a signal after saving,
130 interrupted immediately."""


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line; print help and exit if requested."""
    listed = "\n".join(f"  {name:<12} {line}" for name, line in pipelines())
    parser = RunParser(
        prog="swinv2-pipeline",
        usage=USAGE,
        description="Run a chain of stages, such as SimMIM, supervised training and a task.",
        epilog=f"pipelines:\n{listed}\n\n{EXAMPLES}\n\n{manual('conf')}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("items", nargs="*", metavar="KEY=VALUE", help="what to run, and config values")
    parser.add_argument("--redo", action="append", default=[], metavar="STAGE", help="rerun this stage; repeatable")
    parser.add_argument(
        "--redo-changed", action="store_true", help="rerun changed stages, and those that started from replaced weights"
    )
    parser.add_argument(
        "--config-dir", type=file_path, metavar="DIR", help="your own configs (DIR/pipeline, DIR/experiment)"
    )
    add_imports(parser, "tasks, transforms, attention backends, and decoders, for every stage")
    parser.add_argument("--json", action="store_true", help="status: for scripts")
    offer(parser, pipeline_words)
    parser.line = argv
    return parser.parse_intermixed_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of `swinv2-pipeline`."""
    arguments = parse(sys.argv[1:] if argv is None else argv)
    work = show_status if arguments.items[:1] == ["status"] else run
    end(run_command("swinv2-pipeline", lambda: work(arguments)), whole_process=argv is None)


def pipeline_of(arguments: argparse.Namespace) -> Pipeline:
    """Return the pipeline of a command line, with its changes.

    Raises:
        ConfigError: if there is no such pipeline, or its file or a change is wrong.
    """
    return _pipeline(arguments, [*arguments.items, *as_overrides(arguments)])


def _pipeline(arguments: argparse.Namespace, items: Sequence[str]) -> Pipeline:
    directory = arguments.config_dir
    if directory and not directory.is_dir():
        raise ConfigError("", directory, f"--config-dir {directory}: no such directory")
    name, changes = split_arguments(items)
    if name is None:
        known = ", ".join(name for name, _ in pipelines(directory))
        raise ConfigError("", "", f"choose a pipeline, such as pipeline=demo; available: {known}")
    return load_pipeline(name, changes, directory)


def show_status(arguments: argparse.Namespace) -> int:
    """Print the chain of a directory."""
    from swinv2_train.pipeline.report import as_json, chain_text, comparison_text, views
    from swinv2_train.pipeline.state import read_state

    if arguments.redo or arguments.redo_changed:
        raise ConfigError("", "", "status runs nothing: omit --redo and --redo-changed")
    if arguments.imports:
        raise ConfigError("", "", "status runs nothing: omit --import")
    items = arguments.items[1:]
    if len(items) == 1 and ("=" not in items[0] or Path(items[0]).is_dir()):
        directory = Path(items[0])
    elif items:
        directory = _pipeline(arguments, items).directory
    else:
        raise ConfigError("", "", "name the directory of a pipeline, such as swinv2-pipeline status outputs/demo")
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
    """Check the entire chain, run it, and return the exit code."""
    from swinv2_train.pipeline.plan import plan
    from swinv2_train.pipeline.report import is_finished
    from swinv2_train.pipeline.run import Redo, dry_run, run_pipeline

    if arguments.json:
        raise ConfigError("", "", "--json requires status: swinv2-pipeline status DIR --json")
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        raise ConfigError(
            "", "", "start swinv2-pipeline once, without torchrun or deepspeed; use launcher=... for those"
        )
    pipeline = pipeline_of(arguments)
    planned = plan(pipeline, arguments.config_dir)
    for name in arguments.redo:
        if name not in [item.name for item in planned]:
            raise ConfigError("--redo", name, f"unknown stage; use one of {', '.join(s.name for s in planned)}")
    dry = any(item.config.launch.dry_run for item in planned)
    if dry and not all(item.config.launch.dry_run for item in planned):
        raise ConfigError("launch.dry_run", "true", "applies to the entire chain; set it without stages.NAME")
    for item in planned:
        if not is_finished(item.run_dir) or item.name in arguments.redo:
            _check_start(item, required=not dry)
    if dry:
        return dry_run(pipeline, planned, _say)
    return run_pipeline(pipeline, planned, Redo(arguments.redo, arguments.redo_changed), _say)


def _say(text: str) -> None:
    with contextlib.suppress(OSError):  # the terminal may be gone; the stage must still be supervised
        print(redact(text), flush=True)


def _check_start(item: PlannedStage, *, required: bool) -> None:
    """Check now that a stage's shards, length, classes, and weights are usable, and not only when the stage starts.

    Args:
        required: True if its shards must exist.

    Raises:
        ConfigError: with the name of the stage.
    """
    from swinv2_train.cli.checks import check_memory, finish
    from swinv2_train.cli.samples import count_samples
    from swinv2_train.config.plan import make_plan
    from swinv2_train.data.errors import DataError
    from swinv2_train.pipeline.report import is_begun
    from swinv2_train.tasks.classes import check_held_out_classes

    config = deepcopy(item.config)
    try:
        samples = count_samples(config, required=required)
        make_plan(config, config.launch.nproc_per_node or 1, samples.count)
        start = config.init_from if item.stage.source is None and not is_begun(item.run_dir) else None
        if required and start and not user_path(start).exists():
            raise ConfigError("init_from", start, "no run, checkpoint, or file exists at this path")
        label_map = config.init.label_map
        if required and label_map and not is_begun(item.run_dir) and not Path(label_map).is_file():
            raise ConfigError("init.label_map", label_map, "no such file")
        finish(config, samples.card, weights=required and start is not None)
        check_memory(config, config.launch.nproc_per_node or 1, samples)
        check_held_out_classes(config, samples.card)
    except (ConfigError, DataError, CheckpointError) as error:
        named = ConfigError("", item.name, f"stage {item.name}: {error}")
        named.exit_code = error.exit_code
        raise named from error


if __name__ == "__main__":
    main()
