"""Annotations in COCO's JSON, also compressed by gzip: images, categories, and annotations, in any order, as a stream.

The file is read once for each of the three lists, so that the annotations are never in memory, however many there are.
The names and ids of the images are.
"""

from __future__ import annotations

import codecs
import gzip
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, cast

from swinv2_train.data.box_check import BoxCheck
from swinv2_train.data.card_objects import Category
from swinv2_train.data.category_table import category_table
from swinv2_train.data.errors import DataError
from swinv2_train.data.object_cleaning import DROPPED, Cleaning
from swinv2_train.data.object_store import Annotations, ListedImage, StoreWriter
from swinv2_train.reading import finite_number

_CHUNK = 1 << 14
_TOKEN = re.compile(rb'\\.|"|-?(?:NaN|Infinity)')
_ENDS = (b",", b"]", b"}", b"\n", b" ")
_BOM = b"\xef\xbb\xbf"
_GZIP = b"\x1f\x8b"
_DAMAGED = (OSError, EOFError, zlib.error)
"""Errors of a file that is missing or of which the compression is damaged."""
_NO_IMAGE, _NO_CATEGORY = "unknown image", "unknown category"
_SEVERAL = "pack the images of each file by its own command, with --split NAME and --class-names TRAIN.dataset.json"
_FOLDER = "it is one file of JSON, and --voc FOLDER reads a folder of XML files"
_WIDE = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_FORM = '{"images": [...], "annotations": [...], "categories": [...]}'


def read_coco(path: Path, known: Sequence[Category] | None) -> Annotations:
    """Read annotations.

    Args:
        known: categories of an earlier split, whose numbers are kept.

    Raises:
        DataError: if the file is not COCO's JSON, or its images, categories, or boxes contradict themselves.
    """
    _check_start(path)
    found = [_category(path, n, one) for n, one in _items(path, "categories")]
    categories, places_in_table = category_table(found, known, str(path))
    numbers = dict(zip((one.id for one in found), places_in_table, strict=True))
    images: list[ListedImage] = []
    places: dict[int | str, int] = {}
    for number, one in _items(path, "images"):
        image = _image(path, number, len(images), one)
        assert image.id is not None
        before = places.setdefault(image.id, len(images))
        if before == len(images):
            images.append(image)
        elif images[before] != replace(image, number=before):
            raise DataError(
                f"{path}: the image id {image.id!r:.60} is that of {images[before].name} and of {image.name}; give "
                "each image its own"
            )
    writer, cleaning, boxes = StoreWriter(), Cleaning(), BoxCheck()
    count, first = 0, None
    for number, one in _items(path, "annotations", may_be_empty=True):
        count += 1
        place, category = places.get(_identity(one, "image_id")), numbers.get(_identity(one, "category_id"))
        if "segments_info" in one:
            raise DataError(f"{path} is for panoptic segmentation: use the annotations of its instances")
        if place is None or category is None:
            if not cleaning.counts:
                first = _identity(one, "image_id" if place is None else "category_id")
            cleaning.add(*_dropped(number, one, None if place is None else images[place]))
            continue
        boxes.add(one.get("bbox"), images[place].size)
        writer.add(place, one | {"category": category, "id": _identity(one, "id")})
    if count and count == sum(dropped for dropped, _ in cleaning.counts.values()):
        kind, (_, names) = next(iter(cleaning.counts.items()))
        known: Iterable[int | str] = places if kind == _NO_IMAGE else numbers
        which = "its only annotation cannot" if count == 1 else f"none of its {count:,} annotations can"
        raise DataError(f"{path}: {which} be used: {DROPPED[kind]} ({names[0]}){_other_type(first, known)}")
    boxes.check(str(path))
    return Annotations(path, categories, images, writer.finish(), cleaning)


def _dropped(number: int, one: dict[str, Any], image: ListedImage | None) -> tuple[str, str]:
    """Return the kind and the name of an annotation without an image or category."""
    name = f"annotation {one['id']}" if "id" in one else f"annotations[{number}]"
    if image is None:
        return _NO_IMAGE, f"{name}: image_id {one.get('image_id')!r:.40}"
    return _NO_CATEGORY, f"{image.name}: {name}: category_id {one.get('category_id')!r:.40}"


def _other_type(identity: int | str | None, known: Iterable[int | str]) -> str:
    """Return a remedy if an id is known with another type: a number that is written as a text, or the reverse."""
    same = next((one for one in known if one != identity and str(one) == str(identity)), None)
    if same is None:
        return ""
    here, there = ("a text", "the number") if isinstance(identity, str) else ("a number", "the text")
    return f"; {identity!r} is {here}, and the list has {there} {same!r}: write both in the same way"


def _category(path: Path, number: int, one: dict[str, Any]) -> Category:
    name, identity, above = one.get("name"), _identity(one, "id"), one.get("supercategory")
    if not isinstance(name, str) or not name.strip() or identity is None:
        raise DataError(f"{path}: categories[{number}] needs an id and a name, found {one!r:.80}")
    return Category(identity, name.strip(), above if isinstance(above, str) else None)


def _image(path: Path, place: int, number: int, one: dict[str, Any]) -> ListedImage:
    name = one.get("file_name") or str(one.get("coco_url") or "").rpartition("/")[2]  # LVIS has only the latter
    identity = _identity(one, "id")
    if not isinstance(name, str) or not name or identity is None:
        raise DataError(f"{path}: images[{place}] needs an id and a file_name, found {one!r:.80}")
    sides = [finite_number(one.get(key)) for key in ("height", "width")]
    size = (int(sides[0] or 0), int(sides[1] or 0))
    return ListedImage(number, name, identity, size if min(size) > 0 else None)


def _identity(content: dict[str, Any], key: str) -> int | str | None:
    """Return an id: an integer, also one that a table program wrote as 7.0, or a text; None for anything else."""
    value = content.get(key)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, (int, str)) and not isinstance(value, bool) else None


def _check_start(path: Path) -> None:
    try:
        with _opened(path) as file:
            start = file.read(512).removeprefix(_BOM).lstrip()
    except _DAMAGED as error:
        raise _unreadable(path, error) from None
    if start.startswith(_WIDE) or b"\0" in start:
        wide = "UTF-32" if start.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)) else "UTF-16"
        what = f"has the encoding {wide}" if start.startswith(_WIDE) else "has zero bytes, as UTF-16 without a mark has"
        raise DataError(f"--coco {path} {what}: save it as UTF-8")
    if start.startswith(b"["):
        raise DataError(f"--coco {path} is a list, as results are; annotations are {_FORM}")
    if not start.startswith(b"{"):
        raise DataError(f"--coco {path} is not JSON; annotations are {_FORM}")


def _items(path: Path, key: str, *, may_be_empty: bool = False) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the number and content of every entry of a list.

    Args:
        may_be_empty: accept a list without entries.

    Raises:
        DataError: if there is no list, or nothing in it.
    """
    import ijson

    number = -1
    with _opened(path) as file:
        try:
            for number, one in enumerate(ijson.items(_Strict(file), f"{key}.item", use_float=True)):
                if not isinstance(one, dict):
                    raise DataError(f"{path}: {key}[{number}] is {one!r:.60}, not a JSON object")
                yield number, one
        except ijson.JSONError as error:
            reason = " ".join(str(error).split("\n")[0].split())
            raise DataError(f"--coco {path} is not intact JSON ({reason}, after {number + 1:,} {key})") from None
        except _DAMAGED as error:
            raise _unreadable(path, error) from None
    if number < 0 and not (may_be_empty and _is_list(path, key)):
        raise DataError(f"--coco {path} has no {key}; annotations are {_FORM}")


def _is_list(path: Path, key: str) -> bool:
    """Return whether a key has a list, in a file without damage."""
    import ijson

    with _opened(path) as file:
        return (key, "start_array", None) in ijson.parse(_Strict(file))


def _opened(path: Path) -> BinaryIO:
    """Open a file, which may be compressed by gzip whatever its name. Raises OSError."""
    with path.open("rb") as file:
        compressed = file.read(len(_GZIP)) == _GZIP
    return cast(BinaryIO, gzip.open(path)) if compressed else path.open("rb")


def _unreadable(path: Path, error: Exception) -> DataError:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else error
    several = isinstance(error, FileNotFoundError) and set(str(path)) & set(",*?[")
    fix = f"; it is one file: {_SEVERAL}" if several else ""
    if isinstance(error, IsADirectoryError):
        fix = f"; {_FOLDER}"
    if isinstance(error, (EOFError, zlib.error, gzip.BadGzipFile)):
        fix = "; its compression is damaged or cut off: copy or download it again"
    return DataError(f"--coco {path} cannot be read ({reason}){fix}")


class _Strict:
    """A file as JSON: without a byte-order mark, and with null for NaN and Infinity, which Python writes."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._rest = file, b""
        self._in_text = False
        if file.read(len(_BOM)) != _BOM:
            file.seek(0)

    def read(self, size: int = -1) -> bytes:
        """Return the next bytes, of about any size; none at the end. `size` 0 asks for the type."""
        if size == 0:
            return b""
        text = b""
        while not text:
            data = self._file.read(_CHUNK)
            self._rest += data
            # A constant must not be cut in two, so the text ends after a character that ends a value.
            cut = max(self._rest.rfind(end) for end in _ENDS) + 1 if data else len(self._rest)
            self._rest, text = self._rest[cut:], self._rest[:cut]
            if not data:
                break
        if b"NaN" in text or b"Infinity" in text or b"\\" in text:
            return _TOKEN.sub(self._strict, text)
        self._in_text ^= text.count(b'"') % 2 == 1
        return text

    def _strict(self, token: re.Match[bytes]) -> bytes:
        """Return null for a constant outside of texts, else the token."""
        if token[0] == b'"':
            self._in_text = not self._in_text
        is_constant = token[0][:1] not in (b'"', b"\\")
        return b"null" if is_constant and not self._in_text else token[0]
