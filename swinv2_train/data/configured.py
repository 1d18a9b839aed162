"""The shards of a config: training and held-out ones. Torch-free."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from swinv2_train.config.schema import Config, DataConfig, ProbeConfig
from swinv2_train.config.tasks import DETECTIONS, FEATURES, LOGITS, PIXEL_LOGITS, TaskConfig
from swinv2_train.data.card_label_maps import MEMBER
from swinv2_train.data.errors import BrokenSample, DataError, OtherSamples
from swinv2_train.data.label_counts import with_classes
from swinv2_train.data.objects import MEMBER as OBJECTS
from swinv2_train.data.objects import Objects
from swinv2_train.data.samples import IMAGE, VIDEO
from swinv2_train.data.shards import ShardSet
from swinv2_train.reading import UnreadableError, parse_json

logger = logging.getLogger(__name__)
OpenedSets = tuple[ShardSet, ShardSet | None]
"""Training shards, and held-out ones if there are any."""
_TRIED = 8
"""Samples that are read to find out if a member has objects."""
_OBJECTS_FORM = (
    '{"width": 640, "height": 480, "objects": [{"bbox": [x, y, width, height], "category": 0, "iscrowd": 0, "area": '
    "1.0}, ...]}"
)


def open_held_out(
    data: DataConfig, training: ShardSet | None = None, *, task: TaskConfig | None = None
) -> ShardSet | None:
    """Open `data.eval_shards`; None without any.

    Args:
        training: the opened training shards, whose classes number those of the held-out ones; None: opened for that
            if `data.label` is set.
        task: section of the task that reads them; None: nothing but images and their labels.

    Raises:
        DataError: naming the key, if they cannot be used.
    """
    if not data.eval_shards:
        return None
    names = _names(data, training)
    try:
        return open_set(data, data.eval_shards, names, task=task)
    except DataError as error:
        fix = "; data.eval_shards=null trains without evaluation" if str(error).endswith(" does not exist") else ""
        error.args = (f"data.eval_shards={data.eval_shards}: {error}{fix}",)
        raise


def open_training(data: DataConfig, *, task: TaskConfig | None = None) -> ShardSet:
    """Open `data.shards`; see `open_held_out`.

    Raises:
        DataError: naming the key, if they cannot be used.
    """
    try:
        return open_set(data, data.shards, task=task, training=True)
    except DataError as error:
        error.args = (f"data.shards={data.shards}: {error}",)
        raise


def open_shards(data: DataConfig, *, task: TaskConfig | None = None) -> OpenedSets:
    """Open the training shards and the held-out ones; see `open_held_out`, and for errors `open_training`."""
    if data.label is None:  # the held-out shards first: they are few, so an error there is found early
        held_out = open_held_out(data, task=task)
        return open_training(data, task=task), held_out
    training = open_training(data, task=task)
    return training, open_held_out(data, training, task=task)


def open_set(
    data: DataConfig,
    spec: object,
    names: Sequence[str] | None = None,
    *,
    task: TaskConfig | None = None,
    training: bool = False,
    warn: bool = True,
) -> ShardSet:
    """Open shards as a config reads them, as images or videos, with the classes that `data.label` names on their card.

    Args:
        task: section of the task that reads them; None: nothing but images and their labels.
        names: as for `with_classes`.
        training: True if they are trained on.
        warn: log what is wrong with single shards and samples.

    Raises:
        DataError: if they cannot be used.
    """
    label = task.label_member if task is not None else None
    main = main_member(data)
    reading = {"image": data.image, "label_member": label, "main": main}
    try:
        shards = open_labeled(spec, data.cache_dir, data.cache_gib, **reading, warn=warn)
    except OtherSamples as error:
        fix = "set data.frames=0 model.temporal_patch=0, or pack videos with swinv2-data pack --video"
        if main == IMAGE:
            fix = "set data.frames and model.temporal_patch, for a task of videos such as task=video"
        error.args = (f"{error}; data.frames={data.frames} reads {main}s: {fix}",)
        raise
    return with_classes(as_read_by(task, shards, data.label, training=training), data.label, names, warn=warn)


def main_member(data: DataConfig) -> str:
    """Return the kind of the main member of the samples that a config reads: image or video."""
    return VIDEO if data.frames else IMAGE


def open_labeled(
    spec: object,
    cache_dir: str | Path,
    cache_gib: float,
    *,
    image: str | None = None,
    label_member: str | None = None,
    main: str = IMAGE,
    warn: bool = True,
) -> ShardSet:
    """Open shards whose label maps are known: they are neither the image nor one of several.

    Args:
        label_member: member with the label maps, such as mask.png; None: that of the packer, if the card has it.

    For the others, see `ShardSet.open`.

    Raises:
        DataError: if it is the image as well, and as `ShardSet.open`.
    """
    if image is not None and image.lower().lstrip(".") == label_member:
        raise DataError(
            f"{image} cannot be the image (data.image) and the label map (task.label): choose another image"
        )
    shards = ShardSet.open(spec, cache_dir, cache_gib, image=image, warn=False, main=main)
    shards.label_member = label_member or shards.label_member
    for line in shards.warnings() if warn else ():
        logger.warning("%s", line)
    return shards


def open_for_model(spec: object, config: Config, cache_dir: str | Path, cache_gib: float) -> ShardSet:
    """Open shards for finished weights, as images or videos as their config reads them; see `open_labeled`.

    Raises:
        OtherSamples: if the samples are of the other kind.
        DataError: as `open_labeled`.
    """
    data = config.data
    reading = {"image": data.image, "label_member": config.task.label_member, "main": main_member(data)}
    try:
        return open_labeled(spec, cache_dir, cache_gib, **reading)
    except OtherSamples as error:
        own, other = ("videos", "images") if data.frames else ("images", "videos")
        fix = f"use shards of {own}, or weights of a model of {other}"
        error.args = (f"{error}; the model reads {'clips' if data.frames else own}: {fix}",)
        raise


def as_read_by(
    task: TaskConfig | None, shards: ShardSet, label: str | None = None, *, training: bool = False
) -> ShardSet:
    """Leave on the card of shards only the classes of what a task reads: images, label maps, or objects.

    Args:
        label: `data.label`, whose classes are counted afterwards.
        training: True if they are trained on.

    Returns:
        The shards, changed in place.

    Raises:
        DataError: if the indexes or the first samples show that the shards do not have it.
    """
    card = shards.card
    if task is None or task.OUTPUT == FEATURES:
        return shards
    _check_label_maps(shards, task, training=training)
    if task.OUTPUT == LOGITS:
        found = None if card is None else card.of_images()
        if card is not None and found is None and (card.label_maps or card.objects) and label is None:
            has = "objects" if card.objects else "label maps"
            raise DataError(
                f"the shards have {has} and no classes of whole images, which task={task.name} learns from: pack the "
                "images with swinv2-data pack --classes, or set data.label"
            )
    elif task.OUTPUT == PIXEL_LOGITS and task.label_member is not None:
        found = card.of_label_maps() if card is not None and task.label_member == MEMBER else None
    elif task.OUTPUT == DETECTIONS and task.object_member is not None:
        found = card.of_objects() if card is not None and task.object_member == OBJECTS else None
        if found is None:
            _check_objects(shards, task.object_member)
        elif card is not None and task.label_member == MEMBER:  # those of a semantic branch
            found = replace(found, label_maps=card.label_maps)
    else:
        return shards  # a custom task, which reads its own members
    if card is not None:
        # A card without counts of them describes other annotations, or members of other programs.
        nothing = {"class_names": None, "class_counts": Counter[int](), "label_maps": None, "objects": None}
        shards.card = found or replace(card, class_lists_differ=False, **nothing)
    return shards


def _check_label_maps(shards: ShardSet, task: TaskConfig, *, training: bool) -> None:
    """Check that a sample may have the label map that a task reads. Raises DataError with the members that exist."""
    member, remedy = task.label_member, task.maps_remedy(training=training)
    packed = member == MEMBER and shards.card is not None and shards.card.label_maps is not None
    if member is None or remedy is None or packed:
        return
    members = shards.members_without(member)
    if members is not None:
        raise DataError(f"no sample has a label map {member}; the members are {', '.join(members)}: {remedy}")


def _check_objects(shards: ShardSet, member: str) -> None:
    """Check that a sample may have objects, and that one of the first can be read. Raises DataError."""
    shards.declare((member,))
    members = shards.members_without(member)
    if members is not None:
        raise DataError(
            f"no sample has objects {member} (task.label); the members are {', '.join(members)}: set task.label to the "
            f"one with {_OBJECTS_FORM}, or pack the images with swinv2-data pack --coco"
        )
    reason = None
    for index in range(min(_TRIED, shards.num_samples)):
        try:
            raw = shards.read(index, (IMAGE, member))
            if member in raw.members:
                Objects.from_json(parse_json(raw.members[member]))
                return
        except (BrokenSample, UnreadableError) as error:
            reason = reason or f"{shards.name(index)}: {error}"
    if reason is not None:
        raise DataError(
            f"the members {member} (task.label) are not objects ({reason}): expected {_OBJECTS_FORM}; convert them, or "
            "pack the images with swinv2-data pack --coco"
        )


def open_probe_sets(data: DataConfig, probe: ProbeConfig) -> dict[str, ShardSet | None]:
    """Open the two sets of a probe, by their keys, the one to learn from first; None for one that is not set."""
    first = open_set(data, probe.shards) if probe.shards else None
    names = first.card.class_names if first is not None and first.card is not None else None
    second = open_set(data, probe.eval_shards, names) if probe.eval_shards else None
    return {"probe.shards": first, "probe.eval_shards": second}


def _names(data: DataConfig, training: ShardSet | None) -> list[str] | None:
    """Return the names of the training classes that number those of the held-out shards; None if nothing is counted."""
    if data.label is None or not data.shards:
        return None
    card = (training or open_set(data, data.shards, warn=False)).card
    return card.class_names if card is not None else None
