"""Prediction of image files by a detector: pictures with boxes and masks, tables, and the results in COCO's format."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from swinv2_train.config.tasks import DetectionConfig
from swinv2_train.data.augment import in_range, normalise
from swinv2_train.data.decode import DecodeOptions
from swinv2_train.data.errors import BrokenSample
from swinv2_train.data.image_regions import ImageRegions, open_regions
from swinv2_train.data.pixels import check_size
from swinv2_train.models.detection import Detections
from swinv2_train.tasks.detection.inference import Inference, batch_detections
from swinv2_train.tasks.detection.merging import as_found
from swinv2_train.tasks.detection.pictures import LONGEST_SIDE, detection_picture
from swinv2_train.tasks.detection.records import Found
from swinv2_train.tasks.detection.tiles import Tile, detect_in_tiles, tiles_of
from swinv2_train.tasks.detection.transform import evaluation_crops
from swinv2_train.tasks.prediction import PICTURE_SIDE, ImagePredictor, Prediction
from swinv2_train.tasks.reduced import ReducedImage
from swinv2_train.tasks.segmentation.colors import object_color

_PICTURES, _RESULTS = "pictures", "detections.json"
_QUALITY = 90
_MANY_TILES = 20
"""From this number, the tiles of an image are counted on the terminal."""
_STRIP_PIXELS = 1 << 24
_MOST_MASK_PIXELS = 1 << 32
"""Run lengths of COCO have 32 bits."""


@dataclass
class ObjectsPrediction(Prediction):
    """Objects of one file. `classes` has the highest score of every class, the most frequent class first."""

    COLUMNS: ClassVar[tuple[str, ...]] = (
        "image", "class_number", "class", "score", "left", "top", "width", "height", "area",
    )  # fmt: skip

    counts: list[int] = field(default_factory=list)
    """Number of objects of every class, in the order of `classes`."""
    found: Found = field(default_factory=lambda: Found(np.zeros((0, 4)), np.zeros(0, np.int64), np.zeros(0)))
    """All detections, in pixels of the image, from the highest score to the lowest."""
    size: tuple[int, int] = (0, 0)
    """Height and width of the image."""
    shown_score: float = 0.0
    """Lowest score of the objects that tables and pictures show."""
    names: Sequence[str] = ()
    category_ids: Sequence[int] = ()
    """Original id of every class; empty: numbers from 1."""

    @cached_property
    def shown(self) -> Found:
        """The objects that tables and pictures show."""
        return self.found.chosen(self.found.scores >= self.shown_score)

    def rows(self) -> list[tuple[Any, ...]]:
        return [
            (self.path, each["number"], each["name"], each["score"], *each["box"], each["area"])
            for each in self._objects()
        ]

    def record(self) -> dict[str, Any]:
        height, width = self.size
        objects = [{key: value for key, value in each.items() if value is not None} for each in self._objects()]
        return {"image": str(self.path), "width": width, "height": height, "objects": objects}

    def summary(self, top: int) -> list[str]:
        shown = [f"{name} ({count:,})" for count, (_, name, _) in zip(self.counts[:top], self.classes, strict=False)]
        return shown or [f"nothing at {self.shown_score:g} or more"]

    def bars(self, top: int) -> list[tuple[str, float]]:
        pairs = zip(self.counts[:top], self.classes, strict=False)
        return [(f"{name} ({count:,})", score) for count, (_, name, score) in pairs]

    def colors(self) -> list[str]:
        return ["#{:02X}{:02X}{:02X}".format(*object_color(number)) for number, _, _ in self.classes]

    @classmethod
    def collected(cls, found: Sequence[ObjectsPrediction], names: Sequence[str]) -> dict[str, str]:
        """Return detections.json: images, categories, and annotations with scores, as COCO has them.

        Ids of images and annotations begin at 1. File names are relative to the common folder of the images, so that
        `swinv2-data pack` reads the file as well.
        """
        images, annotations = [], []
        ids = (found[0].category_ids if found else ()) or range(1, len(names) + 1)
        folders = [os.path.dirname(os.path.abspath(one.path)) for one in found]
        common = os.path.commonpath(folders) if folders else ""
        for number, one in enumerate(found, 1):
            height, width = one.size
            name = Path(os.path.relpath(os.path.abspath(one.path), common)).as_posix()
            images.append({"id": number, "file_name": name, "width": width, "height": height})
            for each in _objects(one.found, names):
                annotation = {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": ids[each["number"]],
                    "bbox": each["box"],
                    "area": each["area"],
                    "iscrowd": 0,
                    "score": each["score"],
                }
                annotations.append(annotation | ({"segmentation": each["mask"]} if each["mask"] else {}))
        categories = [{"id": number, "name": name} for number, name in zip(ids, names, strict=True)]
        content = {"images": images, "categories": categories, "annotations": annotations}
        return {_RESULTS: f"{json.dumps(content, ensure_ascii=False)}\n"}

    def _objects(self) -> list[dict[str, Any]]:
        return _objects(self.shown, self.names)


def _objects(found: Found, names: Sequence[str]) -> list[dict[str, Any]]:
    """Return objects as rows: number and name of the class, score, box (left, top, width, height), area, and mask."""
    from faster_coco_eval import mask as coco_masks

    rows = []
    for place, (left, top, right, bottom) in enumerate(found.boxes.tolist()):
        mask = None if found.masks is None else found.masks[place]
        area = (right - left) * (bottom - top) if mask is None else float(coco_masks.area(mask))
        number = int(found.classes[place])
        box = [round(side, 2) for side in (left, top, right - left, bottom - top)]
        score = round(float(found.scores[place]), 6)
        row = {"number": number, "name": names[number], "score": score, "box": box, "area": round(area, 2)}
        rows.append(row | {"mask": mask})
    return rows


class ObjectPredictor(ImagePredictor):
    """The objects of every image. With `task.tile`, images are read and predicted in tiles, and those whose format
    allows it may have any size."""

    PREDICTION = ObjectsPrediction

    def predict_image(self, path: Path, *, wanted: bool) -> ObjectsPrediction:
        config, names = self.model.config, self.model.names
        with open_regions(path, config.model.in_channels, DecodeOptions.of(config.data, self.model.mean)) as regions:
            found = self._found(regions, path)
            prediction = _prediction(path, found, regions.size, config.task, names)
            if wanted or self.options.files is not None:
                image, deep = _reduced(regions)
                picture = detection_picture(image, prediction.shown, regions.size, names, deep=deep)
                if self.options.files is not None:
                    picture.save(self.target(path, _PICTURES, ".jpg"), quality=_QUALITY)
                if wanted:
                    picture.thumbnail((PICTURE_SIDE, PICTURE_SIDE))
                    prediction.picture = picture
        return prediction

    def _found(self, regions: ImageRegions, path: Path) -> Found:
        config, size = self.model.config, regions.size
        tiles = tiles_of(size, config.task)
        if len(tiles) == 1:  # the image is read whole
            check_size(*size, max_pixels=config.data.max_pixels)
        if config.task.masks and size[0] * size[1] >= _MOST_MASK_PIXELS:
            raise BrokenSample(f"{size[1]} x {size[0]} pixels are too many for masks in the format of COCO: cut it")
        done = 0

        def detect(group: Sequence[Tile]) -> list[Detections | None]:
            nonlocal done
            done += len(group)
            if len(tiles) >= _MANY_TILES:
                self.progress(f"tiles of {path.name}", done, len(tiles))
            return self._detect(regions, group)

        found = detect_in_tiles(tiles, size, detect, nms=config.task.nms, batch=self.options.batch or 1)
        if found is None:
            return Found(np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, np.float32))
        return as_found(found, size)

    def _detect(self, regions: ImageRegions, tiles: Sequence[Tile]) -> list[Detections | None]:
        """Return the detections of each tile in its pixels; None for one without data."""
        model, task = self.model, self.model.config.task
        parts = [regions.read(*tile) for tile in tiles]
        used = [place for place, part in enumerate(parts) if part.missing is None or not part.missing.all()]
        found: list[Detections | None] = [None] * len(tiles)
        if not used:
            return found
        (_, _, height, width), interpolation = tiles[0], model.config.data.augment.interpolation
        views = [
            torch.stack(
                [
                    normalise(in_range(crop.image(parts[place].image, interpolation)), model.mean, model.std)
                    for place in used
                ]
            ).to(model.device)
            for crop in evaluation_crops(model.config, (height, width))
        ]
        for place, each in zip(
            used, batch_detections(model.module, views, (height, width), Inference.of(task)), strict=True
        ):
            found[place] = each
        return found


def _prediction(
    path: Path, found: Found, size: tuple[int, int], task: DetectionConfig, names: Sequence[str]
) -> ObjectsPrediction:
    numbers = found.classes[found.scores >= task.shown_score]
    counts = np.bincount(numbers, minlength=len(names))
    order = [int(number) for number in np.argsort(-counts, kind="stable") if counts[number]]
    best = [float(found.scores[found.classes == number].max()) for number in order]
    classes = [(number, names[number], score) for number, score in zip(order, best, strict=True)]
    return ObjectsPrediction(
        path,
        classes,
        counts=[int(counts[number]) for number in order],
        found=found,
        size=size,
        shown_score=task.shown_score,
        names=names,
        category_ids=task.category_ids or (),
    )


def _reduced(regions: ImageRegions) -> tuple[np.ndarray, bool]:
    """Return the image at the size of a picture, (C, h, w) float32 from 0 to 1, read in strips; True for 16 bits."""
    height, width = regions.size
    reduced: ReducedImage | None = None
    rows = max(1, _STRIP_PIXELS // width)
    for first in range(0, height, rows):
        part = regions.read(first, 0, min(rows, height - first), width).image
        if reduced is None:
            reduced = ReducedImage(regions.size, len(part), -(-max(regions.size) // LONGEST_SIDE))
        reduced.add(first, part)
    assert reduced is not None
    return reduced.image(), reduced.deep
