"""`swinv2-analyze`: figures of finished models: accuracy over test-time windows and the signal propagation plot of the
paper, and attention maps.

Exit status: 0 done; 1 failed; 2 usage error; 130 interrupted.
"""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swinv2_train.cli import attention
from swinv2_train.cli.arguments import SECTIONS, Parser, required, shards, split_items, whole, wholes
from swinv2_train.cli.completion import offer, option_words
from swinv2_train.cli.ending import end, run_command
from swinv2_train.cli.evaluate import (
    MACHINE_HELP,
    MACHINE_OPTIONS,
    MODEL_HELP,
    batches_shown,
    choose_device,
    eval_options,
    ranks_of,
    start_if_alone,
    writable,
)
from swinv2_train.cli.manual import manual
from swinv2_train.cli.plugins import add_imports, use_imports
from swinv2_train.config.errors import ConfigError
from swinv2_train.exit_codes import FINISHED

if TYPE_CHECKING:  # these import torch
    from torch import Tensor

    from swinv2_train.interop.load import LoadedModel
    from swinv2_train.models.activations import BlockActivations

MODULE = "swinv2_train.cli.analyze"
_MODELS_HELP = """\
  [NAME=]PATH              a run, a checkpoint, or a file of weights; one curve each, named NAME"""
_STATUS = "exit status: 0 done; 1 failed; 2 usage error; 130 interrupted"
_WINDOWS_HELP = f"""\
needed:
{_MODELS_HELP}
  data=SHARDS              labeled shards to evaluate on
  windows=8,12,16          the windows to evaluate with
  resolutions=256,384,512  one for each window (default: proportional to the window, as in the paper)

the models:
{MODEL_HELP}

the machine:
{MACHINE_HELP.replace("RUN/evaluations/NAME, or ./evaluation-NAME", "RUN/analysis of the first model, or ./analysis")}

example:
  swinv2-analyze windows outputs/log_cpb outputs/linear_cpb outputs/table data='shards/val-*.tar' windows=8,12,16,20,24

{_STATUS}"""
_SIGNAL_HELP = f"""\
needed:
{_MODELS_HELP}

input:
  data=SHARDS              the first images of these shards (default: random images, normal noise)
  batch=32                 number of images
  seed=0                   seed of the random images

the models:
{MODEL_HELP}
  precision=fp32|bf16|fp16, device=auto|cuda|cpu, out=DIR (default: RUN/analysis of the first model, or ./analysis)

example:
  swinv2-analyze signal pre-norm=outputs/pre res-post-norm=outputs/res_post data='shards/val-*.tar'

{_STATUS}"""
_WINDOWS_OPTIONS: dict[str, Callable[[str], Any]] = {
    "data": shards,
    "windows": wholes,
    "resolutions": wholes,
    **MACHINE_OPTIONS,
}
_SIGNAL_OPTIONS: dict[str, Callable[[str], Any]] = {
    "data": shards,
    "seed": whole(0),
    **{key: MACHINE_OPTIONS[key] for key in ("which", "ema", "batch", "precision", "device", "out")},
    **{key: MACHINE_OPTIONS[key] for key in ("cache_dir", "cache_gib")},
}


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command and exit with its status."""
    given = list(sys.argv[1:] if argv is None else argv)
    parser = Parser(
        prog="swinv2-analyze",
        description="Figures of your own models: two of the Swin V2 paper, and attention maps.",
        epilog=manual("analysis", _STATUS),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)
    commands = parser.add_subparsers(title="commands", required=True, metavar="{windows,signal,attention}")
    for name, run, line, text in (
        ("windows", _windows, "accuracy over test-time windows (table 1)", _WINDOWS_HELP),
        ("signal", _signal, "activation amplitude of every block (figure 2)", _SIGNAL_HELP),
    ):
        command = commands.add_parser(
            name,
            help=line,
            usage=f"swinv2-analyze {name} [NAME=]PATH ... [KEY=VALUE ...]",
            description=f"Draw the {line}, write it as PNG and PDF, and the numbers as JSON.",
            epilog=f"{text}\n\n{manual('analysis')}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.add_argument("items", nargs="*", metavar="ITEM", help="see below")
        add_imports(command)
        command.set_defaults(run=run)
    command = commands.add_parser(
        "attention",
        help="attention maps of a few images",
        usage="swinv2-analyze attention CHECKPOINT IMAGES... OUT.png [KEY=VALUE ...]",
        description="Draw which tokens a model attends to, for every stage.",
        epilog=f"{attention.HELP}\n\n{_STATUS}\n\n{manual('analysis')}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("items", nargs="*", metavar="ITEM", help="see below")
    command.set_defaults(run=attention.run)
    offer(parser, option_words({**_WINDOWS_OPTIONS, **_SIGNAL_OPTIONS, **attention.OPTIONS}))
    arguments = parser.parse_args(given)
    end(run_command("swinv2-analyze", lambda: _run(arguments, given)))


def _run(arguments: argparse.Namespace, given: Sequence[str]) -> int:
    use_imports(arguments)
    return arguments.run(arguments.items, given)


def split_models(
    items: Sequence[str], known: Mapping[str, Callable[[str], Any]]
) -> tuple[list[tuple[str | None, str]], dict[str, Any], list[str]]:
    """Return the models as (name, path), the options, and the changes to the models.

    Raises:
        ConfigError: for an item that is none of these, or if there is no model.
    """
    models: list[tuple[str | None, str]] = []
    others = []
    for item in items:
        key, equals, path = item.partition("=")
        unknown = key not in known and key.partition(".")[0] not in SECTIONS
        if not equals or (key not in known and Path(item).exists()):
            models.append((None, item))
        elif unknown and (_exists(path) or _looks_like_a_path(path)):
            models.append((key, path))
        else:
            others.append(item)
    options, overrides = split_items(others, known)
    if not models:
        raise ConfigError("", "", "name at least one run, checkpoint, or file of weights")
    name, missing = next((model for model in models if not _exists(model[1])), (None, None))
    if missing is not None:
        meant = difflib.get_close_matches(name or "", known, n=1, cutoff=0.75)
        hint = f", and {name} is not an option; did you mean {meant[0]}?" if meant else ""
        raise ConfigError("", missing, f"{missing} does not exist{hint}")
    return models, options, overrides


def _exists(path: str) -> bool:
    return Path(path).expanduser().exists()


def _looks_like_a_path(text: str) -> bool:
    return "/" in text or Path(text).suffix in (".pth", ".pt", ".bin", ".safetensors")


def _place(models: Sequence[tuple[str | None, str]], out: Path | None) -> Path:
    from swinv2_train.cli.evaluate_display import output_root

    directory = out or output_root(models[0][1]).parent / "analysis"
    writable("out", directory)
    return directory


def _windows(items: Sequence[str], given: Sequence[str]) -> int:
    models, options, overrides = split_models(items, _WINDOWS_OPTIONS)
    data = required(options, "data", "the labeled shards to evaluate on, such as data='shards/val-*.tar'")
    test_windows = required(options, "windows", "the windows to evaluate with, such as windows=8,12,16")
    sides = options.get("resolutions")
    if sides is not None and len(sides) != len(test_windows):
        hint = f"{len(sides)} resolutions for {len(test_windows)} windows"
        raise ConfigError("resolutions", ",".join(map(str, sides)), hint)
    started = start_if_alone(MODULE, given, options)
    if started is not None:
        return started

    from swinv2_train.analysis.window_transfer import window_curve
    from swinv2_train.cli.analyze_display import BIAS_NAMES, labels, windows_text, write_windows
    from swinv2_train.launch.failures import together

    found = []
    with ranks_of(options) as ranks, batches_shown(ranks) as progress:
        directory = together(ranks, lambda: _place(models, options.get("out")) if ranks.is_main else None)
        for _, path in models:
            request = eval_options(options, overrides, checkpoint=path)
            found.append(window_curve(request, test_windows, sides, ranks, progress))
        if directory is not None:
            kinds = [BIAS_NAMES[curve.config.model.position_bias] for curve in found]
            names = labels([name for name, _ in models], kinds, [curve.source for curve in found])
            curves = dict(zip(names, found, strict=True))
            print(windows_text(curves), flush=True)
            _say_written(write_windows(directory, curves, data))
    return FINISHED


def _signal(items: Sequence[str], given: Sequence[str]) -> int:
    models, options, overrides = split_models(items, _SIGNAL_OPTIONS)
    directory = _place(models, options.get("out"))

    from swinv2_train.cli.analyze_display import NORM_NAMES, labels, signal_text, write_signal
    from swinv2_train.interop.load import load_model

    found: list[list[BlockActivations]] = []
    facts, kinds, sources = [], [], []
    for _, path in models:
        loaded = load_model(path, overrides, which=options.get("which", "newest"), ema=options.get("ema", False))
        found.append(_measured(loaded, options))
        source, model = loaded.source, loaded.config.model
        sources.append(source.path)
        kinds.append(NORM_NAMES[model.norm_placement])
        facts.append({"checkpoint": str(source.path.resolve()), "step": source.step, "norm": model.norm_placement})
    names = labels([name for name, _ in models], kinds, sources)
    curves = dict(zip(names, found, strict=True))
    print(signal_text(curves), flush=True)
    images = options.get("data") or f"normal noise, seed {options.get('seed', 0)}"
    _say_written(write_signal(directory, curves, facts, images))
    return FINISHED


def _measured(loaded: LoadedModel, options: Mapping[str, Any]) -> list[BlockActivations]:
    from swinv2_train.analysis.activations import measure_activations
    from swinv2_train.models.precision import PRECISIONS

    device = choose_device(options.get("device", "auto"))
    precision = options.get("precision", "fp32")
    if precision == "fp16" and device.type != "cuda":
        raise ConfigError("precision", "fp16", "needs a GPU; use bf16 or fp32")
    model = loaded.model.to(device, PRECISIONS[precision])
    return measure_activations(model, _images(loaded, options).to(device))


def _images(loaded: LoadedModel, options: Mapping[str, Any]) -> Tensor:
    """Return the first images of the shards, or random ones: (B, C, H, W), normalized."""
    import torch

    from swinv2_train.config.checks import resolution

    config, count = loaded.config, options.get("batch", 32)
    if not options.get("data"):
        generator = torch.Generator().manual_seed(options.get("seed", 0))
        return torch.randn(count, config.model.in_channels, *resolution(config), generator=generator)
    from swinv2_train.analysis.probes import first_images
    from swinv2_train.data.augment import normalise
    from swinv2_train.data.shards import ShardSet

    cache = {key: options[key] for key in ("cache_dir", "cache_gib") if key in options}
    shards = ShardSet.open(options["data"], **cache, image=config.data.image)
    return normalise(first_images(config, shards, count, loaded.mean), loaded.mean, loaded.std)


def _say_written(paths: Sequence[Path]) -> None:
    print(f"\nwritten to {paths[0].parent}: {', '.join(path.name for path in paths)}")


if __name__ == "__main__":
    main()
