"""Output files of `swinv2-predict`: where they go, what they must not replace, and the writing of tables and sheets."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from swinv2_train.cli.sheet_pages import MOST_PAGES, ON_PAGE, earlier_pages, page_paths, write_pages
from swinv2_train.cli.values import file_path, whole
from swinv2_train.cli.weight_arguments import writable
from swinv2_train.config.errors import ConfigError
from swinv2_train.reading import UnreadableError, parse_json
from swinv2_train.tasks.prediction import Prediction
from swinv2_train.writing import write_bytes

if TYPE_CHECKING:  # imports PIL
    from swinv2_train.cli.sheet import Entry

_IN_DIRECTORY = (("csv", "predictions.csv"), ("jsonl", "predictions.jsonl"), ("sheet", "sheet.html"))
_SHOWN = 3
_LIST = ".swinv2-predict.jsonl"
"""Names of the files of single images that calls have written into an output directory, a JSON string per line."""


def add_outputs(parser: argparse.ArgumentParser) -> None:
    """Add the options for the output files."""
    add = parser.add_argument
    add(
        "--csv",
        type=file_path,
        metavar="FILE",
        help="write a line per image and class, per object, or per window of a video",
    )
    add("--jsonl", type=file_path, metavar="FILE", help="write a JSON object per file")
    add("--sheet", type=file_path, metavar="FILE", help="draw the files with their classes: FILE.html or FILE.png")
    add(
        "--pages",
        type=whole(1),
        default=MOST_PAGES,
        metavar="N",
        help="pages of a sheet at most (default: %(default)s)",
    )
    add(
        "--out",
        type=file_path,
        metavar="DIR",
        help="write predictions.csv, predictions.jsonl, sheet.html, and label maps, pictures, or film strips into DIR",
    )


class ImageFiles:
    """Files that a task writes for every image, in folders of an output directory.

    The directory lists them in a hidden file, each before it is written, so that a later call, also after an
    interruption, replaces those of an earlier one and nothing else.
    """

    def __init__(self, directory: Path, folders: Mapping[str, tuple[str, ...]]) -> None:
        """Take the output directory, which need not exist.

        Args:
            folders: see `TaskConfig.PREDICT_FOLDERS`.
        """
        self._directory, self._suffixes = directory, {directory / name: each for name, each in folders.items()}
        self._list = directory / _LIST
        self._recorded: set[Path] | None = None

    @property
    def folders(self) -> list[Path]:
        """The folders, which may not exist yet."""
        return list(self._suffixes)

    def plan(self, paths: Sequence[Path]) -> dict[Path, Path] | None:
        """Return where the files of each image go below every folder, without a suffix; None without folders.

        It is the place of the image below the common folder of all images. Images that differ only in the suffix of
        their names keep it.

        Raises:
            ConfigError: if a folder has files of other images, or files that no earlier call wrote and this one would
                replace or remove.
        """
        if not self._suffixes:
            return None
        absolute = {path: Path(os.path.abspath(path)) for path in paths}
        common = Path(os.path.commonpath([path.parent for path in absolute.values()]))
        places = {path: full.relative_to(common) for path, full in absolute.items()}
        bare = {path: place.with_suffix("") for path, place in places.items()}
        counts = Counter(bare.values())
        files = {path: places[path] if counts[place] > 1 else place for path, place in bare.items()}
        earlier = self._earlier()
        for folder, suffixes in self._suffixes.items():
            if folder.exists() and not folder.is_dir():
                raise ConfigError("out", folder.parent, f"{folder} is not a directory")
            own = next((path for path, full in absolute.items() if full.is_relative_to(os.path.abspath(folder))), None)
            if own is not None:
                raise ConfigError(
                    "out", folder.parent, f"{own} is inside of {folder}, whose files are replaced: use another"
                )
            targets = [place.with_name(place.name + suffix) for place in files.values() for suffix in suffixes]
            foreign = [name for name in targets if os.path.lexists(folder / name) and folder / name not in earlier]
            if foreign:
                hint = f"{folder} has files that swinv2-predict did not write and would replace ({_named(foreign)})"
                raise ConfigError("out", folder.parent, f"{hint}: choose another directory, or move them first")
            _refuse_others(folder, set(files.values()))
        return files

    def record(self, path: Path) -> None:
        """Record that a file will be written.

        Raises:
            OSError: if the list cannot be written.
        """
        if self._recorded is None:  # a file that was removed since is no longer one of ours if it comes back
            kept = [name for name in self._earlier() if os.path.lexists(name)]
            self._directory.mkdir(parents=True, exist_ok=True)
            write_bytes(self._list, "".join(map(self._line, kept)).encode())
            self._recorded = set(kept)
        if path not in self._recorded:
            with self._list.open("a", encoding="utf-8") as file:
                file.write(self._line(path))
            self._recorded.add(path)

    def _line(self, path: Path) -> str:
        return f"{json.dumps(path.relative_to(self._directory).as_posix())}\n"  # ASCII for a name of any bytes

    def _earlier(self) -> dict[Path, None]:
        """Return the files that earlier calls wrote, or were about to write."""
        if not self._list.is_file():
            return {}
        found: dict[Path, None] = {}
        for line in self._list.read_bytes().splitlines():
            with contextlib.suppress(UnreadableError):  # the last line of an interrupted call may be incomplete
                name = parse_json(line)
                if isinstance(name, str):
                    found[self._directory / name] = None
        return found


def _refuse_others(folder: Path, places: Collection[Path]) -> None:
    """Check that a folder has only files of these images.

    Raises:
        ConfigError: if it has others.
    """
    known = {str(folder / place) for place in places}
    # Other programs put hidden files and .aux.xml files next to the images that they open.
    present = sorted(
        path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".") and path.suffix != ".xml"
    )
    others = [path for path in present if str(path.with_suffix("")) not in known]
    if others:
        hint = f"{folder} has files of other images ({_named(others)}): choose another directory, or remove them first"
        raise ConfigError("out", folder.parent, hint)


def _named(files: Sequence[Path]) -> str:
    more = f" and {len(files) - _SHOWN:,} more" if len(files) > _SHOWN else ""
    return ", ".join(path.name for path in files[:_SHOWN]) + more


@dataclass
class Targets:
    """Tables and sheets to write, by kind."""

    paths: dict[str, list[Path]]
    pages: int
    directory: Path | None = None
    """Of --out."""

    @classmethod
    def of(cls, arguments: argparse.Namespace) -> Targets:
        """Return the files to write.

        Raises:
            ConfigError: if one cannot be written.
        """
        targets = {kind: [path] if (path := getattr(arguments, kind)) else [] for kind, _ in _IN_DIRECTORY}
        for path in targets["sheet"]:
            if path.suffix not in ON_PAGE:
                raise ConfigError("", path, f"--sheet {path}: the name must end in {' or '.join(ON_PAGE)}")
        for path in (path for paths in targets.values() for path in paths):
            if not path.parent.is_dir() and path.parent != arguments.out:
                raise ConfigError("", path, f"{path.parent} is not a directory, so {path} cannot be written")
        if arguments.out:
            writable("--out", arguments.out)
            for kind, name in _IN_DIRECTORY:
                targets[kind].append(arguments.out / name)
        return cls(targets, arguments.pages, arguments.out)

    @property
    def most_pictures(self) -> int:
        """Number of images that fit on a sheet."""
        return max((self.pages * ON_PAGE[path.suffix] for path in self.paths["sheet"]), default=0)

    def check(self, images: Sequence[Path]) -> None:
        """Check that no output, including the further pages of a sheet, is one of the inputs or a directory."""
        inputs = {path.resolve() for path in images}
        outputs = [path for kind in ("csv", "jsonl") for path in self.paths[kind]]
        outputs += [page for path in self.paths["sheet"] for page in page_paths(path, len(images), self.pages)]
        for target in outputs:
            if target.resolve() in inputs:
                raise ConfigError("", target, f"{target} is one of the inputs and would be overwritten")
            if target.is_dir():
                raise ConfigError("", target, f"{target} is a directory, so it cannot be written")

    def write(
        self,
        found: Sequence[Prediction],
        kind: type[Prediction],
        entries: Sequence[Entry],
        model: str,
        names: Sequence[str],
    ) -> None:
        """Write tables and sheets, and print their names.

        Args:
            kind: of the predictions.
            model: for the title of a sheet.
            names: one for each class.

        Raises:
            OSError: if one cannot be written.
        """
        from swinv2_train.cli.sheet import csv_text, jsonl_text

        written = []
        for path in (path for paths in self.paths.values() for path in paths):
            path.parent.mkdir(parents=True, exist_ok=True)  # that of --out may be new
        for path in self.paths["csv"]:
            write_bytes(path, csv_text(found, kind).encode(errors="surrogateescape"))
            written.append(path)
        for path in self.paths["jsonl"]:
            # A lone surrogate becomes a JSON escape.
            write_bytes(path, jsonl_text(found).encode(errors="backslashreplace"))
            written.append(path)
        if self.directory is not None:
            for name, text in kind.collected(found, names).items():
                write_bytes(self.directory / name, text.encode(errors="backslashreplace"))
                written.append(self.directory / name)
        earlier = []
        for path in self.paths["sheet"]:
            shown = write_pages(path, entries, model, len(found), self.pages, kind.NOUN)
            written += shown
            earlier += earlier_pages(path, shown)
        if written:
            print(f"written: {', '.join(map(str, written))}")
        if earlier:
            names = ", ".join(map(str, earlier))
            print(f"not part of this sheet, probably of an earlier one: {names}", file=sys.stderr)
