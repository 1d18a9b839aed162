"""Images or videos to pack, and how they are read."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from swinv2_train.data.card_objects import Category
from swinv2_train.data.errors import BrokenSample
from swinv2_train.data.label_rules import LabelRules
from swinv2_train.data.object_cleaning import Cleaning
from swinv2_train.data.object_store import Annotated, ListedImage, ObjectStore
from swinv2_train.data.objects import MEMBER, Objects
from swinv2_train.data.samples import IMAGE, TEXT_EXTENSIONS
from swinv2_train.data.shards import IMAGE_AND_TEXTS, ShardSet
from swinv2_train.data.video_files import frames_of
from swinv2_train.reading import UnreadableError, parse_json


@dataclass(frozen=True, slots=True)
class Entry:
    """One image or video to pack."""

    path: str
    """Its origin: a file, a folder of frames, or shard and key."""
    key: str
    """Its name in the new shard; its place in the order depends only on this."""
    version: str
    """Changes when the image does: size and time of its file."""
    label: int | tuple[int, ...] | None = None
    """Its class; a tuple if the source has a list of classes for every image."""
    index: int | None = None
    """Sample index, if the source is a set of shards."""
    label_map: str | None = None
    """Its label map: a file, or a member of its sample."""
    tile: tuple[int, int, int, int] | None = None
    """Top, left, height, and width of the part to pack; None: the entire image."""
    scene: tuple[int, int] | None = None
    """Height and width of the entire image, if a part of it is packed."""
    listed: ListedImage | None = None
    """The image as its annotations list it, if it has objects from a file of annotations."""
    frames: bool = False
    """True for a folder of frames, which becomes one video."""

    @property
    def name(self) -> str:
        """Its path, and the key of its tile if it is one, for messages."""
        return self.path if self.tile is None else f"{self.path}, tile {self.key}"

    def problem(self, reason: str) -> dict[str, str]:
        """Return a line of broken.jsonl: `path`, for a tile its key as `tile`, and `reason`."""
        tile = {} if self.tile is None else {"tile": self.key}
        return {"path": self.path, **tile, "reason": reason}


@dataclass(frozen=True)
class SourceObjects:
    """Objects of the images of a source."""

    categories: list[Category]
    store: ObjectStore | None = None
    """Annotations by image; None: they are members of the shards."""
    cleaning: Cleaning = field(default_factory=Cleaning)
    """Objects that were dropped because they have no image or category."""


def problem_name(problem: Mapping[str, str]) -> str:
    """Return the name of the image or tile that a problem is about."""
    return f"{problem['path']}, tile {problem['tile']}" if "tile" in problem else problem["path"]


def grouped(problems: Sequence[Mapping[str, str]]) -> list[tuple[str, str]]:
    """Return (name, reason) of problems; tiles of an image with the same reason are one entry."""
    found: dict[tuple[str, str], list[Mapping[str, str]]] = {}
    for number, one in enumerate(problems):
        found.setdefault((one["path"], one["reason"]) if "tile" in one else (str(number), ""), []).append(one)
    names = (problem_name(ones[0]) + (f" and {len(ones) - 1:,} more" if ones[1:] else "") for ones in found.values())
    return [(name, ones[0]["reason"]) for name, ones in zip(names, found.values(), strict=True)]


def counted_problems(problems: Sequence[Mapping[str, str]], main: str = IMAGE) -> str:
    """Return the number of images (or videos, see `Source.main`) and tiles in a list: `1 image and 4 tiles`."""
    tiles = sum("tile" in problem for problem in problems)
    parts = [(len(problems) - tiles, main), (tiles, "tile")]
    counts = [f"{count:,} {what}{'' if count == 1 else 's'}" for count, what in parts if count]
    return " and ".join(counts) or f"0 {main}s"


@dataclass(frozen=True)
class Source:
    """All entries of a source, and how to read them."""

    root: str
    entries: list[Entry]
    class_names: list[str] | None = None
    shards: ShardSet | None = None
    refused: tuple[tuple[str, str], ...] = ()
    """(path, reason) of entries that were named as images and cannot be: missing files and repeated rows of a list."""
    notes: tuple[str, ...] = ()
    """Contents of the source that are not read, one line each."""
    lost: bool = False
    """True if these contents may include images or labels."""
    arrays: bool = False
    """True if the images are arrays of NumPy (npy, npz)."""
    labels: LabelRules | None = None
    """Meaning of the values of the label maps; None: images have none."""
    objects: SourceObjects | None = None
    """Objects of the images; None: they have none."""
    main: str = IMAGE
    """Kind of the main member of its samples: image or video."""
    annotated_by: str = ""
    """Options of the command that name its annotations, such as `--voc FOLDER`; empty without any."""

    @property
    def label_map_names(self) -> list[str] | None:
        """Names of the classes of the label maps; None if they are not known."""
        card = None if self.shards is None else self.shards.card
        if card is not None and card.label_maps is not None:  # the rules of packed maps have numbers instead
            return card.label_map_names
        return None if self.labels is None else list(self.labels.names)

    @property
    def num_bytes(self) -> int:
        """Bytes of the files or shards, as far as they can be read."""
        if self.shards is not None:
            return sum(shard.size for shard in self.shards.shards)
        sizes = (entry.version.partition("-")[0] for entry in self.entries)
        return sum(int(size) for size in sizes if size.isdecimal())

    def read(self, entry: Entry) -> tuple[bytes, dict[str, bytes]]:
        """Return the image's bytes, and the text members that belong to it. Raises OSError or BrokenSample."""
        if self.shards is None:
            return Path(entry.path).read_bytes(), _label_member(entry.label)
        assert entry.index is not None
        raw = self.shards.read(entry.index, IMAGE_AND_TEXTS)
        return raw.data, raw.texts

    def content(self, entry: Entry) -> Path | bytes:
        """Return the file of an image or video, or its bytes in a shard. Raises BrokenSample."""
        if self.shards is None:
            return Path(entry.path)
        assert entry.index is not None
        return self.shards.read(entry.index, (self.main,)).data

    def digest(self, entry: Entry) -> bytes:
        """Return the hash of the bytes of an image or video. Raises OSError or BrokenSample."""
        content = self.content(entry)
        if isinstance(content, bytes):
            return hashlib.sha256(content).digest()
        found = hashlib.sha256()
        for path in frames_of(content) if entry.frames else [content]:
            with path.open("rb") as file:
                found.update(hashlib.file_digest(file, "sha256").digest())
        return found.digest()

    def texts(self, entry: Entry) -> dict[str, bytes]:
        """Return the text members that belong to an image or video. Raises BrokenSample."""
        if self.shards is None:
            return _label_member(entry.label)
        assert entry.index is not None
        return self.shards.read(entry.index, TEXT_EXTENSIONS).texts

    def label_content(self, entry: Entry) -> Path | bytes:
        """Return the file of the label map of an image, or its bytes in a shard. Raises BrokenSample."""
        assert entry.label_map is not None
        if self.shards is None:
            return Path(entry.label_map)
        assert entry.index is not None
        return self.shards.read(entry.index, (entry.label_map,)).member(entry.label_map)

    def label_name(self, entry: Entry) -> str:
        """Return the name of the label map of an image for messages."""
        assert entry.label_map is not None
        return entry.label_map if self.shards is None else f"{entry.path}.{entry.label_map}"

    def annotations(self, entry: Entry) -> Annotated:
        """Return the annotations of an image of a source with objects. Raises BrokenSample."""
        assert self.objects is not None
        if self.objects.store is not None and entry.listed is not None:
            found = self.objects.store.of_image(entry.listed.number)
            return Annotated(entry.path, entry.listed.id, entry.listed.size, found)
        assert self.shards is not None
        assert entry.index is not None
        try:
            content = parse_json(self.shards.read(entry.index, (MEMBER,)).member(MEMBER))
            objects = Objects.from_json(content)
        except UnreadableError as error:
            raise BrokenSample(f"{MEMBER}: {error}") from None
        return Annotated(entry.path, objects.image_id, objects.size, content["objects"])


def _label_member(label: int | tuple[int, ...] | None) -> dict[str, bytes]:
    """Return the text member that contains a label: `cls`, which webdataset reads as a number, or for a list `json`."""
    if label is None:
        return {}
    if isinstance(label, tuple):
        return {"json": json.dumps({"labels": label}).encode()}
    return {"cls": str(label).encode()}


def fraction(text: str) -> float:
    """Return a number in [0, 1) that looks random and depends only on the text."""
    return int.from_bytes(hashlib.sha256(os.fsencode(text)).digest()[:7], "big") / 2**56
