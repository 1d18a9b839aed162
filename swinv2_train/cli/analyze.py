"""`swinv2-analyze`: figures of finished models: accuracy over test-time windows and the signal propagation plot of the
paper, and attention maps.

Exit status: 0 done; 1 failed; 2 usage error; 130 interrupted.
"""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swinv2_train.cli import attention
from swinv2_train.cli.arguments import Parser, shards
from swinv2_train.cli.completion import offer
from swinv2_train.cli.ending import end, run_command
from swinv2_train.cli.evaluate import batches_shown, choose_device, eval_options, joined, ranks_of, start_if_alone
from swinv2_train.cli.loading import loading
from swinv2_train.cli.manual import manual
from swinv2_train.cli.plugins import add_imports, use_imports
from swinv2_train.cli.values import file_path, whole, wholes
from swinv2_train.cli.weight_arguments import (
    add_cache,
    add_choice,
    add_device,
    add_precision,
    add_ranks,
    changes_of,
    check_precision,
    check_shards,
    check_weights,
    given_options,
    writable,
)
from swinv2_train.config.errors import ConfigError
from swinv2_train.config.paths import user_path
from swinv2_train.config.window_scale import TEST_WINDOW
from swinv2_train.exit_codes import FINISHED
from swinv2_train.text import counted

if TYPE_CHECKING:  # these import torch
    from torch import Tensor

    from swinv2_train.config.schema import Config
    from swinv2_train.interop.load import LoadedModel
    from swinv2_train.models.activations import BlockActivations

MODULE = "swinv2_train.cli.analyze"
_OUT = "RUN/analysis of the first model, or ./analysis"
_STATUS = "exit status: 0 done; 1 failed; 2 usage error; 130 interrupted"
_WINDOWS_EXAMPLES = """\
examples:
  swinv2-analyze windows outputs/log_cpb outputs/linear_cpb outputs/table --data 'shards/val-*.tar' --windows 8,12,16
  swinv2-analyze windows outputs/log_cpb data='shards/val-*.tar' windows=8,12,16,20,24"""
_SIGNAL_EXAMPLES = """\
examples:
  swinv2-analyze signal pre-norm=outputs/pre res-post-norm=outputs/res_post --data 'shards/val-*.tar'"""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command and exit with its status."""
    given = list(sys.argv[1:] if argv is None else argv)
    parser = _parser()
    offer(parser)
    arguments = parser.parse_args(given)
    end(
        run_command("swinv2-analyze", lambda: _run(arguments, given), memory=arguments.memory),
        whole_process=argv is None,
    )


def _parser() -> Parser:
    parser = Parser(
        prog="swinv2-analyze",
        description="Figures of your own models: two of the Swin V2 paper, and attention maps.",
        epilog=manual("analysis", _STATUS),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)
    commands = parser.add_subparsers(title="commands", required=True, metavar="{windows,signal,attention}")
    _add_windows(commands)
    _add_signal(commands)
    attention.add_command(commands, _STATUS)
    return parser


def _run(arguments: argparse.Namespace, given: Sequence[str]) -> int:
    use_imports(arguments)
    return arguments.run(arguments, given)


def _command(commands: Any, name: str, line: str, examples: str) -> Parser:
    command: Parser = commands.add_parser(
        name,
        help=line,
        usage=f"swinv2-analyze {name} [NAME=]PATH ... [options] [KEY=VALUE ...]",
        description=f"Draw the {line}, write it as PNG and PDF, and the numbers as JSON.",
        epilog=f"{examples}\n\n{manual('analysis', _STATUS)}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument(
        "models",
        metavar="[NAME=]PATH",
        nargs="+",
        help="runs, checkpoints, or files of weights; one curve each, named NAME",
    )
    command.takes = _names_a_model
    add_choice(command)
    add_imports(command)
    return command


def _add_windows(commands: Any) -> None:
    line = "accuracy over test-time windows (table 1)"
    command = _command(commands, "windows", line, _WINDOWS_EXAMPLES)
    add = command.add_argument
    add("--data", required=True, metavar="SHARDS", help="labeled shards to evaluate on")
    add("--windows", type=wholes, required=True, metavar="N,N,...", help="the windows to evaluate with")
    add(
        "--resolutions",
        type=wholes,
        metavar="N,N,...",
        help="one for each window (default: proportional to the window, as in the paper)",
    )
    add_ranks(command, _OUT)
    memory = "use smaller windows, or lower --batch, --workers, or data.resolution"
    command.set_defaults(run=_windows, known=tuple(command.named()), memory=memory)


def _add_signal(commands: Any) -> None:
    line = "activation amplitude of every block (figure 2)"
    command = _command(commands, "signal", line, _SIGNAL_EXAMPLES)
    add = command.add_argument
    add("--data", metavar="SHARDS", help="the first images of these shards (default: random images, normal noise)")
    add("--batch", type=whole(1), default=32, metavar="N", help="number of images (default: %(default)s)")
    add("--seed", type=whole(0), default=0, metavar="N", help="seed of the random images (default: %(default)s)")
    add_precision(command)
    add_device(command)
    add("--out", type=file_path, metavar="DIR", help=f"default: {_OUT}")
    add_cache(command)
    command.set_defaults(run=_signal, known=tuple(command.named()), memory="lower --batch or data.resolution")


def split_models(items: Sequence[str], known: Collection[str]) -> list[tuple[str | None, str]]:
    """Return the models as (name, path).

    Args:
        known: names of the command's arguments, for the message.

    Raises:
        ConfigError: if one does not exist.
    """
    models: list[tuple[str | None, str]] = []
    for item in items:
        name, equals, path = item.partition("=")
        models.append((name, path) if equals and not _exists(item) and "/" not in name else (None, item))
    for name, path in models:
        if not _exists(path):
            meant = difflib.get_close_matches(name or "", known, n=1, cutoff=0.75)
            hint = f", and {name} is not an option; did you mean {meant[0]}?" if meant else ""
            raise ConfigError("", path, f"{path} does not exist{hint}")
    return models


def _names_a_model(item: str) -> bool:
    path = item.partition("=")[2]
    return _exists(path) or "/" in path or Path(path).suffix in (".pth", ".pt", ".bin", ".safetensors")


def _exists(path: str) -> bool:
    return user_path(path).exists()


def _place(models: Sequence[tuple[str | None, str]], out: Path | None) -> Path:
    from swinv2_train.cli.evaluate_display import output_root

    directory = out or output_root(models[0][1]).parent / "analysis"
    writable("out", directory)
    return directory


def _check_windows(arguments: argparse.Namespace, config: Config, device: str) -> None:
    from swinv2_train.analysis.window_sizes import check_windows, host_memory

    memory = host_memory() if device == "cpu" else None
    element = 4 if arguments.precision == "fp32" else 2
    sides, batch = arguments.resolutions, arguments.batch
    check_windows(config, arguments.windows, sides, batch=batch, element=element, memory=memory)


def _check(arguments: argparse.Namespace, models: Sequence[tuple[str | None, str]], ranks: int | None) -> Path:
    """Check what is known before torch is imported, and return the directory for the results.

    Raises:
        ConfigError, DataError, CheckpointError: naming the argument.
    """
    from swinv2_train.launch.local_ranks import choose_ranks

    device, _ = choose_ranks(arguments.device, ranks)
    check_precision(arguments, device)
    for _, path in models:
        config, _ = check_weights(arguments, path)
        if "windows" in arguments:
            _check_windows(arguments, config, device)
    if arguments.data:
        check_shards(shards([arguments.data]))
    directory = _place(models, arguments.out)
    loading("swinv2-analyze", ", ".join(path for _, path in models))
    return directory


def _windows(arguments: argparse.Namespace, given: Sequence[str]) -> int:
    models = split_models(arguments.models, arguments.known)
    test_windows, sides = arguments.windows, arguments.resolutions
    if arguments.test_window is not None:
        fix = "windows already sets the windows to evaluate with, for all stages in proportion; omit test_window"
        raise ConfigError(TEST_WINDOW, arguments.test_window, fix)
    if sides is not None and len(sides) != len(test_windows):
        found = counted(len(sides), "resolution")
        wanted = counted(len(test_windows), "window")
        hint = f"{found} for {wanted}: set one for each window, or omit resolutions"
        raise ConfigError("resolutions", ",".join(map(str, sides)), hint)
    options = given_options(arguments) | {"data": shards([arguments.data])}
    if not joined():
        _check(arguments, models, arguments.ranks)
    started = start_if_alone(MODULE, given, options)
    if started is not None:
        return started

    from swinv2_train.analysis.window_transfer import window_curve
    from swinv2_train.cli.analyze_display import BIAS_NAMES, labels, windows_text, write_windows
    from swinv2_train.launch.failures import together

    found = []
    with ranks_of(options) as ranks, batches_shown(ranks) as progress:
        directory = together(ranks, lambda: _place(models, arguments.out) if ranks.is_main else None)
        for _, path in models:
            request = eval_options(options, checkpoint=path)
            found.append(window_curve(request, test_windows, sides, ranks, progress))
        if directory is not None:
            kinds = [BIAS_NAMES[curve.config.model.position_bias] for curve in found]
            names = labels([name for name, _ in models], kinds, [curve.source for curve in found])
            curves = dict(zip(names, found, strict=True))
            print(windows_text(curves), flush=True)
            directory.mkdir(parents=True, exist_ok=True)
            _say_written(write_windows(directory, curves, options["data"]))
    return FINISHED


def _signal(arguments: argparse.Namespace, _given: Sequence[str]) -> int:
    models = split_models(arguments.models, arguments.known)
    directory = _check(arguments, models, None)

    from swinv2_train.cli.analyze_display import NORM_NAMES, labels, signal_text, write_signal
    from swinv2_train.interop.load import load_model

    found: list[list[BlockActivations]] = []
    facts, kinds, sources = [], [], []
    for _, path in models:
        loaded = load_model(path, changes_of(arguments), which=arguments.which, ema=arguments.ema)
        found.append(_measured(loaded, arguments))
        source, model = loaded.source, loaded.config.model
        sources.append(source.path)
        kinds.append(NORM_NAMES[model.norm_placement])
        facts.append({"checkpoint": str(source.path.resolve()), "step": source.step, "norm": model.norm_placement})
    names = labels([name for name, _ in models], kinds, sources)
    curves = dict(zip(names, found, strict=True))
    print(signal_text(curves), flush=True)
    images = shards([arguments.data]) if arguments.data else f"normal noise, seed {arguments.seed}"
    directory.mkdir(parents=True, exist_ok=True)
    _say_written(write_signal(directory, curves, facts, images))
    return FINISHED


def _measured(loaded: LoadedModel, arguments: argparse.Namespace) -> list[BlockActivations]:
    from swinv2_train.analysis.activations import measure_activations
    from swinv2_train.models.precision import PRECISIONS

    device = choose_device(arguments.device)
    model = loaded.model.to(device, PRECISIONS[arguments.precision])
    return measure_activations(model, _images(loaded, arguments).to(device))


def _images(loaded: LoadedModel, arguments: argparse.Namespace) -> Tensor:
    """Return the first images of the shards, or random ones: (B, C, H, W), of clips (B, C, T, H, W), normalized."""
    import torch

    from swinv2_train.config.checks import clip_frames, resolution

    config, count = loaded.config, arguments.batch
    if not arguments.data:
        generator = torch.Generator().manual_seed(arguments.seed)
        frames = [clip_frames(config)] if config.data.frames else []
        return torch.randn(count, config.model.in_channels, *frames, *resolution(config), generator=generator)
    from swinv2_train.analysis.features import normalised
    from swinv2_train.analysis.probes import first_images
    from swinv2_train.data.channel_statistics import check_channels_of_model
    from swinv2_train.data.configured import open_for_model

    opened = open_for_model(shards([arguments.data]), config, arguments.cache_dir, arguments.cache_gib)
    if config.data.image is None:  # the card describes the first image of each sample
        check_channels_of_model(opened.card, config.model.in_channels, "data", arguments.data)
    return normalised(first_images(config, opened, count, loaded.mean), loaded.mean, loaded.std)


def _say_written(paths: Sequence[Path]) -> None:
    print(f"\nwritten to {paths[0].parent}: {', '.join(path.name for path in paths)}")


if __name__ == "__main__":
    main()
