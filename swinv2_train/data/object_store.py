"""Annotations by image in a temporary file, because those of a large data set do not fit into memory.

A reader adds them in any order. Afterwards every process can read those of one image. The file is in the temporary
directory (TMPDIR), and is removed when the store is no longer used, at the latest at the end of the process that wrote
it.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import tempfile
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from swinv2_train.data.card_objects import Category
from swinv2_train.data.errors import UnwritableData
from swinv2_train.data.object_cleaning import Cleaning

_BATCH = 200
_KEPT = ("bbox", "category", "iscrowd", "area", "id", "segmentation", "ignore")
"""Keys of an annotation that are stored."""


@dataclass(frozen=True, slots=True)
class ListedImage:
    """An image as its annotations list it."""

    number: int
    """Its place in the list."""
    name: str
    """Path as written."""
    id: int | str | None = None
    size: tuple[int, int] | None = None
    """Height and width; None if they are not stated."""
    other_name: str | None = None
    """Path to look for if there is no image of this name."""


@dataclass(frozen=True)
class Annotated:
    """Annotations of one image as their source has them."""

    name: str
    """Name of the image in messages."""
    image_id: int | str | None
    size: tuple[int, int] | None
    """Height and width of the image that they are for; None if the source does not state it."""
    annotations: Sequence[dict[str, Any]]


@dataclass
class Annotations:
    """Images, categories, and annotations of a source."""

    source: Path
    categories: list[Category]
    images: list[ListedImage]
    store: ObjectStore
    cleaning: Cleaning = field(default_factory=Cleaning)
    """Annotations that were dropped, because they have no image or category."""
    refused: list[tuple[str, str]] = field(default_factory=list)
    """(path, reason) of files with annotations that cannot be read."""


class StoreWriter:
    """Collects annotations; `finish` returns the store."""

    def __init__(self) -> None:
        handle, name = tempfile.mkstemp(prefix="swinv2-objects-", suffix=".sqlite")
        os.close(handle)
        self._path = Path(name)
        self._cleanup = weakref.finalize(self, _remove, self._path, os.getpid())
        self._database = sqlite3.connect(self._path, isolation_level=None)
        # It is read only after it was completed, so it needs no protection against a crash while it is written.
        for pragma in ("journal_mode=OFF", "synchronous=OFF", "locking_mode=EXCLUSIVE", "temp_store=FILE"):
            self._run(f"PRAGMA {pragma}")
        self._run("CREATE TABLE annotations (number INTEGER PRIMARY KEY, image INTEGER, id, content TEXT)")
        self._run("BEGIN")
        self._waiting: list[tuple[int, Any, str]] = []

    def add(self, image: int, annotation: dict[str, Any]) -> None:
        """Add an annotation, with `category` as a number, of the image with this number."""
        kept = {key: annotation[key] for key in _KEPT if key in annotation}
        self._waiting.append((image, kept.get("id"), json.dumps(kept, separators=(",", ":"))))
        if len(self._waiting) >= _BATCH:
            self._flush()

    def finish(self) -> ObjectStore:
        """Return the store."""
        self._flush()
        self._run("CREATE INDEX by_image ON annotations (image, number)")
        self._run("CREATE TABLE repeated (id PRIMARY KEY, copies) WITHOUT ROWID")
        twice = "SELECT id FROM annotations WHERE id IS NOT NULL GROUP BY id HAVING COUNT(*) > 1"
        self._run(
            "INSERT INTO repeated SELECT id, COUNT(DISTINCT image || ':' || content) = 1 FROM annotations "
            f"WHERE id IN ({twice}) GROUP BY id"
        )
        self._run("COMMIT")
        self._database.close()
        self._cleanup.detach()
        return ObjectStore(self._path, os.getpid())

    def _flush(self) -> None:
        self._run("INSERT INTO annotations (image, id, content) VALUES (?, ?, ?)", self._waiting)
        self._waiting.clear()

    def _run(self, statement: str, rows: list[tuple[int, Any, str]] | None = None) -> None:
        try:
            self._database.execute(statement) if rows is None else self._database.executemany(statement, rows)
        except sqlite3.OperationalError as error:
            raise UnwritableData(
                f"the annotations cannot be sorted by image in {self._path.parent} ({error}): set TMPDIR to a folder "
                "with more room"
            ) from None


class ObjectStore:
    """Annotations by the number of their image; can be sent to other processes, each of which opens the file."""

    def __init__(self, path: Path, owner: int) -> None:
        self._path = path
        self._opened: tuple[int, sqlite3.Connection] | None = None
        weakref.finalize(self, _remove, path, owner)

    def of_image(self, number: int) -> list[dict[str, Any]]:
        """Return the annotations of an image in the order of the source.

        The key `id_repeated` marks an id that another annotation has: `copies` if all of them are the same, else
        `others`.
        """
        rows = self._read(
            "SELECT content, copies FROM annotations LEFT JOIN repeated ON annotations.id = repeated.id "
            "WHERE image = ? ORDER BY number",
            number,
        )
        marks = {None: {}, 0: {"id_repeated": "others"}, 1: {"id_repeated": "copies"}}
        return [json.loads(content) | marks[copies] for content, copies in rows]

    def digests(self) -> Iterator[tuple[int, str]]:
        """Yield the number of every image that has annotations, ascending, and a hash of these."""
        current, digest = None, hashlib.sha256()
        for image, content in self._read("SELECT image, content FROM annotations ORDER BY image, number"):
            if image != current:
                if current is not None:
                    yield current, digest.hexdigest()[:16]
                current, digest = image, hashlib.sha256()
            digest.update(content.encode() + b"\n")
        if current is not None:
            yield current, digest.hexdigest()[:16]

    def __getstate__(self) -> Path:
        return self._path

    def __setstate__(self, path: Path) -> None:
        self._path, self._opened = path, None  # a copy never removes the file

    def _read(self, query: str, *values: Any) -> sqlite3.Cursor:
        if self._opened is None or self._opened[0] != os.getpid():
            database = sqlite3.connect(f"{self._path.as_uri()}?mode=ro&immutable=1", uri=True)
            self._opened = os.getpid(), database
        return self._opened[1].execute(query, values)


def _remove(path: Path, owner: int) -> None:
    if os.getpid() == owner:  # a process that was forked from the owner runs this as well
        path.unlink(missing_ok=True)
