"""`swinv2-predict`: predict files: the classes of images or of videos over time, with a segmenter the class of every
pixel, or with a detector the objects.

Exit status: 0 done; 1 failed, or some files could not be read (they are named); 2 usage error (missing path, a model
without classes, a wrong list of names); 130 interrupted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
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
from swinv2_train.cli.prediction_files import ImageFiles, Targets, add_outputs
from swinv2_train.cli.sheet_pages import ON_PAGE
from swinv2_train.cli.task_options import add_task_options, with_task_options
from swinv2_train.cli.values import file_path, whole
from swinv2_train.cli.weight_arguments import add_checkpoint, add_choice, add_device, changes_of, check_weights
from swinv2_train.config.errors import ConfigError
from swinv2_train.exit_codes import FAILED, FINISHED
from swinv2_train.reading import UnreadableError, decode_text
from swinv2_train.tasks.prediction import FinishedModel, Prediction, PredictOptions, Unreadable
from swinv2_train.text import counted, printable

if TYPE_CHECKING:  # imports torch
    from swinv2_train.cli.sheet import Entry
    from swinv2_train.config.schema import Config
    from swinv2_train.interop.load import LoadedModel
    from swinv2_train.interop.source import WeightSource

_MEMORY = "lower data.resolution or --batch, or, with a segmenter, use --inference slide or fewer --scales"
"""Remedies for a lack of memory."""
_HELP = f"""\
Folders are searched to any depth, like by swinv2-data pack. Tables and sheets replace existing ones of the same name;
label maps and overlays replace only those that an earlier call wrote.

A segmenter writes DIR/labels/NAME.png, the class number of every pixel (8 bits with the colors of the classes, or 16
bits above 255 classes; of a TIFF a TIFF with its georeference), and DIR/overlays/NAME.jpg; the tables have the pixels
of every class, and their area if the image has a map scale. With task.resize=native and --inference slide, TIFFs of any
size fit into memory; other images have at most data.max_pixels.

A detector writes DIR/detections.json, all boxes and masks as COCO has them, and DIR/pictures/NAME.jpg, the image with
those of at least --threshold; the tables have the same. --tile N cuts large images into tiles of N pixels.

A classifier of videos predicts windows of the length of its clips, from the start of the video to its end. The CSV has
a line for each: video, start, end (seconds), class1, p1, class2, p2, ... (name and probability of the --top classes,
best first); the JSON of a video has its averages and its windows. DIR gets them, videos.csv (the averages, a line per
video and class), and strips/NAME.jpg, frames of the video above the probabilities over time. Videos are read as they
are decoded, so they may have any length; task.views=1x3 averages three crops of every window.

A sheet is a self-contained HTML page or a PNG. A page has at most {ON_PAGE[".html"]} images (PNG: {ON_PAGE[".png"]});
the next ones go to FILE-2.html, FILE-3.html, ..., up to --pages.

examples:
  swinv2-predict outputs/in1k_tiny_256 holiday/*.jpg
  swinv2-predict outputs/in1k_tiny_256 my-images --which best --out predictions
  swinv2-predict checkpoint=swinv2_tiny_window8.pth images=my-images labels=names.txt top=3 sheet=sheet.png
  swinv2-predict outputs/segment_tiles scenes/*.tif --out maps --inference slide --overlap 0.25
  swinv2-predict outputs/detect_own forest/*.tif --out trees --tile 400 --threshold 0.3
  swinv2-predict outputs/k400_tiny holiday.mp4 more-videos --out actions --hop 0.5

exit status: 0 done; 1 some files could not be read, or it failed; 2 usage error; 130 interrupted"""


@dataclass
class Predictions:
    """Predictions for all files, in their order."""

    found: list[Prediction] = field(default_factory=list)
    broken: list[Unreadable] = field(default_factory=list)
    entries: list[Entry] = field(default_factory=list)
    """Entries of the sheet."""
    kind: type[Prediction] = Prediction
    notes: list[str] = field(default_factory=list)
    """Messages about the predictions for the user."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command and exit with its status."""
    parser = _parser()
    offer(parser)
    arguments = parser.parse_args(argv)
    end(run_command("swinv2-predict", lambda: _run(arguments), memory=_MEMORY), whole_process=argv is None)


def _parser() -> Parser:
    parser = Parser(
        prog="swinv2-predict",
        usage="swinv2-predict CHECKPOINT IMAGES... [options] [KEY=VALUE ...]",
        description="Classify images with any classifier (this package's, official, timm, Hugging Face), segment them, "
        "detect objects, or classify videos over time.",
        epilog=f"{_HELP}\n\n{manual('analysis')}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_checkpoint(parser)
    add = parser.add_argument
    add("images", metavar="IMAGES", nargs="+", help="image or video files, folders, or patterns")
    add_choice(parser)
    add("--top", type=whole(1), default=5, metavar="N", help="classes per image or window (default: %(default)s)")
    add(
        "--batch",
        type=whole(1),
        metavar="N",
        help="images per forward pass (default: 16), windows or tiles (1), or clips of a video (4)",
    )
    add("--labels", type=file_path, metavar="FILE", help="names of the classes, one per line, if the weights have none")
    add_task_options(parser)
    add_outputs(parser)
    add_device(parser)
    add_imports(parser)
    return parser


def _run(arguments: argparse.Namespace) -> int:
    from swinv2_train.data.samples import IMAGE, VIDEO
    from swinv2_train.interop.images import find_images
    from swinv2_train.launch.local_ranks import choose_ranks

    use_imports(arguments)
    choose_ranks(arguments.device, 1)
    config, source = with_task_options(arguments, check_weights)
    kind = VIDEO if config.data.frames else IMAGE
    names = class_names(config, source, arguments.labels)
    own = ImageFiles(arguments.out, config.task.PREDICT_FOLDERS) if arguments.out else None
    # Those of an earlier call may be in a folder of IMAGES.
    images = find_images(arguments.images, skip=[] if own is None else own.folders, kind=kind)
    paths = images.files
    targets = Targets.of(arguments)
    targets.check(paths)
    files = own.plan(paths) if own is not None else None
    loading("swinv2-predict", f"{source.path} for {counted(len(paths), kind, ',')}")

    from swinv2_train.interop.load import load_model

    loaded = load_model(arguments.checkpoint, changes_of(arguments), which=arguments.which, ema=arguments.ema)
    for note in loaded.source.notes:
        print(f"swinv2-predict: {note}", file=sys.stderr)
    record = own.record if own is not None else None
    options = PredictOptions(arguments.top, arguments.batch, targets.most_pictures, files, arguments.out, record)
    done = predict(loaded, paths, names, options, arguments.device)
    for line in (*(f"{one.path}: {one.reason}" for one in done.broken), *images.notes, *done.notes):
        print(f"swinv2-predict: {line}", file=sys.stderr)
    print_predictions(done.found, arguments.top)
    targets.write(done.found, done.kind, done.entries, str(loaded.source.path), names)
    if done.broken:
        print(
            f"{counted(len(done.found), kind, ',')} predicted, {len(done.broken):,} could not be read",
            file=sys.stderr,
        )
    return FAILED if done.broken or images.lost else FINISHED


def class_names(config: Config, source: WeightSource, labels: Path | None) -> list[str]:
    """Return a name for every class: from the file, from the weights, or their numbers.

    Raises:
        ConfigError: if the model has no classes, or the file does not have one line for each.
    """
    if config.task.OUTPUT == "features":
        hint = "train a classifier from it with init_from, or see its features with swinv2-eval probe=SHARDS"
        path = source.path
        raise ConfigError("", path, f"{path} is a {config.task.name} model, which has no classes to name; {hint}")
    count = source.num_classes or config.task.classes or 0
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
        raise ConfigError(
            "",
            labels,
            f"--labels {labels} has {counted(len(names), 'line', ',')}, the model {count:,} classes",
        )
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
    options: PredictOptions | None = None,
    device: str = "auto",
) -> Predictions:
    """Return the predictions for files; unreadable files are skipped and named.

    Args:
        names: one for each class.

    Raises:
        CheckpointError: if the outputs of the model are not finite.
        ConfigError: if the device does not exist.
    """
    import torch

    from swinv2_train.cli.data_display import Progress
    from swinv2_train.cli.evaluate import choose_device
    from swinv2_train.cli.sheet import Entry

    place, options = choose_device(device), options or PredictOptions()
    model = FinishedModel(loaded.model.to(place), loaded.config, loaded.mean, loaded.std, names, place)
    with Progress() as progress, torch.inference_mode():
        predictor = loaded.config.task.implementation().PREDICTOR(model, options, progress.show)
        done = Predictions(kind=predictor.PREDICTION, notes=predictor.notes)
        try:
            for one in predictor.predict(paths):
                if isinstance(one, Unreadable):
                    done.broken.append(one)
                    continue
                done.found.append(one)
                if one.picture is not None:
                    entry = Entry.of(one.path, one.picture)
                    entry.bars = one.bars(options.top)
                    entry.colors = one.colors()
                    done.entries.append(entry)
                    one.picture = None  # thousands of them would fill the memory
        except FloatingPointError as error:
            broken = f"the outputs of {loaded.source.path} are not finite: its weights are broken"
            raise CheckpointError(broken) from error
    return done


def print_predictions(found: Sequence[Prediction], top: int) -> None:
    """Print a table of the first classes: drawn on a terminal, aligned columns elsewhere."""
    if not found:
        return
    rows = [row for one in found for row in one.lines(top)]
    columns = max(map(len, rows))
    rows = [(*row, *[""] * (columns - len(row))) for row in rows]
    first = found[0].TITLES
    titles = (*first, *(f"{rank}." for rank in range(1, columns - len(first) + 1)))
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


if __name__ == "__main__":
    main()
