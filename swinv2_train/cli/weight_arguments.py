"""Arguments of the commands that use finished weights, and their checks before torch is imported."""

from __future__ import annotations

import argparse
import contextlib
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swinv2_train.cli.arguments import ITEM
from swinv2_train.cli.values import above_zero, file_path, whole
from swinv2_train.config.errors import ConfigError
from swinv2_train.config.window_scale import TEST_WINDOW
from swinv2_train.shortage import remedied

if TYPE_CHECKING:
    from swinv2_train.config.schema import Config
    from swinv2_train.interop.source import WeightSource

CHANGES_HELP = (
    "changes to the model and its input: model.window=24, model.attention=sequential, data.resolution=384, "
    "data.crop_pct=0.9, data.crop_mode=squash (resize, no crop), data.mean=..."
)

_AMONG_CHANGES = {"test_window": TEST_WINDOW, "views": "task.views"}
"""Options that are changes to the model or its input, each with the key that it sets."""


def add_checkpoint(parser: argparse.ArgumentParser) -> None:
    """Add the argument for the weights."""
    parser.add_argument(
        "checkpoint",
        metavar="CHECKPOINT",
        help="a run, a checkpoint, or a file or directory of weights (this package's, official, timm, Hugging Face)",
    )


def add_choice(parser: argparse.ArgumentParser) -> None:
    """Add the options that select weights of a run, and the changes to the model."""
    parser.add_argument("changes", metavar=ITEM, nargs="*", help=CHANGES_HELP)
    add = parser.add_argument
    add(
        "--test-window",
        metavar="N",
        help="attention window of stage 1, with those of the other stages in proportion to the training, or [N,N,N,N]; "
        "the position bias keeps the windows of the training",
    )
    add("--which", choices=["newest", "best"], default="newest", help="checkpoint of a run (default: %(default)s)")
    add("--ema", action="store_true", help="use the moving average instead of the weights")


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add the option for the device."""
    parser.add_argument("--device", choices=["auto", "cuda", "cpu"], default="auto", help="(default: %(default)s)")


def add_precision(parser: argparse.ArgumentParser) -> None:
    """Add the option for the precision of the computation."""
    parser.add_argument(
        "--precision", choices=["fp32", "bf16", "fp16"], default="fp32", help="of the model (default: %(default)s)"
    )


def add_cache(parser: argparse.ArgumentParser) -> None:
    """Add the options for the cache of remote shards."""
    add = parser.add_argument
    add("--cache-dir", default="~/.cache/swinv2_train/shards", metavar="DIR", help="cache of remote shards")
    add("--cache-gib", type=above_zero, default=50.0, metavar="GIB", help="maximum size of it (default: %(default)s)")


def add_ranks(parser: argparse.ArgumentParser, out: str | None = None) -> None:
    """Add the options of commands that read shards on any number of ranks.

    Args:
        out: the default of --out, for the help; None: the command has no such option.
    """
    add = parser.add_argument
    add("--batch", type=whole(1), default=32, metavar="N", help="images per rank and forward pass (default: 32)")
    add_precision(parser)
    add(
        "--ranks", type=whole(1), metavar="N", help="default: one per GPU, or one on the CPU; or start it with torchrun"
    )
    add_device(parser)
    add("--workers", type=whole(0), default=4, metavar="N", help="decoding processes of a rank (default: 4)")
    add("--max-samples", type=whole(1), metavar="N", help="only the first N samples")
    if out is not None:
        add("--out", type=file_path, metavar="DIR", help=f"default: {out}")
    add_cache(parser)
    add("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)


def changes_of(arguments: argparse.Namespace) -> list[str]:
    """Return the changes to the model, among them the test window and the views."""
    given = {key: getattr(arguments, name, None) for name, key in _AMONG_CHANGES.items()}
    return [*arguments.changes, *(f"{key}={value}" for key, value in given.items() if value is not None)]


def check_weights(arguments: argparse.Namespace, checkpoint: str | None = None) -> tuple[Config, WeightSource]:
    """Return the config for using weights, and their description; only a file of torch needs torch.

    Args:
        checkpoint: default: `arguments.checkpoint`.

    Raises:
        ConfigError, CheckpointError: as `interop.load.load_model`, as far as that is known without the tensors.
    """
    from swinv2_train.interop.load import source_config
    from swinv2_train.interop.source import open_source

    with open_source(checkpoint or arguments.checkpoint, which=arguments.which, ema=arguments.ema) as source:
        return source_config(source, changes_of(arguments)), source


def check_shards(spec: str | Sequence[str]) -> None:
    """Check that local shards exist; remote ones are checked when they are opened.

    Raises:
        DataError: naming the first one that does not.
    """
    from swinv2_train.data.remote import ShardCache
    from swinv2_train.data.remote_file import is_remote
    from swinv2_train.data.sources import expand

    local = [part for part in ([spec] if isinstance(spec, str) else spec) if not is_remote(part)]
    if local:
        expand(local, ShardCache(Path(), 0))


def check_precision(arguments: argparse.Namespace, device: str) -> None:
    """Check that the device computes in the requested precision.

    Raises:
        ConfigError: if it does not.
    """
    if arguments.precision == "fp16" and device != "cuda":
        raise ConfigError("precision", "fp16", "needs a GPU; use bf16 or fp32")


def writable(key: str, directory: Path) -> None:
    """Check that a directory is writable, or can be created; one that did not exist is not left behind.

    Raises:
        ConfigError: if that is not possible.
    """
    new: list[Path] = []
    try:
        new = [each for each in (directory, *directory.parents) if not each.exists()]
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        raise ConfigError(key, directory, f"cannot be written to ({remedied(error)})") from error
    finally:
        for each in new:  # the deepest first
            with contextlib.suppress(OSError):  # another process may have put something there
                each.rmdir()


def given_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments that have a value; test window and views are among the changes to the model."""
    given = {key: value for key, value in vars(arguments).items() if value is not None and key not in _AMONG_CHANGES}
    return given | ({"changes": changes_of(arguments)} if "changes" in given else {})
