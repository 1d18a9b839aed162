"""`swinv2-eval`: evaluate any checkpoint or file of weights on labeled shards, on any number of ranks.

Exit status: 0 done; 1 failed; 2 usage error (missing path, an option that contradicts the model or the data);
130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swinv2_train.cli.arguments import Parser, above_zero, one_of, required, shards, split_items, switch, whole
from swinv2_train.cli.completion import offer, option_words
from swinv2_train.cli.ending import end, run_command
from swinv2_train.cli.manual import manual
from swinv2_train.cli.plugins import add_imports, use_imports
from swinv2_train.config.errors import ConfigError
from swinv2_train.config.schema import ProbeConfig
from swinv2_train.exit_codes import FINISHED
from swinv2_train.redact import redact
from swinv2_train.shortage import remedied

if TYPE_CHECKING:  # these import torch
    import torch

    from swinv2_train.analysis.evaluate import EvalOptions
    from swinv2_train.launch.ranks import Ranks

MODULE = "swinv2_train.cli.evaluate"
_JOIN_MINUTES = 10.0
_COLLECTIVE_MINUTES = 24 * 60.0
"""Timeout between ranks, which wait for the slowest only at the end, so it bounds how far apart they may be."""

MODEL_HELP = """\
  which=newest|best        checkpoint of a run or directory (default: newest)
  ema=true                 use the moving average of the weights
  model.window=24          or any other change to the model, such as model.attention=sequential
  data.resolution=384      data.crop_pct=0.9, data.crop_mode=squash (resize, no crop), data.mean=..."""
MACHINE_HELP = """\
  batch=32                 images per rank in one forward pass
  precision=fp32|bf16|fp16
  ranks=N                  default: one per GPU, or one on the CPU; or start it with torchrun
  device=auto|cuda|cpu     workers=4 (decoding processes of a rank)
  max_samples=N            only the first N samples
  out=DIR                  default: RUN/evaluations/NAME, or ./evaluation-NAME
  cache_dir=, cache_gib=   cache of remote shards: directory and size"""
_HELP = f"""\
needed:
  checkpoint=PATH          a run, a checkpoint, or a file of weights (this package's, official, timm, Hugging Face)
  data=SHARDS              a directory, a pattern such as 'shards/val-*.tar', a URL, or [a,b]

the model:
{MODEL_HELP}

labels:
  label_map=FILE           one line per class of the data: the class of the model (ImageNet-22K on ImageNet-1K data:
                           the official map22kto1k.txt)
  label_map=names          match classes by their names; names 0, 1, ... of the data that the model lacks are
                           the numbers of its classes (ImageNet-V2, whose folders are 0 to 999)
  label_map=numbers        class n of the data is class n of the model, regardless of the names
  real_labels=FILE         ReaL labels: a list of lists; an image may have several correct classes, or none (skipped)

features, for a SimMIM encoder:
  probe=SHARDS             labeled shards that a k-NN vote and a linear classifier learn from; data= scores them
  probe.max_samples=5000   probe.knn=20, probe.linear=true

the machine:
{MACHINE_HELP}

examples:
  swinv2-eval checkpoint=outputs/in1k_tiny_256 data='shards/val-*.tar'
  swinv2-eval checkpoint=swinv2_tiny_patch4_window8_256.pth data=shards/val model.window=24 data.resolution=768
  swinv2-eval checkpoint=outputs/simmim_demo data='shards/eval-*.tar' probe='shards/train-*.tar'
  torchrun --nproc-per-node 8 -m swinv2_train.cli.evaluate checkpoint=... data=...

exit status: 0 done; 1 failed; 2 usage error; 130 interrupted"""
MACHINE_OPTIONS: dict[str, Callable[[str], Any]] = {
    "which": one_of(("newest", "best")),
    "ema": switch,
    "batch": whole(1),
    "precision": one_of(("fp32", "bf16", "fp16")),
    "ranks": whole(1),
    "device": one_of(("auto", "cuda", "cpu")),
    "workers": whole(0),
    "max_samples": whole(1),
    "cache_dir": str,
    "cache_gib": above_zero,
    "out": Path,
}
"""Options of every command that reads shards."""
_OPTIONS: dict[str, Callable[[str], Any]] = {
    "checkpoint": str,
    "data": shards,
    "label_map": str,
    "real_labels": Path,
    "probe": shards,
    "probe.max_samples": whole(1),
    "probe.knn": whole(0),
    "probe.linear": switch,
    **MACHINE_OPTIONS,
}


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command and exit with its status."""
    given = list(sys.argv[1:] if argv is None else argv)
    parser = Parser(
        prog="swinv2-eval",
        usage="swinv2-eval checkpoint=PATH data=SHARDS [KEY=VALUE ...] [--json]",
        description="Evaluate weights on labeled shards; for a SimMIM checkpoint, the masked loss on any images.",
        epilog=f"{_HELP}\n\n{manual('analysis')}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("items", nargs="*", metavar="KEY=VALUE", help="see below")
    parser.add_argument("--json", action="store_true", help="print results.json instead of tables")
    add_imports(parser)
    parser.add_argument("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)
    offer(parser, option_words(_OPTIONS))
    arguments = parser.parse_intermixed_args(given)
    end(run_command("swinv2-eval", lambda: _run(arguments, given)))


def _run(arguments: argparse.Namespace, given: Sequence[str]) -> int:
    options, overrides = split_items(arguments.items, _OPTIONS)
    use_imports(arguments)
    required(options, "checkpoint", "the run, checkpoint, or file of weights to evaluate")
    required(options, "data", "the labeled shards to evaluate on, such as data='shards/val-*.tar'")
    probing = [key for key in options if key.startswith("probe.")]
    if probing and not options.get("probe"):
        raise ConfigError(probing[0], options[probing[0]], "needs probe=SHARDS, the shards to learn from")
    started = start_if_alone(MODULE, given, options)
    if started is not None:
        return started

    from swinv2_train.analysis.evaluate import evaluate
    from swinv2_train.launch.failures import together

    request = eval_options(options, overrides)
    with ranks_of(options) as ranks, batches_shown(ranks) as progress:
        place = together(ranks, lambda: _place(options) if ranks.is_main else None)
        found = evaluate(request, ranks, progress)
        if place is not None:
            _report(found, request, place, options.get("out"), as_json=arguments.json)
    return FINISHED


def eval_options(options: Mapping[str, Any], overrides: Sequence[str], **more: Any) -> EvalOptions:
    """Return the options that determine what is computed."""
    from swinv2_train.analysis.evaluate import EvalOptions

    names = ("checkpoint", "data", "which", "ema", "batch", "precision", "max_samples", "workers", "cache_dir")
    names = (*names, "cache_gib", "label_map", "real_labels")
    probe = None
    if options.get("probe"):
        details = {key.partition(".")[2]: value for key, value in options.items() if key.startswith("probe.")}
        probe = ProbeConfig(shards=options["probe"], eval_shards=options["data"], **details)
    chosen = {name: options[name] for name in names if name in options}
    return EvalOptions(**{**chosen, "overrides": tuple(overrides), "probe": probe, **more})


def start_if_alone(module: str, given: Sequence[str], options: Mapping[str, Any]) -> int | None:
    """Start the ranks if several are needed and no launcher has started them; return None if this process is one.

    Raises:
        ConfigError: if this machine does not have the device, or not enough of them.
    """
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
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
    """Return the directory for the results or their folder, after creating and testing it."""
    from swinv2_train.cli.evaluate_display import output_root

    root = options.get("out") or output_root(options["checkpoint"])
    writable("out", root)
    return root


def writable(key: str, directory: Path) -> None:
    """Create a directory and check that it is writable.

    Raises:
        ConfigError: if that is not possible.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        raise ConfigError(key, directory, f"cannot be written to ({remedied(error)})") from error


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
