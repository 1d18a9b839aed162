"""`swinv2-checkpoint`: list, verify, prune, and convert checkpoints.

Exit status: 0 all is well; 1 a checkpoint is damaged, or the command failed; 2 usage error (missing path, existing
target, a run is training there); 130 interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from swinv2_train.checkpoint.errors import CheckpointError
from swinv2_train.checkpoint.layout import PARTIAL_PREFIX, list_checkpoints
from swinv2_train.cli.arguments import Parser
from swinv2_train.cli.completion import offer
from swinv2_train.cli.ending import end, run_command
from swinv2_train.cli.manual import filled, manual
from swinv2_train.cli.values import whole
from swinv2_train.config.errors import ConfigError
from swinv2_train.exit_codes import FAILED, FINISHED
from swinv2_train.text import counted

# Modules that import torch are imported where they are used, to keep listing checkpoints fast.
_STATUS = (
    "exit status: 0 all is well; 1 a checkpoint is damaged, or the command failed; 2 usage error (missing path, "
    "existing target, a run is training there); 130 interrupted"
)
_PATHS = "PATH is a run directory, a directory of checkpoints, or one step-NNNNNNNN directory."
_NEWEST = "CHECKPOINT is a step-NNNNNNNN directory; for a run directory or a directory of checkpoints, its newest one."
_EXAMPLES = """\
  swinv2-checkpoint ls outputs/simmim_base
  swinv2-checkpoint verify outputs/simmim_base
  swinv2-checkpoint prune outputs/simmim_base --keep-last 2 --keep-best 1
  swinv2-checkpoint weights outputs/simmim_base simmim_base.safetensors --ema --dtype bf16

swinv2-checkpoint COMMAND --help shows details."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command and exit with its status."""
    parser = _parser()
    offer(parser)
    arguments = parser.parse_args(argv)
    end(run_command("swinv2-checkpoint", lambda: arguments.run(arguments)), whole_process=argv is None)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="swinv2-checkpoint",
        description="List, verify, prune, and convert the checkpoints of swinv2-train.",
        epilog=f"examples:\n{_EXAMPLES}\n\n{manual('checkpoint', _STATUS)}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="{ls,verify,show,prune,reshape,weights}")
    _add_looks(commands)
    _add_prune(commands)
    _add_writers(commands)
    return parser


def _command(commands: Any, name: str, run: Callable[..., int], line: str, texts: Sequence[str], *examples: str) -> Any:
    listed = "\n".join(f"  swinv2-checkpoint {name} {example}" for example in examples)
    command = commands.add_parser(
        name,
        help=line,
        description="\n\n".join(map(filled, texts)),
        epilog=f"examples:\n{listed}\n\n{manual('checkpoint', _STATUS)}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.set_defaults(run=run)
    return command


def _add_looks(commands: Any) -> None:
    text = (
        "List checkpoints, newest first. By default a checkpoint is complete if its manifest is intact and every file "
        "has its full size; --verify reads all of it and compares the hashes. The exit status is that of the newest "
        "one: 0 if it is fine, 1 if it is damaged or there is none."
    )
    examples = ("outputs/simmim_base", "outputs/simmim_base --verify", "outputs/simmim_base --json")
    command = _command(commands, "ls", _ls, "list checkpoints", [text, _PATHS], *examples)
    command.add_argument("path", metavar="PATH", type=_path, help="a run, a directory of checkpoints, or a checkpoint")
    command.add_argument("--verify", action="store_true", help="compare the hashes of all files")
    command.add_argument("--json", action="store_true", help="for scripts")
    _add_metric(command, "mark the best checkpoint by this metric")

    text = "Compare the hash of every file of every checkpoint, or of one; a line each. Status 1 if any is damaged."
    examples = ("outputs/simmim_base", "outputs/simmim_base/checkpoints/step-00012000")
    command = _command(commands, "verify", _verify, "check every byte", [text, _PATHS], *examples)
    command.add_argument("path", metavar="PATH", type=_path, help="a run, a directory of checkpoints, or a checkpoint")

    text = "Show what is in a checkpoint: step, ranks, versions, metrics, metadata, state, sizes."
    examples = ("outputs/simmim_base", "outputs/simmim_base/checkpoints/step-00012000 --tensors")
    command = _command(commands, "show", _show, "show the contents", [text, _NEWEST], *examples)
    command.add_argument("path", metavar="CHECKPOINT", type=_path, help="a checkpoint, or the newest one of a run")
    command.add_argument("--tensors", action="store_true", help="list the parameters as well, with their shapes")


def _add_metric(command: Any, text: str) -> None:
    command.add_argument("--best-metric", metavar="M", help=f"{text} (default: checkpoint.best_metric of the run)")
    command.add_argument(
        "--best-mode", choices=["min", "max"], help="the better direction, for a metric of unknown direction"
    )


def _add_prune(commands: Any) -> None:
    texts = [
        "Remove checkpoints and leftovers of crashes. Without --yes, only list them. Of the checkpoints that stay, the "
        "newest is verified first; if none of them is valid, nothing is removed.",
        "The checkpoint that a replay of the run's latest incident starts from always stays.",
        "PATH is a run directory or a directory of checkpoints; with --yes, no run may be training in it.",
    ]
    examples = ("outputs/simmim_base --keep-last 2", "outputs/simmim_base --keep-last 1 --keep-best 2 --yes")
    command = _command(commands, "prune", _prune, "remove all but some", texts, *examples)
    command.add_argument("path", metavar="PATH", type=_path, help="a run, a directory of checkpoints, or a checkpoint")
    command.add_argument("--keep-last", type=whole(1), required=True, metavar="N", help="keep the N newest")
    command.add_argument(
        "--keep-every-steps", type=whole(1), default=0, metavar="K", help="also those whose step is a multiple of K"
    )
    command.add_argument("--keep-best", type=whole(1), default=0, metavar="N", help="also the N best by a metric")
    _add_metric(command, "the metric of --keep-best")
    command.add_argument("--yes", action="store_true", help="remove them")


def _add_writers(commands: Any) -> None:
    text = (
        "Rewrite a checkpoint as if N ranks had saved it, for example to turn 512 files into 8. Loading never needs "
        "this: any number of ranks reads any checkpoint. The values stay bitwise identical, and the result is "
        "verified."
    )
    example = "outputs/simmim_base archive/simmim_base --ranks 8"
    command = _command(commands, "reshape", _reshape, "change the number of files", [text, _NEWEST], example)
    command.add_argument("path", metavar="CHECKPOINT", type=_path, help="a checkpoint, or the newest one of a run")
    command.add_argument("out", metavar="OUT", type=_path, help="gets step-NNNNNNNN, which must not exist")
    command.add_argument("--ranks", type=whole(1), required=True, metavar="N", help="files of each kind")

    text = (
        "Write all weights under their parameter names into one safetensors file. It needs little memory, "
        "whatever the size of the model."
    )
    examples = ("outputs/simmim_base weights.safetensors", "outputs/simmim_base ema.safetensors --ema --dtype bf16")
    command = _command(commands, "weights", _weights, "write one file of weights", [text, _NEWEST], *examples)
    command.add_argument("path", metavar="CHECKPOINT", type=_path, help="a checkpoint, or the newest one of a run")
    command.add_argument("out", metavar="OUT.safetensors", type=_path, help="must not exist")
    command.add_argument("--ema", action="store_true", help="write the moving average instead of the weights")
    command.add_argument(
        "--dtype", choices=["fp32", "bf16", "fp16"], default="fp32", help="rounds to nearest (default: %(default)s)"
    )
    command.add_argument("--no-verify", action="store_true", help="do not verify the hashes first")


def _ls(arguments: argparse.Namespace) -> int:
    from swinv2_train.checkpoint.survey import best_of, directory_of, is_checkpoint, leftovers, survey, tree_size
    from swinv2_train.cli.checkpoint_display import entries_json, entries_text, size_text

    path = arguments.path
    entries = list(survey(path, hashes=arguments.verify))
    best = best_of(entries, *_metric(path.parent if is_checkpoint(path) else directory_of(path), arguments))
    left = [] if is_checkpoint(path) else [(left, tree_size(left)) for left in leftovers(directory_of(path))]
    if arguments.json:
        print(entries_json(path, entries, left, best))
    else:
        print(entries_text(entries, best) if entries else f"no checkpoint in {path}")
        for leftover, size in left:
            print(f"{leftover.name}: {size_text(size)}, being written, or left behind by a save that did not finish")
    return FINISHED if entries and not entries[0].damage else FAILED


def _metric(directory: Path, arguments: argparse.Namespace) -> tuple[str, str]:
    """Return the metric to rank checkpoints by and its better direction: as set, or those of the run.

    Raises:
        ConfigError: if the direction contradicts the metric, or is missing for a metric of unknown direction.
    """
    from swinv2_train.checkpoint.survey import best_metric_of
    from swinv2_train.config.metrics import checked_mode

    metric, mode = (arguments.best_metric, None) if arguments.best_metric else best_metric_of(directory)
    if arguments.best_metric or arguments.best_mode:
        mode = checked_mode(metric, arguments.best_mode, "--best-mode")
    return metric, str(mode)


def _verify(arguments: argparse.Namespace) -> int:
    from swinv2_train.checkpoint.survey import newest_of, survey
    from swinv2_train.cli.checkpoint_display import size_text

    newest_of(arguments.path)  # raises if there is none
    damaged = 0
    for entry in survey(arguments.path, hashes=True):
        damaged += entry.damage is not None
        outcome = f"{entry.state}: {entry.damage}" if entry.damage else f"verified, {size_text(entry.size)}"
        print(f"{entry.path.name}: {outcome}", flush=True)
    return FAILED if damaged else FINISHED


def _show(arguments: argparse.Namespace) -> int:
    from swinv2_train.checkpoint.survey import examine, newest_of, read_state
    from swinv2_train.cli.checkpoint_display import fact_rows, flat_rows, tensors_text
    from swinv2_train.cli.data_display import print_table

    entry = examine(newest_of(arguments.path))
    if entry.manifest is None:
        raise CheckpointError(f"{entry.path}: {entry.damage}")
    print_table(fact_rows(entry, entry.manifest))
    for values in (entry.manifest.metadata, read_state(entry.path)):
        if rows := flat_rows(values):
            print_table(rows)
    if arguments.tensors:
        print(tensors_text(entry.manifest))
    return FAILED if entry.damage else FINISHED


def _prune(arguments: argparse.Namespace) -> int:
    from swinv2_train.checkpoint.identity import strangers
    from swinv2_train.checkpoint.retain import prune, surplus
    from swinv2_train.checkpoint.survey import directory_of, leftovers, tree_size
    from swinv2_train.cli.checkpoint_display import size_text
    from swinv2_train.config.schema import CheckpointConfig

    directory = directory_of(arguments.path)
    if not arguments.keep_best:
        for option in ("best_metric", "best_mode"):
            if (value := getattr(arguments, option)) is not None:
                name = f"--{option.replace('_', '-')}"
                raise ConfigError("", value, f"{name} sets the metric of --keep-best; add --keep-best N")
    if arguments.best_metric:
        _check_metric(directory, arguments.best_metric)  # a misspelled name has no known direction either
    metric, mode = _metric(directory, arguments)
    policy = CheckpointConfig(
        keep_last=arguments.keep_last,
        keep_every_steps=arguments.keep_every_steps,
        keep_best=arguments.keep_best,
        best_metric=metric,
        best_mode=mode,
    )
    with _no_run(directory) if arguments.yes else contextlib.nullcontext():
        if arguments.yes:
            from swinv2_train.checkpoint.disk import restore_replaced

            restore_replaced(directory)
        if arguments.keep_best:
            _check_metric(directory, metric)
        partial = [path for path in leftovers(directory) if path.name.startswith(PARTIAL_PREFIX)]
        protected, foreign = _needed_by_replay(directory), strangers(directory)
        doomed = [*surplus(directory, policy, protected, foreign), *partial]
        for name, reason in foreign.items():
            print(f"{name}: kept, {reason}")
        for path in surplus(directory, policy, damaged=foreign):
            if path.name in protected:
                print(f"{path.name}: kept for a replay of the latest incident")
        for path in doomed:
            print(f"{path.name}: {size_text(tree_size(path))}")
        before = sum(tree_size(path) for path in doomed)
        if not doomed:
            print(f"nothing to remove in {directory}")
        elif not arguments.yes:
            print(f"{len(doomed)} to remove, {size_text(before)} in all; --yes removes them")
        else:
            _check_rest(directory, doomed)
            prune(directory, policy, protected, foreign)
            print(f"{len(doomed)} removed, {size_text(before)} freed")
    return FINISHED


def _needed_by_replay(directory: Path) -> set[str]:
    """Return the names of the checkpoints that a replay of the run's latest incident needs."""
    from swinv2_train.engine.incidents import protector

    return protector(directory.parent)() if directory.name == "checkpoints" else set()


def _check_metric(directory: Path, metric: str) -> None:
    """Check that some checkpoint has the metric; otherwise, --keep-best would keep none."""
    from swinv2_train.checkpoint.survey import best_of, survey

    entries = list(survey(directory))
    if best_of(entries, metric, "min") is None:
        known = sorted({name for entry in entries if entry.manifest for name in entry.manifest.metrics})
        hint = f"they have {', '.join(known)}" if known else "they have no metrics at all"
        raise ConfigError("", metric, f"--best-metric {metric}: no checkpoint in {directory} has it; {hint}")


def _check_rest(directory: Path, doomed: Sequence[Path]) -> None:
    """Ensure that a valid checkpoint remains."""
    from swinv2_train.checkpoint.identity import strangers
    from swinv2_train.checkpoint.survey import examine

    gone, failures, foreign = {path.name for path in doomed}, [], strangers(directory)
    for path in list_checkpoints(directory):
        if path.name in gone:
            continue
        entry = examine(path, hashes=True, foreign=foreign.get(path.name))
        if not entry.damage:
            for failure in failures:
                print(f"warning: {failure}", file=sys.stderr)
            return
        failures.append(f"{path.name} is {entry.state}: {entry.damage}")
    if failures:  # empty if there are only leftovers to remove
        raise CheckpointError(f"nothing was removed, because no valid checkpoint would stay: {'; '.join(failures)}")


def _reshape(arguments: argparse.Namespace) -> int:
    from swinv2_train.checkpoint.reshape import reshape
    from swinv2_train.checkpoint.survey import newest_of

    source = newest_of(arguments.path)
    with _no_run(arguments.out), _progress() as progress:
        final = reshape(source, arguments.out, arguments.ranks, progress)
    print(f"{final}: written from {source} for {counted(arguments.ranks, 'rank')}, and verified")
    return FINISHED


def _weights(arguments: argparse.Namespace) -> int:
    from swinv2_train.checkpoint.consolidate import write_weights
    from swinv2_train.checkpoint.survey import newest_of
    from swinv2_train.cli.checkpoint_display import size_text

    source = newest_of(arguments.path)
    with _progress() as progress:
        written = write_weights(
            source,
            arguments.out,
            ema=arguments.ema,
            dtype=arguments.dtype,
            verify=not arguments.no_verify,
            progress=progress,
        )
    print(f"{arguments.out}: {size_text(written.size)} from {source}, sha256 {written.sha256}")
    return FINISHED


@contextlib.contextmanager
def _no_run(directory: Path) -> Iterator[None]:
    """Keep runs out of a directory of checkpoints while it is changed.

    Raises:
        ConfigError: if one is training there.
    """
    from swinv2_train.launch.lock import RunLock, StartLock

    run = directory.parent
    if directory.name != "checkpoints" or not run.is_dir():  # no run can save there
        yield
        return
    with contextlib.ExitStack() as locks:
        try:
            for lock in (StartLock, RunLock):
                locks.callback(lock(run).release)
        except ConfigError:
            raise ConfigError("", run, f"a run is training in {run}; stop it first, or wait for its end") from None
        yield


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[int, int], None] | None]:
    """Yield a progress bar on a terminal, None elsewhere."""
    from swinv2_train.cli.data_display import Progress

    with Progress() as bar:
        yield (lambda done, total: bar.show("bytes", done, total)) if sys.stderr.isatty() else None


def _path(text: str) -> Path:
    # File names are significant here, and "." and ".." have none.
    return Path(text) if Path(text).name not in ("", "..") else Path(os.path.abspath(text))


if __name__ == "__main__":
    main()
