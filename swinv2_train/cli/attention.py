"""`swinv2-analyze attention`: attention maps of a few images as one figure."""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swinv2_train.cli.arguments import Parser
from swinv2_train.cli.evaluate import choose_device
from swinv2_train.cli.loading import loading
from swinv2_train.cli.manual import manual
from swinv2_train.cli.plugins import add_imports
from swinv2_train.cli.values import file_path
from swinv2_train.cli.weight_arguments import add_checkpoint, add_choice, add_device, changes_of, check_weights
from swinv2_train.config.errors import ConfigError
from swinv2_train.exit_codes import FAILED, FINISHED
from swinv2_train.redact import redact
from swinv2_train.writing import write_bytes

if TYPE_CHECKING:  # these import torch
    from torch import Tensor

    from swinv2_train.interop.load import LoadedModel

_MOST_IMAGES = 16
_HELP = """\
A token attends only inside its window. Both maps are averages over the heads and blocks of a stage, drawn from 0 to
their largest value:
  received                 attention that a token receives from all others
  of the mark              attention of the token at the marked position

example:
  swinv2-analyze attention outputs/in1k_tiny_256 my-images/cat.jpg my-images/dog.jpg attention.png --at 0.4,0.6"""


def _position(text: str) -> tuple[float, float]:
    try:
        x, y = (float(part) for part in text.strip("[]").split(","))
    except ValueError:
        x = y = -1.0
    if not (0 <= x <= 1 and 0 <= y <= 1):
        raise ValueError("must be two numbers from 0 to 1, such as 0.5,0.5: x from the left, y from the top")
    return x, y


def add_command(commands: Any, status: str) -> None:
    """Add the subcommand.

    Args:
        status: the line about the exit status, for the help.
    """
    command: Parser = commands.add_parser(
        "attention",
        help="attention maps of a few images",
        usage="swinv2-analyze attention CHECKPOINT IMAGES... OUT.png [options] [KEY=VALUE ...]",
        description="Draw which tokens a model attends to, for every stage.",
        epilog=f"{_HELP}\n\n{manual('analysis', status)}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_checkpoint(command)
    add = command.add_argument
    add("images", metavar="IMAGES", nargs="+", help=f"files, folders, and patterns; at most {_MOST_IMAGES} images")
    add("out", metavar="OUT.png", type=file_path, help="the figure: a row per image, a column per stage")
    add_choice(command)
    add(
        "--at",
        type=_position,
        metavar="X,Y",
        help="also draw the attention of the token at this position, as fractions of the image",
    )
    add_device(command)
    add_imports(command)
    command.set_defaults(run=_run, memory="use a lower data.resolution")


def _run(arguments: argparse.Namespace, _given: Sequence[str]) -> int:
    """Draw the figure and return the exit code.

    Raises:
        ConfigError: for a usage error.
    """
    from swinv2_train.interop.images import find_images
    from swinv2_train.launch.local_ranks import choose_ranks

    out = arguments.out
    if out.suffix != ".png":
        raise ConfigError("", out, f"{out}: the last path is the figure, and its name must end in .png")
    if out.is_dir() or not out.parent.is_dir():
        raise ConfigError("", out, f"{out} cannot be written: it is a directory, or {out.parent} is not one")
    paths = find_images(arguments.images).files
    if out.resolve() in {path.resolve() for path in paths}:
        raise ConfigError("", out, f"{out} is one of the images and would be overwritten")
    if len(paths) > _MOST_IMAGES:
        raise ConfigError("", None, f"{len(paths):,} images are too many for one figure; name at most {_MOST_IMAGES}")
    choose_ranks(arguments.device, 1)
    config, source = check_weights(arguments)
    if config.data.frames:
        hint = f"{source.path} is a model of clips, and attention maps are drawn of images; use a model of images"
        raise ConfigError("", source.path, hint)
    loading("swinv2-analyze", f"{source.path}")

    import torch

    from swinv2_train.analysis.attention import attention_figure, attention_maps
    from swinv2_train.data.augment import normalise
    from swinv2_train.data.pixels import largest_value
    from swinv2_train.interop.load import load_model
    from swinv2_train.tracking.figures import to_pil

    device = choose_device(arguments.device)
    loaded = load_model(arguments.checkpoint, changes_of(arguments), which=arguments.which, ema=arguments.ema)
    loaded.model.to(device)
    broken, names, pictures, maps = 0, [], [], []
    for path in paths:
        crop = _crop(path, loaded)
        if crop is None:
            broken += 1
            continue
        image = normalise(crop[None].to(device), loaded.mean, loaded.std)
        maps.append(attention_maps(loaded.model, image, arguments.at))
        values = (crop.float() / largest_value(crop)).numpy()
        pictures.append(to_pil(values, stretch=crop.dtype == torch.uint16))
        names.append(path.name)
    if names:
        scale = "averaged over the heads and blocks of each stage; dark is 0, bright the largest value"
        footer = redact(f"attention of {loaded.source.path}, {scale}")
        stream = io.BytesIO()
        attention_figure(pictures, names, maps, arguments.at, footer).save(stream, "PNG")
        write_bytes(out, stream.getvalue())
        print(f"{out}: {len(names)} image{'' if len(names) == 1 else 's'}")
    return FAILED if broken else FINISHED


def _crop(path: Path, loaded: LoadedModel) -> Tensor | None:
    """Return the evaluation crop (C, H, W) of a file as decoded; None, with a line on stderr, if it cannot be read."""
    from swinv2_train.config.checks import resolution
    from swinv2_train.data.augment import eval_crop
    from swinv2_train.data.decode import DecodeOptions
    from swinv2_train.data.errors import BrokenSample
    from swinv2_train.data.image_input import read_image

    data = loaded.config.data
    try:
        image = read_image(path, loaded.config.model.in_channels, DecodeOptions.of(data, loaded.mean))
    except BrokenSample as error:
        print(redact(f"swinv2-analyze: {path}: {error}"), file=sys.stderr)
        return None
    return eval_crop(image, resolution(loaded.config), data.crop_pct, data.crop_mode, data.augment.interpolation)
