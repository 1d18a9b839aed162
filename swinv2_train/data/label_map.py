"""Mapping from the classes of a test set to those of a model, and labels that are stored outside of the shards.

Test sets of ImageNet models number their classes in different ways:

- A model of ImageNet-22K on ImageNet-1K data: the official `map22kto1k.txt` has one line per class of the data, the
  number of that class in the model. The other rows of its head are ignored, so it chooses among the 1000.
- ImageNet-V2 comes as folders `0` to `999`. Earlier versions numbered them in the order of text (0, 1, 10, 100, ...),
  so class 2 of such shards is folder `10`. `NAMES` matches by name instead: names that the model does not have, if they
  are numbers, are the numbers of its classes.
- ImageNet-A, -R, and others have folders for a part of the classes (n01498041, ...): use `NAMES` too, if the model has
  the names of its classes.
- A Hugging Face model calls class 0 `tench, Tinca tinca`, the shards call it n01440764: `NUMBERS` means that the
  classes are the same ones in the same order, regardless of their names.
- ReaL labels (arXiv 2006.07159): `real.json` has a list of correct classes for each image of the validation set, in the
  order of the file names; some lists are empty.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from swinv2_train.class_lists import difference, plain_name
from swinv2_train.config.errors import ConfigError
from swinv2_train.data.class_names import CHECKPOINT_MANIFEST
from swinv2_train.data.class_order import is_number, is_text_order_of_numbers
from swinv2_train.data.errors import DataError
from swinv2_train.reading import UnreadableError, decode_text, is_count, parse_json

NAMES = "names"
"""Replaces a file: classes of data and model correspond by name."""
NUMBERS = "numbers"
"""Replaces a file: classes of data and model correspond by number; their names may differ."""
_REQUIRED = {
    "label_map": "requires a classifier or a segmenter",
    "real_labels": "requires a classifier with one class per image",
}
"""Label options of swinv2-eval, with the models that they are for."""
_NUMBERED = re.compile(r"ILSVRC2012_val_\d{8}")


def check_label_options(given: Mapping[str, Any], offered: Collection[str]) -> None:
    """Reject a label option that does not apply to a model.

    Args:
        given: values of the label options, and of any other options.
        offered: those that apply, see `TaskConfig.label_options`.

    Raises:
        ConfigError: naming the option.
    """
    for key, required in _REQUIRED.items():
        if given.get(key) and key not in offered:
            raise ConfigError(key, given[key], required)


def read_label_map(path: Path, num_classes: int) -> list[int]:
    """One line per class of the data: the number (from 0) of that class in the model, which has `num_classes`.

    Raises:
        DataError: if the file cannot be read, or a line is not a class of the model.
    """
    columns: list[int] = []
    for number, line in enumerate(_text(path, "label map").splitlines(), 1):
        if not line.strip():
            continue
        if not line.strip().isdecimal() or len(line) > 1000:
            raise DataError(f"label map {path}, line {number}: {line.strip()[:40]!r} is not a class number")
        column = int(line)
        if column >= num_classes:
            raise DataError(
                f"label map {path}, line {number}: class {column} of a model that has 0 to {num_classes - 1}"
            )
        columns.append(column)
    if not columns:
        raise DataError(f"label map {path} is empty: it has one line per class of the data, the model's class number")
    return columns


def match_names(data: Sequence[str] | None, model: Sequence[str] | None, num_classes: int) -> list[int]:
    """Return the class of the model for each class of the data, by name.

    Where no class of the model is called by a number, and all of the data are, from 0 to `num_classes` - 1, these are
    the numbers of the model's classes.

    Raises:
        DataError: if the names of the data are not known, or one of them is none of the model's or that of several.
    """
    if data is None:
        raise DataError("the shards do not record class names: pack them with swinv2-data pack --classes")
    known = {name: number for number, name in enumerate(model or ())}
    twice = next((name for name, count in Counter(model).items() if count > 1 and name in data), None)
    if twice is not None:
        raise DataError(
            f"several classes of the model are named {twice!r}, so the names are ambiguous: "
            f"label_map={NUMBERS} assumes the same classes in the same order, label_map=FILE uses a list of "
            "numbers"
        )
    missing = [name for name in data if name not in known]
    if not missing:
        return [known[name] for name in data]
    numbers = [int(name) if is_number(name) else num_classes for name in data]
    if max(numbers) < num_classes and not any(map(is_number, known)):
        if len(set(numbers)) < len(numbers):
            raise DataError("two classes of the data are the same number: use a label map file")
        return numbers
    wrong, whose = missing[0], "none of the model's names"
    if not model:
        wrong = data[numbers.index(max(numbers))]
        whose = f"not a number from 0 to {num_classes - 1} (the model has no names for its classes)"
    raise DataError(
        f"class {wrong!r} of the data is {whose}: label_map={NUMBERS} assumes the same classes in the same "
        "order, label_map=FILE uses a list of numbers"
    )


def check_same_classes(data: Sequence[str] | None, model: Sequence[str] | None) -> None:
    """Reject shards whose classes are numbered differently from the model's, as far as names show it.

    Args:
        model: names of the model's classes; None if unknown or to be ignored.

    Raises:
        DataError: naming the first class that differs.
    """
    if data is None:
        return
    if model is None:
        if is_text_order_of_numbers(data):
            wrong = next(number for number, name in enumerate(data) if name != str(number))
            raise DataError(
                f"class {wrong} of the shards is the folder {data[wrong]!r}, because names were sorted as text: "
                f"with label_map={NAMES} the folder's number is the class"
            )
        return
    for number, (ours, theirs) in enumerate(zip(data, model, strict=False)):
        if plain_name(ours) != plain_name(theirs):
            raise DataError(
                f"class {number} is {ours!r} in the shards and {theirs!r} in the model: "
                f"{_advice(data, model)}, or label_map=FILE with the model's class for each of them"
            )


def check_same_categories(
    data: Sequence[str] | None, model: Sequence[str] | None, num_classes: int, checkpoint: Path
) -> None:
    """Reject shards of objects whose categories are not those of the model, in its order.

    Args:
        data: names of the categories of the shards; None if they are unknown.
        model: names of those of the model; None if they are unknown.
        num_classes: of the model.
        checkpoint: directory or file of its weights.

    Raises:
        DataError: naming the categories that one of them lacks, or the first that differs.
    """
    if not data:
        return
    shown = difference(data, model, places=("the shards", "the model")) if model else None
    if not model and len(data) != num_classes:
        shown = f"the shards have {len(data)}, and the model {num_classes}"
    if shown is not None:
        manifest = checkpoint / CHECKPOINT_MANIFEST
        place = manifest if model and manifest.is_file() else "FILE, a name per line in the order of the model"
        raise DataError(
            f"the categories of the shards are not those of the model ({shown}): pack the shards again with "
            f"--class-names {place}"
        )


def _advice(data: Sequence[str], model: Sequence[str]) -> str:
    """Return the likely fix for classes with different names."""
    if all(map(str.isdecimal, data)) or not set(data).isdisjoint(model):
        return f"use label_map={NAMES} to match them by name"
    return f"use label_map={NUMBERS} if only the names differ"


def read_real_labels(path: Path) -> dict[str, list[int]]:
    """ReaL labels by image name: the correct classes, in the numbers of the data; none if the annotators disagreed.

    The file is the official list of lists, whose n-th entry (from 1) belongs to `ILSVRC2012_val_` and eight digits of
    n, or an object of lists by image name without its extension.

    Raises:
        DataError: if the file cannot be read, or has another form.
    """
    try:
        content = parse_json(_text(path, "real labels"))
    except UnreadableError as error:
        raise DataError(f"real labels {path}: {error}") from None
    if isinstance(content, list):
        content = {f"ILSVRC2012_val_{number:08d}": labels for number, labels in enumerate(content, 1)}
    if not isinstance(content, dict) or not content or not all(map(_is_labels, content.values())):
        raise DataError(f"real labels {path}: it must be a list of lists of class numbers, one for each image")
    return content


def real_labels_of(key: str, labels: dict[str, list[int]]) -> list[int] | None:
    """Return the correct classes of a sample by its key in the shard, without folders; None if it is not listed."""
    official = _NUMBERED.search(key)
    return labels.get(key, labels.get(official[0] if official else key.rpartition("/")[2]))


def _is_labels(value: Any) -> bool:
    return isinstance(value, list) and all(map(is_count, value))


def _text(path: Path, what: str) -> str:
    try:
        return decode_text(path.read_bytes())
    except OSError as error:
        raise DataError(f"{what} {path} cannot be read ({error.strerror})") from None
    except UnreadableError as error:
        raise DataError(f"{what} {path} is not a text file ({error})") from None
