"""Output files of `swinv2-predict`: where they go, what they must not replace, and the writing of tables and sheets."""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from swinv2_train.cli.sheet_pages import MOST_PAGES, ON_PAGE, earlier_pages, page_paths, write_pages
from swinv2_train.cli.values import file_path, whole
from swinv2_train.cli.weight_arguments import writable
from swinv2_train.config.errors import ConfigError
from swinv2_train.tasks.prediction import Prediction
from swinv2_train.writing import write_bytes

if TYPE_CHECKING:  # imports PIL
    from swinv2_train.cli.sheet import Entry

_IN_DIRECTORY = (("csv", "predictions.csv"), ("jsonl", "predictions.jsonl"), ("sheet", "sheet.html"))
_SHOWN = 3


def add_outputs(parser: argparse.ArgumentParser) -> None:
    """Add the options for the output files."""
    add = parser.add_argument
    add("--csv", type=file_path, metavar="FILE", help="write a line per image and class, or per object")
    add("--jsonl", type=file_path, metavar="FILE", help="write a JSON object per image")
    add("--sheet", type=file_path, metavar="FILE", help="draw the images with their classes: FILE.html or FILE.png")
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
        help="write predictions.csv, predictions.jsonl, sheet.html, and label maps or pictures into DIR",
    )


def image_files(paths: Sequence[Path], folders: Sequence[Path]) -> dict[Path, Path] | None:
    """Return where the files of each image go below every one of some folders, without a suffix; None without folders.

    It is the place of the image below the common folder of all images. Images that differ only in the suffix of their
    names keep it.

    Raises:
        ConfigError: if a folder has files of other images, from an earlier prediction.
    """
    if not folders:
        return None
    absolute = {path: Path(os.path.abspath(path)) for path in paths}
    common = Path(os.path.commonpath([path.parent for path in absolute.values()]))
    places = {path: full.relative_to(common) for path, full in absolute.items()}
    bare = {path: place.with_suffix("") for path, place in places.items()}
    counts = Counter(bare.values())
    files = {path: places[path] if counts[place] > 1 else place for path, place in bare.items()}
    for folder in folders:
        if folder.exists() and not folder.is_dir():
            raise ConfigError("out", folder.parent, f"{folder} is not a directory")
        known = {str(folder / place) for place in files.values()}
        own = next((path for path, full in absolute.items() if full.is_relative_to(os.path.abspath(folder))), None)
        if own is not None:
            raise ConfigError(
                "out", folder.parent, f"{own} is inside of {folder}, whose files are replaced: use another"
            )
        # Other programs put hidden files and .aux.xml files next to the images that they open.
        present = sorted(
            path
            for path in folder.rglob("*")
            if path.is_file() and not path.name.startswith(".") and path.suffix != ".xml"
        )
        others = [path for path in present if str(path.with_suffix("")) not in known]
        if others:
            named = ", ".join(path.name for path in others[:_SHOWN])
            more = f" and {len(others) - _SHOWN:,} more" if len(others) > _SHOWN else ""
            hint = f"{folder} has files of other images ({named}{more}): choose another directory, or remove them first"
            raise ConfigError("out", folder.parent, hint)
    return files


@dataclass
class Targets:
    """Tables and sheets to write, by kind."""

    paths: dict[str, list[Path]]
    pages: int
    directory: Path | None = None
    """Of --out."""

    @classmethod
    def of(cls, arguments: argparse.Namespace) -> Targets:
        """Return the files to write; create their directory.

        Raises:
            ConfigError: if one cannot be written.
        """
        targets = {kind: [path] if (path := getattr(arguments, kind)) else [] for kind, _ in _IN_DIRECTORY}
        for path in targets["sheet"]:
            if path.suffix not in ON_PAGE:
                raise ConfigError("", path, f"--sheet {path}: the name must end in {' or '.join(ON_PAGE)}")
        if arguments.out:
            writable("--out", arguments.out)
            for kind, name in _IN_DIRECTORY:
                targets[kind].append(arguments.out / name)
        for path in (path for paths in targets.values() for path in paths):
            if not path.parent.is_dir():
                raise ConfigError("", path, f"{path.parent} is not a directory, so {path} cannot be written")
        return cls(targets, arguments.pages, arguments.out)

    @property
    def most_pictures(self) -> int:
        """Number of images that fit on a sheet."""
        return max((self.pages * ON_PAGE[path.suffix] for path in self.paths["sheet"]), default=0)

    def check(self, images: Sequence[Path]) -> None:
        """Check that no output, including the further pages of a sheet, is one of the images or a directory."""
        inputs = {path.resolve() for path in images}
        outputs = [path for kind in ("csv", "jsonl") for path in self.paths[kind]]
        outputs += [page for path in self.paths["sheet"] for page in page_paths(path, len(images), self.pages)]
        for target in outputs:
            if target.resolve() in inputs:
                raise ConfigError("", target, f"{target} is one of the images and would be overwritten")
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
            shown = write_pages(path, entries, model, len(found), self.pages)
            written += shown
            earlier += earlier_pages(path, shown)
        if written:
            print(f"written: {', '.join(map(str, written))}")
        if earlier:
            names = ", ".join(map(str, earlier))
            print(f"not part of this sheet, probably of an earlier one: {names}", file=sys.stderr)
