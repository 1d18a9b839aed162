"""`swinv2-predict`: predict the classes of image files, as a table, CSV, JSON lines, or a contact sheet.

Exit status: 0 done; 1 failed, or some images could not be read (they are named); 2 usage error (missing path, a model
without classes, a wrong list of names); 130 interrupted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swinv2_train.checkpoint.errors import CheckpointError
from swinv2_train.checkpoint.identity import moved_name
from swinv2_train.cli.arguments import Parser
from swinv2_train.cli.completion import offer
from swinv2_train.cli.ending import end, run_command
from swinv2_train.cli.loading import loading
from swinv2_train.cli.manual import manual
from swinv2_train.cli.plugins import add_imports, use_imports
from swinv2_train.cli.prediction import Prediction
from swinv2_train.cli.sheet_pages import MOST_PAGES, ON_PAGE, earlier_pages, page_paths, write_pages
from swinv2_train.cli.values import file_path, whole
from swinv2_train.cli.weight_arguments import add_checkpoint, add_choice, add_device, check_weights, writable
from swinv2_train.config.errors import ConfigError
from swinv2_train.exit_codes import FAILED, FINISHED
from swinv2_train.reading import UnreadableError, decode_text
from swinv2_train.text import printable
from swinv2_train.writing import write_bytes

if TYPE_CHECKING:  # imports torch
    from torch import Tensor

    from swinv2_train.cli.sheet import Entry
    from swinv2_train.config.schema import Config
    from swinv2_train.interop.load import LoadedModel
    from swinv2_train.interop.source import WeightSource

_READERS = 4
_HELP = f"""\
Folders are searched to any depth, like by swinv2-data pack. Output files replace existing ones of the same name.

A sheet is a self-contained HTML page or a PNG. A page has at most {ON_PAGE[".html"]} images (PNG: {ON_PAGE[".png"]});
the next ones go to FILE-2.html, FILE-3.html, ..., up to --pages.

examples:
  swinv2-predict outputs/in1k_tiny_256 holiday/*.jpg
  swinv2-predict outputs/in1k_tiny_256 my-images --which best --out predictions
  swinv2-predict checkpoint=swinv2_tiny_window8.pth images=my-images labels=names.txt top=3 sheet=sheet.png

exit status: 0 done; 1 some images could not be read, or it failed; 2 usage error; 130 interrupted"""


@dataclass
class Predictions:
    """Predictions for all files, in their order."""

    found: list[Prediction] = field(default_factory=list)
    broken: list[tuple[Path, str]] = field(default_factory=list)
    """Unreadable files, each with the reason."""
    pictures: list[Entry] = field(default_factory=list)
    """Entries of the sheet."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command and exit with its status."""
    parser = _parser()
    offer(parser)
    arguments = parser.parse_args(argv)
    end(run_command("swinv2-predict", lambda: _run(arguments)))


def _parser() -> Parser:
    parser = Parser(
        prog="swinv2-predict",
        usage="swinv2-predict CHECKPOINT IMAGES... [options] [KEY=VALUE ...]",
        description="Classify images with any classifier: this package's, official, timm, Hugging Face.",
        epilog=f"{_HELP}\n\n{manual('analysis')}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_checkpoint(parser)
    add = parser.add_argument
    add("images", metavar="IMAGES", nargs="+", help="image files, folders, or patterns")
    add_choice(parser)
    add("--top", type=whole(1), default=5, metavar="N", help="classes per image (default: %(default)s)")
    add("--batch", type=whole(1), default=16, metavar="N", help="images per forward pass (default: %(default)s)")
    add("--labels", type=file_path, metavar="FILE", help="names of the classes, one per line, if the weights have none")
    add("--csv", type=file_path, metavar="FILE", help="write a line per image and class")
    add("--jsonl", type=file_path, metavar="FILE", help="write a JSON object per image")
    add("--sheet", type=file_path, metavar="FILE", help="draw the images with their classes: FILE.html or FILE.png")
    add(
        "--pages",
        type=whole(1),
        default=MOST_PAGES,
        metavar="N",
        help="pages of a sheet at most (default: %(default)s)",
    )
    add("--out", type=file_path, metavar="DIR", help="write predictions.csv, predictions.jsonl and sheet.html into DIR")
    add_device(parser)
    add_imports(parser)
    return parser


def _run(arguments: argparse.Namespace) -> int:
    from swinv2_train.interop.images import find_images
    from swinv2_train.launch.local_ranks import choose_ranks

    use_imports(arguments)
    choose_ranks(arguments.device, 1)
    images = find_images(arguments.images)
    paths = images.files
    config, source = check_weights(arguments)
    names = class_names(config, source, arguments.labels)
    targets = _targets(arguments)
    _keep_inputs(paths, targets, arguments.pages)
    loading("swinv2-predict", f"{source.path} for {len(paths):,} images")

    from swinv2_train.interop.load import load_model

    loaded = load_model(arguments.checkpoint, arguments.changes, which=arguments.which, ema=arguments.ema)
    for note in loaded.source.notes:
        print(f"swinv2-predict: {note}", file=sys.stderr)
    most = max((arguments.pages * ON_PAGE[path.suffix] for path in targets["sheet"]), default=0)
    done = predict(
        loaded, paths, names, top=arguments.top, batch=arguments.batch, device=arguments.device, pictures=most
    )
    for line in (*(f"{path}: {reason}" for path, reason in done.broken), *images.notes):
        print(f"swinv2-predict: {line}", file=sys.stderr)
    print_predictions(done.found)
    _write(done, targets, loaded, arguments.pages)
    if done.broken:
        print(f"{len(done.found):,} images predicted, {len(done.broken):,} could not be read", file=sys.stderr)
    return FAILED if done.broken or images.lost else FINISHED


def _targets(arguments: argparse.Namespace) -> dict[str, list[Path]]:
    """Return the files to write, by kind; create their folders.

    Raises:
        ConfigError: if one cannot be written.
    """
    targets = {kind: [path] if (path := getattr(arguments, kind)) else [] for kind in ("csv", "jsonl", "sheet")}
    for path in targets["sheet"]:
        if path.suffix not in ON_PAGE:
            raise ConfigError("", path, f"--sheet {path}: the name must end in {' or '.join(ON_PAGE)}")
    if arguments.out:
        writable("--out", arguments.out)
        for kind, name in (("csv", "predictions.csv"), ("jsonl", "predictions.jsonl"), ("sheet", "sheet.html")):
            targets[kind].append(arguments.out / name)
    for path in (path for paths in targets.values() for path in paths):
        if not path.parent.is_dir():
            raise ConfigError("", path, f"{path.parent} is not a directory, so {path} cannot be written")
    return targets


def _keep_inputs(paths: Sequence[Path], targets: dict[str, list[Path]], pages: int) -> None:
    """Check that no output, including the further pages of a sheet, is one of the images or a directory."""
    inputs = {path.resolve() for path in paths}
    outputs = [path for kind in ("csv", "jsonl") for path in targets[kind]]
    outputs += [page for path in targets["sheet"] for page in page_paths(path, len(paths), pages)]
    for target in outputs:
        if target.resolve() in inputs:
            raise ConfigError("", target, f"{target} is one of the images and would be overwritten")
        if target.is_dir():
            raise ConfigError("", target, f"{target} is a directory, so it cannot be written")


def class_names(config: Config, source: WeightSource, labels: Path | None) -> list[str]:
    """Return a name for every class: from the file, from the weights, or their numbers.

    Raises:
        ConfigError: if the model has no classes, or the file does not have one line for each.
    """
    if config.task.OUTPUT != "logits":
        hint = "train a classifier from it with init_from, or see its features with swinv2-eval probe=SHARDS"
        path = source.path
        raise ConfigError("", path, f"{path} is a {config.task.name} model, which has no classes to name; {hint}")
    count = source.num_classes
    if labels is None:
        return source.class_names or [f"class {number}" for number in range(count)]
    try:
        lines = decode_text(labels.read_bytes()).splitlines()
    except OSError as error:
        raise ConfigError("", labels, f"--labels {labels} cannot be read ({error.strerror})") from error
    except UnreadableError as error:
        raise ConfigError("", labels, f"--labels {labels} is not a text file ({error})") from None
    names = [line.strip() for line in lines]
    while names and not names[-1]:
        names.pop()
    if len(names) != count:
        raise ConfigError("", labels, f"--labels {labels} has {len(names):,} lines, the model {count:,} classes")
    moved = moved_name(source.class_names or [], names)
    if moved is not None:
        known = (source.class_names or []).index(moved)
        hint = f"is class {names.index(moved)} there and class {known} of the model; put the lines into its order"
        raise ConfigError("", labels, f"--labels {labels}: {moved!r} {hint}, or omit --labels")
    return names


def predict(
    loaded: LoadedModel,
    paths: Sequence[Path],
    names: Sequence[str],
    *,
    top: int = 5,
    batch: int = 16,
    device: str = "auto",
    pictures: int = 0,
) -> Predictions:
    """Return the most likely classes of image files; unreadable files are skipped and named.

    Args:
        names: one for each class.
        pictures: keep thumbnails of the first N images.

    Raises:
        ConfigError: if the device does not exist.
    """
    import torch

    from swinv2_train.cli.data_display import Progress
    from swinv2_train.cli.evaluate import choose_device

    place = choose_device(device)
    model = loaded.model.to(place)
    several = loaded.config.task.multi_label
    done = Predictions()
    with Progress() as progress, torch.inference_mode():
        for number, (readable, images) in enumerate(_batches(loaded, paths, batch, done, pictures), 1):
            if readable:
                logits = model(torch.stack(images).to(place)).float().cpu()
                if not logits.isfinite().all():
                    raise CheckpointError(f"the outputs of {loaded.source.path} are not finite: its weights are broken")
                shares = logits.sigmoid() if several else logits.softmax(dim=1)
                done.found.extend(_best(path, row, names, top) for path, row in zip(readable, shares, strict=True))
            progress.show("images", min(number * batch, len(paths)), len(paths))
    by_path = {prediction.path: prediction for prediction in done.found}
    for entry in done.pictures:
        entry.bars = [(name, share) for _, name, share in by_path[entry.path].classes]
    return done


def _batches(
    loaded: LoadedModel, paths: Sequence[Path], batch: int, done: Predictions, pictures: int
) -> Iterator[tuple[list[Path], list[Tensor]]]:
    """Yield readable files and their images, in groups of `batch` files."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(_READERS) as pool:
        for start in range(0, len(paths), batch):
            group = paths[start : start + batch]
            left = max(0, pictures - len(done.pictures))
            wanted = [index < left for index in range(len(group))]
            readable, images = [], []
            for path, outcome in zip(group, pool.map(_read, group, [loaded] * len(group), wanted), strict=True):
                if isinstance(outcome, str):
                    done.broken.append((path, outcome))
                    continue
                image, entry = outcome
                readable.append(path)
                images.append(image)
                if entry is not None:
                    done.pictures.append(entry)
            yield readable, images


def _read(path: Path, loaded: LoadedModel, wanted: bool) -> tuple[Tensor, Entry | None] | str:
    """Return the input of the model and, if requested, a thumbnail; or the reason why the file cannot be used."""
    from swinv2_train.cli.sheet import Entry
    from swinv2_train.data.decode import DecodeOptions
    from swinv2_train.data.errors import BrokenSample
    from swinv2_train.data.pixels import largest_value
    from swinv2_train.interop.images import prepare, read_image
    from swinv2_train.tracking.figures import to_pil

    try:
        options = DecodeOptions.of(loaded.config.data, loaded.mean)
        image = read_image(path, loaded.config.model.in_channels, options)
    except BrokenSample as error:
        return str(error)
    entry = None
    if wanted:
        entry = Entry.of(path, to_pil(image.numpy() / largest_value(image)))
    return prepare(image, loaded.config, loaded.mean, loaded.std), entry


def _best(path: Path, shares: Tensor, names: Sequence[str], top: int) -> Prediction:
    values, numbers = shares.topk(min(top, len(shares)))
    pairs = zip(numbers.tolist(), values.tolist(), strict=True)
    return Prediction(path, [(number, names[number], value) for number, value in pairs])


def print_predictions(found: Sequence[Prediction]) -> None:
    """Print a table: drawn on a terminal, aligned columns elsewhere."""
    if not found:
        return
    rows = [(str(one.path), *(f"{name} {share:.1%}" for _, name, share in one.classes)) for one in found]
    titles = ("image", *(f"{rank}." for rank in range(1, len(rows[0]))))
    if not sys.stdout.isatty():
        from swinv2_train.cli.checkpoint_display import table

        print(table([titles, *rows]))
        return
    from rich.console import Console
    from rich.table import Table

    drawn = Table(header_style="bold")
    for index, title in enumerate(titles):
        drawn.add_column(title, overflow="fold", style="bold" if index == 1 else "")
    for row in rows:
        drawn.add_row(*map(_plain, row))
    Console().print(drawn)


def _plain(text: str) -> Any:
    """Return text whose brackets rich does not interpret."""
    from rich.text import Text

    return Text(printable(text))


def _write(done: Predictions, targets: dict[str, list[Path]], loaded: LoadedModel, pages: int) -> None:
    from swinv2_train.cli.sheet import csv_text, jsonl_text

    written = []
    for path in targets["csv"]:
        write_bytes(path, csv_text(done.found).encode(errors="surrogateescape"))
        written.append(path)
    for path in targets["jsonl"]:
        # A lone surrogate becomes a JSON escape.
        write_bytes(path, jsonl_text(done.found).encode(errors="backslashreplace"))
        written.append(path)
    earlier = []
    for path in targets["sheet"]:
        shown = write_pages(path, done.pictures, str(loaded.source.path), len(done.found), pages)
        written += shown
        earlier += earlier_pages(path, shown)
    if written:
        print(f"written: {', '.join(map(str, written))}")
    if earlier:
        print(f"not part of this sheet, probably of an earlier one: {', '.join(map(str, earlier))}", file=sys.stderr)


if __name__ == "__main__":
    main()
