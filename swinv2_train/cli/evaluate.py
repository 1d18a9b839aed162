"""`swinv2-eval`: evaluate any checkpoint or file of weights on labeled shards, on any number of ranks.

Exit status: 0 done; 1 failed; 2 usage error (missing path, an option that contradicts the model or the data);
130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swinv2_train.cli.arguments import Parser, shards
from swinv2_train.cli.completion import offer
from swinv2_train.cli.ending import end, run_command
from swinv2_train.cli.loading import loading
from swinv2_train.cli.manual import manual
from swinv2_train.cli.plugins import add_imports, use_imports
from swinv2_train.cli.values import file_path, switch, whole
from swinv2_train.cli.weight_arguments import (
    add_checkpoint,
    add_choice,
    add_ranks,
    changes_of,
    check_precision,
    check_shards,
    check_weights,
    given_options,
    writable,
)
from swinv2_train.config.errors import ConfigError
from swinv2_train.config.overrides import refuse_repeated
from swinv2_train.config.schema import ProbeConfig
from swinv2_train.exit_codes import FINISHED
from swinv2_train.redact import redact

if TYPE_CHECKING:  # these import torch
    import torch

    from swinv2_train.analysis.evaluate import EvalOptions
    from swinv2_train.config.schema import Config
    from swinv2_train.interop.source import WeightSource
    from swinv2_train.launch.ranks import Ranks

MODULE = "swinv2_train.cli.evaluate"
_JOIN_MINUTES = 10.0
_COLLECTIVE_MINUTES = 24 * 60.0
"""Timeout between ranks, which wait for the slowest only at the end, so it bounds how far apart they may be."""
_MEMORY = "lower --batch, --workers, or data.resolution, or evaluate a segmenter with task.inference=slide"
"""Remedies for a lack of memory."""
_HELP = """\
label maps:
  --label-map FILE         one line per class of the data: the class of the model (ImageNet-22K on ImageNet-1K data:
                           the official map22kto1k.txt)
  --label-map names        match classes by their names; names 0, 1, ... of the data that the model lacks are
                           the numbers of its classes (ImageNet-V2, whose folders are 0 to 999)
  --label-map numbers      class n of the data is class n of the model, regardless of the names

examples:
  swinv2-eval outputs/in1k_tiny_256 'shards/val-*.tar'
  swinv2-eval swinv2_tiny_patch4_window8_256.pth shards/val model.window=24 data.resolution=768
  swinv2-eval outputs/k400_giant_256 'shards/val-*.tar' views=4x5
  swinv2-eval checkpoint=outputs/simmim_demo data='shards/eval-*.tar' probe='shards/train-*.tar'
  torchrun --nproc-per-node 8 -m swinv2_train.cli.evaluate checkpoint=... data=...

exit status: 0 done; 1 failed; 2 usage error; 130 interrupted"""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command and exit with its status."""
    given = list(sys.argv[1:] if argv is None else argv)
    parser = _parser()
    offer(parser)
    arguments = parser.parse_args(given)
    end(run_command("swinv2-eval", lambda: _run(arguments, given), memory=_MEMORY), whole_process=argv is None)


def _parser() -> Parser:
    parser = Parser(
        prog="swinv2-eval",
        usage="swinv2-eval CHECKPOINT SHARDS [options] [KEY=VALUE ...]",
        description="Evaluate weights on labeled shards; for a SimMIM checkpoint, the masked loss on any images.",
        epilog=f"{_HELP}\n\n{manual('analysis')}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add_checkpoint(parser)
    add(
        "data",
        metavar="SHARDS",
        nargs="+",
        help="the labeled shards to evaluate on: a directory, a pattern such as 'shards/val-*.tar', a URL, or [a,b]",
    )
    add_choice(parser)
    add_ranks(parser, "RUN/evaluations/NAME, or ./evaluation-NAME")
    add(
        "--views",
        metavar="TxS",
        help="clips times crops of a video, whose probabilities are averaged: 4x5 (task.views)",
    )
    add("--label-map", metavar="MAP", help="a FILE, names, or numbers: see below")
    add(
        "--real-labels",
        type=file_path,
        metavar="FILE",
        help="ReaL labels: a list of lists; an image may have several correct classes, or none (skipped)",
    )
    add("--probe", metavar="SHARDS", help="labeled shards that a k-NN vote and a linear classifier learn from")
    add("--probe.max-samples", type=whole(1), metavar="N", help="only the first N of them (default: 5000)")
    add("--probe.knn", type=whole(0), metavar="K", help="neighbors that vote; 0: no vote (default: 20)")
    add("--probe.linear", type=switch, metavar="true|false", help="train the linear classifier (default: true)")
    add("--json", action="store_true", help="print results.json instead of tables")
    add_imports(parser)
    return parser


def _run(arguments: argparse.Namespace, given: Sequence[str]) -> int:
    use_imports(arguments)
    options = given_options(arguments) | {"data": shards(arguments.data)}
    if arguments.probe:
        options["probe"] = shards([arguments.probe])
    probing = [key for key in options if key.startswith("probe.")]
    if probing and not arguments.probe:
        raise ConfigError(probing[0], options[probing[0]], "needs probe=SHARDS, the shards to learn from")
    if not joined():
        _check(arguments, options)
    started = start_if_alone(MODULE, given, options)
    if started is not None:
        return started

    from swinv2_train.analysis.evaluate import evaluate
    from swinv2_train.launch.failures import together

    request = eval_options(options)
    with ranks_of(options) as ranks, batches_shown(ranks) as progress:
        place = together(ranks, lambda: _place(options) if ranks.is_main else None)
        found = evaluate(request, ranks, progress)
        if place is not None:
            _report(found, request, place, options.get("out"), as_json=arguments.json)
    return FINISHED


def joined() -> bool:
    """Return whether this process is one of several ranks, or the only one, of a launcher or of this command."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def _check(arguments: argparse.Namespace, options: Mapping[str, Any]) -> None:
    """Check what is known before torch is imported, and report what is loaded then.

    Raises:
        ConfigError, DataError, CheckpointError: naming the argument.
    """
    from swinv2_train.data.label_map import NAMES, NUMBERS, check_label_options, read_label_map, read_real_labels
    from swinv2_train.launch.local_ranks import choose_ranks

    check_precision(arguments, choose_ranks(arguments.device, arguments.ranks)[0])
    config, source = _checked_weights(arguments)
    check_shards(options["data"])
    if options.get("probe"):
        check_shards(options["probe"])
    check_label_options(options, config.task.label_options())
    if arguments.label_map not in (None, NAMES, NUMBERS):
        read_label_map(Path(arguments.label_map), source.num_classes)
    if arguments.real_labels:
        read_real_labels(arguments.real_labels)
    _place(options)
    loading("swinv2-eval", f"{source.path} and {arguments.data[0]}")


def _checked_weights(arguments: argparse.Namespace) -> tuple[Config, WeightSource]:
    """Return what `check_weights` does, after a check that the model has views if they are set."""
    if arguments.views is not None:
        config, source = check_weights(argparse.Namespace(**{**vars(arguments), "views": None}))
        if "views" not in vars(config.task):
            what = f"requires a classifier of videos (task=video), and {source.path} is a {config.task.name} model"
            raise ConfigError("views", arguments.views, what)
        refuse_repeated(changes_of(arguments))
    return check_weights(arguments)


def eval_options(options: Mapping[str, Any], **more: Any) -> EvalOptions:
    """Return the options that determine what is computed."""
    from swinv2_train.analysis.evaluate import EvalOptions

    names = ("checkpoint", "data", "which", "ema", "batch", "precision", "max_samples", "workers", "cache_dir")
    names = (*names, "cache_gib", "label_map", "real_labels")
    probe = None
    if options.get("probe"):
        details = {key.partition(".")[2]: value for key, value in options.items() if key.startswith("probe.")}
        probe = ProbeConfig(shards=options["probe"], eval_shards=options["data"], **details)
    chosen = {name: options[name] for name in names if name in options}
    return EvalOptions(**{**chosen, "overrides": tuple(options["changes"]), "probe": probe, **more})


def start_if_alone(module: str, given: Sequence[str], options: Mapping[str, Any]) -> int | None:
    """Start the ranks if several are needed and no launcher has started them; return None if this process is one.

    Raises:
        ConfigError: if this machine does not have the device, or not enough of them.
    """
    if joined():
        if options.get("ranks", int(os.environ["WORLD_SIZE"])) != int(os.environ["WORLD_SIZE"]):
            raise ConfigError("ranks", options["ranks"], f"a launcher has already started {os.environ['WORLD_SIZE']}")
        return None
    from swinv2_train.launch.local_ranks import choose_ranks, run_ranks

    device, num_ranks = choose_ranks(options.get("device", "auto"), options.get("ranks"))
    return None if num_ranks == 1 else run_ranks(module, given, num_ranks, device)


def choose_device(name: str) -> torch.device:
    """Return the device of one process, for auto, cuda, or cpu.

    Raises:
        ConfigError: if the device does not exist.
    """
    import torch

    from swinv2_train.launch.local_ranks import choose_ranks

    return torch.device(choose_ranks(name, 1)[0])


def ranks_of(options: Mapping[str, Any]) -> AbstractContextManager[Ranks]:
    """Return a context with this process among the ranks of the command."""
    from swinv2_train.launch.ranks import joined_ranks

    return joined_ranks(choose_device(options.get("device", "auto")).type, _COLLECTIVE_MINUTES, _JOIN_MINUTES)


@contextmanager
def batches_shown(ranks: Ranks) -> Iterator[Callable[[int, int], None] | None]:
    """Yield a progress bar over the batches on the main rank's terminal, None elsewhere."""
    from swinv2_train.cli.data_display import Progress

    if not ranks.is_main or not sys.stderr.isatty():
        yield None
        return
    with Progress() as bar:
        yield lambda done, total: bar.show("batches", done, total)


def _place(options: Mapping[str, Any]) -> Path:
    """Return the directory for the results or their folder, after testing it."""
    from swinv2_train.cli.evaluate_display import output_root

    root = options.get("out") or output_root(options["checkpoint"])
    writable("out", root)
    return root


def _report(found: Any, request: EvalOptions, place: Path, out: Path | None, *, as_json: bool) -> None:
    from swinv2_train.cli.evaluate_display import output_name, result_json, result_text, write_outputs

    for warning in found.warnings:
        print(redact(f"warning: {warning}"), file=sys.stderr)
    # Print first: a full disk must not lose the numbers.
    text = json.dumps(result_json(found, request), indent=2) if as_json else result_text(found, request)
    print(redact(text), flush=True)
    directory = out or place / output_name(found, request, place)
    written = write_outputs(directory, found, request)
    if not as_json:
        print(f"\nwritten to {directory}: {', '.join(path.name for path in written)}")


if __name__ == "__main__":
    main()
