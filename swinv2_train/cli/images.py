"""`swinv2-train images=FOLDER`: pack a folder of images before the run, and train on the shards.

The shards are in a directory next to the run, named after the folder and a hash of its files and of everything else
that decides the shards. So an unchanged folder is packed once for all runs there, and a changed one gets other shards,
while those of earlier runs stay as they are.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swinv2_train.config.errors import ConfigError
from swinv2_train.config.overrides import key_of
from swinv2_train.config.paths import user_path
from swinv2_train.config.schema import Config, DataConfig
from swinv2_train.config.tasks import DETECTIONS, PIXEL_LOGITS
from swinv2_train.config.validate import validate
from swinv2_train.config.values import percentiles
from swinv2_train.data.errors import DataError, VideosFound
from swinv2_train.imports import lean_imports
from swinv2_train.launch.environment import joined
from swinv2_train.reading import UnreadableError, is_count, read_object
from swinv2_train.redact import redact
from swinv2_train.text import counted, printable
from swinv2_train.writing import write_bytes

if TYPE_CHECKING:  # these import numpy or torch
    from swinv2_train.data.pack import PackOptions, PackReport
    from swinv2_train.data.pack_entries import Source

HELD_OUT = 0.2
"""Fraction of the images that is held out."""
_VERSION = 1
_RECORD = "packed.json"
"""File that completes a directory of shards: its source, its shards with their sizes, and the number of images."""
_SHARD_KEYS = ("data.shards", "data.eval_shards")
_FEW = 64
"""Fewer images are packed by this process: others would take longer to start."""
_MANY = 1000
"""Packing this many images takes long enough to show its progress."""
_SHOWN_BROKEN = 3


@dataclass(frozen=True)
class Folder:
    """A folder of images, and the directory for its shards."""

    name: str
    source: Source
    classes: bool
    """True if every image is in a subfolder, so that the subfolders are classes."""
    directory: Path


def use_images(config: Config, overrides: Sequence[str], *, only_show: bool) -> None:
    """Set the shards of a config to those of the folder `config.images`; pack them unless they are complete.

    Args:
        config: not frozen, and not checked yet; it is checked before anything is packed.
        overrides: those of the command line, which must not set the shards as well.
        only_show: pack nothing. If there are no shards yet, the config names the future ones and the expected number of
            samples, and keeps `images`.

    Raises:
        ConfigError, DataError: if the folder cannot be used, or has changed since the run began.
    """
    name = config.images
    if name is None:
        return
    _refuse(config, name, overrides)
    folder = _find(config, name)
    _refuse_changed(config, folder)
    record = _read_record(folder.directory)
    config.images = None
    config.data.shards, config.data.eval_shards = _patterns(folder.directory, record)
    validate(config)
    if record is None and only_show:
        _expect(config, folder)
    elif record is None:
        record = _pack(config, folder)
        config.data.shards, config.data.eval_shards = _patterns(folder.directory, record)
    else:
        counts = f"{record['training']:,} for training, {record['held_out']:,} held out"
        _say(f"{name} is unchanged; using its shards in {folder.directory} ({counts})")


def _refuse(config: Config, name: str, overrides: Sequence[str]) -> None:
    """Check that the folder can be packed here, for this run."""
    if not name:
        raise ConfigError("images", "''", "set a folder of images, such as images=my-images")
    if config.data.frames:
        hint = f"data.frames={config.data.frames} reads videos, and images are packed here; pack videos with"
        raise ConfigError("images", name, f"{hint} swinv2-data pack {name} shards --video, and set data.shards")
    if config.task.OUTPUT == DETECTIONS:
        hint = f"task={config.task.name} needs the boxes of every image; pack them with swinv2-data pack {name} shards"
        raise ConfigError("images", name, f"{hint} --coco FILE.json (or --boxes, --voc), and set data.shards")
    if config.task.OUTPUT == PIXEL_LOGITS:
        hint = (
            f"task={config.task.name} needs a label map of every image; pack them with swinv2-data pack {name} shards"
        )
        raise ConfigError("images", name, f"{hint} --labels LABELS --classes-file FILE, and set data.shards")
    given = next((key_of(item) for item in overrides if key_of(item) in _SHARD_KEYS), None)
    if given:
        raise ConfigError("images", name, f"is packed into shards that replace {given}; set only one of the two")
    if config.replay:
        raise ConfigError("images", name, "a replay reads the shards of its run; omit images")
    if joined():
        hint = "is packed before the ranks start, and a launcher has started this one; pack it with"
        raise ConfigError("images", name, f"{hint} swinv2-data pack {name} shards, and set data.shards")
    place = user_path(name)
    if not place.exists():
        fix = "does not exist"
        if Path(config.run.dir).exists():
            fix += f"; to resume the run in {config.run.dir} without it, set data.shards to its shards"
        raise ConfigError("images", name, fix)
    run = Path(config.run.dir).resolve()
    if place.is_dir() and run.is_relative_to(place.resolve()):
        hint = f"is inside of images={name}, so the figures of the run would be packed; use a directory elsewhere"
        raise ConfigError("run.dir", config.run.dir, hint)
    if place.is_dir() and (run.parent / "shards").is_relative_to(place.resolve()):
        inside = f"{run.parent / 'shards'}, inside of images={name}"
        hint = f"the shards would be packed into {inside}; use a directory elsewhere"
        raise ConfigError("run.dir", config.run.dir, hint)


def _find(config: Config, name: str) -> Folder:
    """Return the folder with its images, and the directory for its shards."""
    from swinv2_train.data.pack_sources import open_source

    root = Path(config.run.dir).parent / "shards"
    place = str(user_path(name))
    try:
        source = open_source(place, classes=False, seed=0, out=root)
    except VideosFound as error:
        hint = "has videos and no images; pack them with"
        fix = f"swinv2-data pack {name} shards --video, and set data.shards and data.frames (task=video)"
        raise ConfigError("images", name, f"{hint} {fix}") from error
    except DataError as error:
        if not Path(place).is_file():
            raise
        hint = "is a file; set a folder of images, or a list of images (.csv, .jsonl)"
        raise ConfigError("images", name, f"{hint} ({error})") from error
    if source.shards is not None:
        raise ConfigError("images", name, f"has shards and no images; set data.shards='{name}/*.tar'")
    loose, subfolders = _layout(place, source)
    classes = not loose and len(subfolders) > 1
    if classes:
        source = open_source(place, classes=True, seed=0, out=root)
    if config.task.classes is not None and all(entry.label is None for entry in source.entries):
        found = f"{loose} of its images are in no subfolder" if loose else f"all images are in {subfolders[0]}"
        hint = f"task={config.task.name} needs a subfolder for each of at least two classes, and {found}"
        raise ConfigError("images", name, f"{hint}; a list of paths and labels (.csv) works as well")
    files = [(entry.key, entry.version, entry.label) for entry in source.entries]
    options = asdict(_options(config))
    for later in ("labels", "tile", "video"):  # no run sets them, and earlier versions named the directory without them
        del options[later]
    decides = [_VERSION, HELD_OUT, source.root, source.class_names, options, files]
    digest = hashlib.sha256(json.dumps(decides).encode()).hexdigest()
    safe = re.sub(r"[^\w.-]", "_", Path(source.root).name)
    return Folder(name, source, classes, root / f"{safe}-{digest[:8]}")


def _layout(place: str, source: Source) -> tuple[int, list[str]]:
    """Return the number of images directly in a folder, and its subfolders with images; for a list, 0 and none."""
    if not Path(place).is_dir():
        return 0, []
    parts = [Path(os.path.relpath(entry.path, place)).parts for entry in source.entries]
    return sum(len(each) == 1 for each in parts), sorted({each[0] for each in parts if len(each) > 1})


def _options(config: Config) -> PackOptions:
    from swinv2_train.data.pack_writer import PackOptions

    background = config.data.background
    kept = background if background not in (None, "mean") else "white"
    return PackOptions(channels=config.model.in_channels, max_pixels=config.data.max_pixels, background=kept)


def _patterns(directory: Path, record: dict[str, Any] | None) -> tuple[str, str]:
    """Return `data.shards` and `data.eval_shards`; the latter is empty if no image is held out."""
    held_out = record is None or record["held_out"]
    return f"{directory}/train-*.tar", f"{directory}/eval-*.tar" if held_out else ""


def _read_record(directory: Path) -> dict[str, Any] | None:
    """Return the record of a directory whose shards are complete; None for any other."""
    try:
        record = read_object(directory / _RECORD)
        sizes = {name: (directory / name).stat().st_size for name in record["shards"]}
        counted = is_count(record["training"]) and is_count(record["held_out"])
    except (OSError, UnreadableError, KeyError, TypeError):
        return None
    return record if counted and sizes == record["shards"] else None


def _refuse_changed(config: Config, folder: Folder) -> None:
    """Refuse to continue a run on other shards than those it began with, unless it accepts other data."""
    before = _shards_of_run(config)
    if before is None or "data" in config.resume.allow:
        return
    if Path(str(before.shards)).parent.resolve() == folder.directory.resolve():
        return
    keep = f"data.shards='{before.shards}' data.eval_shards='{before.eval_shards}'"
    hint = (
        f"the run in {config.run.dir} trains on {before.shards}, and the folder as it is now belongs into "
        f"{folder.directory}; to continue the run, set {keep} instead of images; to train on the folder as it is now, "
        "use another run.dir"
    )
    raise ConfigError("images", folder.name, hint)


def _shards_of_run(config: Config) -> DataConfig | None:
    """Return the data section of the run that has begun in the run directory; None if there is none."""
    from swinv2_train.config.compose import from_yaml

    resolved = Path(config.run.dir) / "resolved.yaml"
    if config.resume.mode == "never" or not resolved.is_file():
        return None
    try:
        return from_yaml(resolved, only_read=True).data
    except ConfigError:  # the start of the run reports it
        return None


def _expect(config: Config, folder: Folder) -> None:
    """Set the numbers that a dry run needs of a folder that is not packed yet."""
    count = len(folder.source.entries)
    _say(f"{counted(count, 'image', ',')} of {folder.name} would first be packed into {folder.directory}")
    if percentiles(config.data.scale) is not None:
        hint = "a dry run packs nothing, so there is no dataset card with percentiles; set numbers [low,high] here"
        raise ConfigError("data.scale", config.data.scale, hint)
    config.images, config.not_packed = folder.name, True
    config.data.expected_samples = max(1, count - round(HELD_OUT * count))
    if config.task.classes == 0 and folder.source.class_names:
        config.task.num_classes = len(folder.source.class_names)


def _announce(folder: Folder) -> None:
    kinds = f" in {len(folder.source.class_names or ()):,} classes, the subfolders" if folder.classes else ""
    count = len(folder.source.entries)
    _say(
        f"packing {counted(count, 'image', ',')}{kinds} of {folder.name} into {folder.directory}; "
        f"about {HELD_OUT:.0%} are held out"
    )
    others = [place for place in _others(folder) if place != folder.directory]
    if others:
        _say(f"the folder was packed before, when its images were others; {others[0]} stays for runs that use it")


def _others(folder: Folder) -> list[Path]:
    """Return the directories of shards that were packed from the same folder, newest first."""
    found = []
    for path in folder.directory.parent.glob(f"*/{_RECORD}"):
        try:
            same = read_object(path).get("source") == folder.source.root
        except (OSError, UnreadableError):
            continue
        if same:
            found.append((path.stat().st_mtime_ns, path.parent))
    return [place for _, place in sorted(found, reverse=True)]


def _pack(config: Config, folder: Folder) -> dict[str, Any]:
    """Pack a folder and record the result."""
    _announce(folder)
    with lean_imports():
        from swinv2_train.data.pack import BROKEN_FILE, PackRun, pack
    from swinv2_train.cli.data_display import Progress
    from swinv2_train.data.errors import NoHeldOutImages
    from swinv2_train.data.parallel import available_cores

    source = str(user_path(folder.name))
    count = len(folder.source.entries)
    with Progress() as progress:
        shown = {"progress": progress.show} if count >= _MANY else {}
        how = PackRun(workers=0 if count < _FEW else available_cores(), **shown)
        options = {"classes": folder.classes, "how": how}
        try:
            report = pack(source, folder.directory, _options(config), eval_share=HELD_OUT, **options)
        except NoHeldOutImages:
            _say("the images are too few to hold some out, so there is no evaluation and no figure")
            report = pack(source, folder.directory, _options(config), **options)
    for line in _report_lines(report, folder.directory / BROKEN_FILE):
        _say(line)
    sizes = {path.name: path.stat().st_size for path in sorted(folder.directory.glob("*.tar"))}
    counts = {name: card.num_samples for name, card in report.cards.items()}
    record = {"source": folder.source.root, "training": counts["train"], "held_out": counts.get("eval", 0)}
    write_bytes(folder.directory / _RECORD, json.dumps(record | {"shards": sizes}, indent=1).encode())
    return record


def _report_lines(report: PackReport, broken_file: Path) -> list[str]:
    counts = {name: card.num_samples for name, card in report.cards.items()}
    lines = [f"packed: {counts['train']:,} for training, {counts.get('eval', 0):,} held out"]
    lines += [*report.warnings, *report.notes]
    if report.broken:
        first = [f"{one['path']} ({one['reason']})" for one in report.broken[:_SHOWN_BROKEN]]
        more = f" and {len(report.broken) - len(first):,} more" if len(report.broken) > len(first) else ""
        lines.append(f"{len(report.broken):,} broken, skipped: {', '.join(first)}{more}; all are in {broken_file}")
    return lines


def _say(text: str) -> None:
    """Print a line on stderr: stdout may be a config that another program reads."""
    print(redact(f"images: {printable(text)}"), file=sys.stderr, flush=True)
