"""A task takes the classes of what it reads: of entire images, of label maps, or of objects."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from swinv2_train.config.errors import ConfigError
from swinv2_train.config.schema import DataConfig
from swinv2_train.config.tasks import (
    ClassificationConfig,
    DetectionConfig,
    SegmentationConfig,
    SimMIMConfig,
    TaskConfig,
)
from swinv2_train.data.card import Card
from swinv2_train.data.class_names import read_class_names
from swinv2_train.data.configured import open_set
from swinv2_train.data.errors import DataError
from swinv2_train.data.inspect import inspect
from swinv2_train.data.label_pairs import LabelMaps
from swinv2_train.data.label_rules import LabelRules
from swinv2_train.data.pack import pack
from swinv2_train.data.pack_objects import ObjectsOption
from swinv2_train.data.pack_sources import open_source
from swinv2_train.tasks.classes import check_classes
from tests.data.annotated import HEIGHT, WIDTH, coco, write_coco, write_images
from tests.data.label_maps import NAMES, png
from tests.data.label_maps import labels as label_map
from tests.data.packed import SMALL
from tests.data.packed import open_set as open_packed
from tests.data.samples import encoded, pixels, write_tar

CATEGORIES = ["dog", "cat", "kite"]
MAPS = [*NAMES, "sky", "rock"]
OBJECT = {"bbox": [1, 2, 3, 4], "category": 4, "iscrowd": 0, "area": 12}
OBJECTS = {"width": WIDTH, "height": HEIGHT, "objects": [OBJECT]}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of every kind: `plain`, `classes`, `maps`, `objects`, `both`, and of other programs `numbers`, `meta`."""
    place = tmp_path_factory.mktemp("kinds")
    images = write_images(place)
    (place / "classed" / "b").mkdir(parents=True)
    (images / "a").rename(place / "classed" / "a")
    (images / "a").symlink_to(place / "classed" / "a")
    (place / "classed" / "b" / "x.jpg").write_bytes(encoded(pixels(9, HEIGHT, WIDTH)))
    (place / "maps" / "a").mkdir(parents=True)
    for n in range(6):
        (place / "maps" / "a" / f"{n}.png").write_bytes(png(label_map(n, HEIGHT, WIDTH)))
    maps = LabelMaps(str(place / "maps"), LabelRules(tuple(MAPS), 255))
    objects = ObjectsOption("coco", str(write_coco(place, coco())))
    sources = {
        "plain": open_source(str(images), classes=False, seed=0),
        "classes": open_source(str(place / "classed"), classes=True, seed=0),
        "maps": open_source(str(images), classes=False, seed=0, labels=maps),
        "objects": open_source(str(images), classes=False, seed=0, objects=objects),
        "both": open_source(str(images), classes=False, seed=0, labels=maps, objects=objects),
    }
    for name, source in sources.items():
        pack(source, place / "shards" / name, SMALL)
    image = encoded(pixels(1, HEIGHT, WIDTH))
    for name, member, content in (
        ("numbers", "boxes.json", OBJECTS),
        ("meta", "json", {"caption": "a cat", "objects": 3}),
    ):
        members = [(f"{n}.jpg", image) for n in range(3)] + [
            (f"{n}.{member}", json.dumps(content).encode()) for n in range(3)
        ]
        write_tar(place / "shards" / name / "train-000000.tar", sorted(members))
    return place / "shards"


CLASSES, MASKS, BOXES = ClassificationConfig, SegmentationConfig, DetectionConfig
NONE = "the dataset card of data.shards lists no classes"
NO_MAPS = r"no sample has a label map seg.png; the members are .*swinv2-data pack --labels"
NO_OBJECTS = r"no sample has objects objects.json \(task.label\); the members are .*jpg.*swinv2-data pack --coco"
TABLE: dict[str, tuple[TaskConfig, str, list[str] | int | str | None]] = {
    "simmim, plain": (SimMIMConfig(), "plain", None),
    "simmim, both": (SimMIMConfig(), "both", CATEGORIES),
    "classification, plain": (CLASSES(), "plain", NONE),
    "classification, classes": (CLASSES(), "classes", ["a", "b"]),
    "classification, maps": (CLASSES(), "maps", "have label maps and no classes of whole images.*--classes"),
    "classification, objects": (CLASSES(), "objects", "have objects and no classes of whole images.*--classes"),
    "classification, both": (CLASSES(), "both", "have objects and no classes of whole images.*--classes"),
    "segmentation, plain": (MASKS(), "plain", NO_MAPS),
    "segmentation, classes": (MASKS(), "classes", NO_MAPS),
    "segmentation, maps": (MASKS(), "maps", MAPS),
    "segmentation, objects": (MASKS(), "objects", NO_MAPS),
    "segmentation, both": (MASKS(), "both", MAPS),
    "segmentation of another member": (MASKS(label="mask.png"), "both", "no sample has a label map mask.png"),
    "detection, plain": (BOXES(), "plain", NO_OBJECTS),
    "detection, classes": (BOXES(), "classes", NO_OBJECTS),
    "detection, maps": (BOXES(), "maps", NO_OBJECTS),
    "detection, objects": (BOXES(), "objects", CATEGORIES),
    "detection, both": (BOXES(), "both", CATEGORIES),
    "detection, metadata": (BOXES(num_classes=3), "meta", r"no sample has objects objects.json .* jpg, json: set task"),
    "detection, other metadata": (
        BOXES(num_classes=3, label="json"),
        "meta",
        r"members json \(task.label\) are not objects \(.*0: it has no list of objects\): expected .*\"bbox\".*--coco",
    ),
    "detection of another member": (BOXES(num_classes=5, label="boxes.json"), "numbers", 5),
    "another member, unknown number": (BOXES(label="boxes.json"), "numbers", NONE),
}


@pytest.mark.parametrize("case", TABLE)
def test_every_task_takes_its_own_classes(place: Path, case: str) -> None:
    task, kind, expected = TABLE[case]
    data = DataConfig()

    def taken() -> tuple[list[str] | None, int | None]:
        card = open_set(data, str(place / kind), task=task).card
        task.complete({}, card)
        if task.classes is not None:
            check_classes(task.classes, card, card)
        return card.class_names if card else None, task.classes

    if isinstance(expected, str):
        with pytest.raises((DataError, ConfigError), match=expected) as error:
            taken()
        assert "\n" not in str(error.value)
        return
    names = expected if isinstance(expected, list) else None
    classes = None if task.name == "simmim" else len(names or ()) or expected
    assert taken() == (names, classes)


def test_label_maps_keep_their_names_next_to_objects(place: Path, tmp_path: Path) -> None:
    """When they are counted again, packed again, and stored; cards of earlier versions have none."""
    shards = open_packed(place / "both")
    assert inspect(shards).card.label_map_names == MAPS
    manifest = place / "both" / "train.dataset.json"
    assert (read_class_names(manifest), read_class_names(manifest, label_maps=True)) == (CATEGORIES, MAPS)
    assert read_class_names(place / "maps" / "train.dataset.json", label_maps=True) == MAPS
    with pytest.raises(DataError, match="knows no names of classes"):
        read_class_names(place / "objects" / "train.dataset.json", label_maps=True)
    again = pack(str(place / "both"), tmp_path / "again", SMALL).cards["train"]
    assert (again.class_names, again.label_map_names) == (CATEGORIES, MAPS)
    content = json.loads(json.dumps(again.to_json()))
    assert Card.from_json(content) == again
    del content["label_maps"]["names"]
    earlier = Card.from_json(content).of_label_maps()
    assert earlier is not None
    assert (earlier.class_names, earlier.num_classes) == (None, 3)
    content["label_maps"]["names"] = MAPS[::-1]
    both = Card.merged([again, Card.from_json(content)])
    own = both.of_label_maps()
    assert not both.class_lists_differ
    assert own is not None
    assert own.class_lists_differ
    content["label_maps"]["names"] = [1]
    with pytest.raises(ValueError, match=r"label_maps cannot be read \(names is not a list of names"):
        Card.from_json(content)
