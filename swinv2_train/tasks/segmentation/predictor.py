"""Prediction of image files by a segmenter: label maps, overlays, and the area of every class."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from swinv2_train.config.checks import resolution
from swinv2_train.data.augment import in_range, normalise
from swinv2_train.data.decode import DecodeOptions
from swinv2_train.data.image_regions import ImageRegions, Region, open_regions
from swinv2_train.data.pixels import check_size
from swinv2_train.tasks.prediction import PICTURE_SIDE, ImagePredictor, Prediction
from swinv2_train.tasks.segmentation.colors import color_code
from swinv2_train.tasks.segmentation.inference import Inference, Source, TensorSource, label_strips, label_type
from swinv2_train.tasks.segmentation.label_files import LabelFile
from swinv2_train.tasks.segmentation.overlay import Overlay
from swinv2_train.tasks.segmentation.transform import evaluation_crop

_LABELS, _OVERLAYS = "labels", "overlays"
_QUALITY = 90
_MANY_WINDOWS = 50
"""From this number, the windows of an image are counted on the terminal."""


@dataclass
class MapPrediction(Prediction):
    """Classes of the pixels of one file, largest first; the shares are those of the pixels with data."""

    COLUMNS: ClassVar[tuple[str, ...]] = ("image", "label_map", "class_number", "class", "pixels", "share", "area")
    EMPTY = "no data"

    pixels: list[int] = field(default_factory=list)
    """Number of pixels of every class, in the order of `classes`."""
    without_data: int = 0
    """Number of pixels without data, which have no class."""
    label_map: Path | None = None
    """File of the label map, if it was written."""
    pixel_area: float | None = None
    """Area of a pixel in squared units of the map, if the image has a map scale."""

    def rows(self) -> list[tuple[Any, ...]]:
        shown = [
            (number, name, pixels, f"{share:.6f}")
            for (number, name, share), pixels in zip(self.classes, self.pixels, strict=True)
        ]
        if self.without_data:
            shown.append(("", "(no data)", self.without_data, ""))
        return [(self.path, self.label_map or "", *row, self._area(row[2])) for row in shown]

    def record(self) -> dict[str, Any]:
        classes = []
        for (number, name, share), pixels in zip(self.classes, self.pixels, strict=True):
            entry = {"number": number, "name": name, "pixels": pixels, "share": round(share, 6)}
            classes.append(entry if self.pixel_area is None else entry | {"area": pixels * self.pixel_area})
        label_map = None if self.label_map is None else str(self.label_map)
        found: dict[str, Any] = {"image": str(self.path), "label_map": label_map, "classes": classes}
        return found | ({"pixels_without_data": self.without_data} if self.without_data else {})

    def colors(self) -> list[str]:
        return [color_code(number) for number, _, _ in self.classes]

    def _area(self, pixels: int) -> str:
        return "" if self.pixel_area is None else f"{pixels * self.pixel_area:.10g}"


class LabelMapPredictor(ImagePredictor):
    """The class of every pixel. Images whose pixels keep their size (`task.resize=native`) are read in parts if their
    format allows it, so that with sliding windows, images of any size are predicted in bounded memory."""

    PREDICTION = MapPrediction

    def predict_image(self, path: Path, *, wanted: bool) -> MapPrediction:
        config, classes = self.model.config, len(self.model.names)
        options = DecodeOptions.of(config.data, self.model.mean)
        with open_regions(path, config.model.in_channels, options) as regions:
            collected = _Collected(regions, classes, drawn=wanted or self.options.files is not None)
            strips = collected.through(self._label_strips(regions, path))
            written = self._write(path, regions, strips)
            if written is None:
                for _ in strips:
                    pass
        found = collected.prediction(path, self.model.names)
        found.label_map, found.pixel_area = written, regions.geo.pixel_area if regions.geo else None
        if collected.overlay is not None:
            picture = collected.overlay.draw()
            if self.options.files is not None:
                target = self.target(path, _OVERLAYS, ".jpg")
                picture.save(target, quality=_QUALITY)
            if wanted:
                picture.thumbnail((PICTURE_SIDE, PICTURE_SIDE))
                found.picture = picture
        return found

    def _label_strips(self, regions: ImageRegions, path: Path) -> Iterator[tuple[int, np.ndarray]]:
        config = self.model.config
        inference = Inference.of(config, self.options.batch or 1)
        crop = evaluation_crop(regions.size, resolution(config), config.task)
        if crop.scaled != crop.source or inference.window is None:  # the image is read whole
            check_size(*regions.size, max_pixels=config.data.max_pixels)
        source: Source = _FileSource(regions, self.model.mean, self.model.std)
        if crop.scaled != crop.source:
            image = in_range(crop.image(regions.read(0, 0, *regions.size).image, config.data.augment.interpolation))
            source = TensorSource(normalise(image, self.model.mean, self.model.std))
        total, done = inference.num_windows(source.size), 0

        def progress(windows: int) -> None:
            nonlocal done
            done += windows
            if total >= _MANY_WINDOWS:
                self.progress(f"windows of {path.name}", done, total)

        yield from label_strips(self.model.module, source, inference, regions.size, progress)

    def _write(self, path: Path, regions: ImageRegions, strips: Iterator[np.ndarray]) -> Path | None:
        """Write the label map while it is predicted; return its file, or None if none was requested."""
        if self.options.files is None:
            return None
        classes = len(self.model.names)
        file = LabelFile(regions.size, classes, label_type(classes), regions.geo, regions.has_nodata)
        suffix, other = (".tif", ".png") if regions.is_tiff else (".png", ".tif")
        target = self.target(path, _LABELS, suffix)
        (file.write_tiff if regions.is_tiff else file.write_png)(target, strips)
        # That of an earlier image of the same name in the other format; next to this one, it would pass for a result.
        self.remove(path, _LABELS, other)
        return target


@dataclass(frozen=True)
class _FileSource:
    """Parts of a file as input of the model."""

    regions: ImageRegions
    mean: Sequence[float]
    std: Sequence[float]

    @property
    def size(self) -> tuple[int, int]:
        return self.regions.size

    def read(self, top: int, left: int, height: int, width: int) -> Tensor:
        return normalise(self.regions.read(top, left, height, width).image, self.mean, self.std)


class _Collected:
    """Counts and overlay of a label map, gathered while its strips go to a file."""

    def __init__(self, regions: ImageRegions, classes: int, *, drawn: bool) -> None:
        self._regions, self._drawn = regions, drawn
        self._counts = np.zeros(classes + 1, np.int64)
        self.overlay: Overlay | None = None

    def through(self, strips: Iterator[tuple[int, np.ndarray]]) -> Iterator[np.ndarray]:
        """Yield the strips; pixels without data get the largest value of the type."""
        for first, labels in strips:
            if self._drawn or self._regions.has_nodata:
                part = self._regions.read(first, 0, *labels.shape)
                labels = self._marked(labels, part)
                self._draw(first, labels, part)
            self._counts += np.bincount(np.minimum(labels, len(self._counts) - 1).ravel(), minlength=len(self._counts))
            yield labels

    def _marked(self, labels: np.ndarray, part: Region) -> np.ndarray:
        if part.missing is not None:
            labels[part.missing] = np.iinfo(labels.dtype).max
        return labels

    def _draw(self, first: int, labels: np.ndarray, part: Region) -> None:
        if not self._drawn:
            return
        if self.overlay is None:
            self.overlay = Overlay(self._regions.size, len(part.image), len(self._counts) - 1)
        self.overlay.add(first, part.image, labels)

    def prediction(self, path: Path, names: Sequence[str]) -> MapPrediction:
        counts = self._counts[:-1]
        total = max(1, int(counts.sum()))
        order = [int(number) for number in np.argsort(-counts, kind="stable") if counts[number]]
        classes = [(number, names[number], int(counts[number]) / total) for number in order]
        return MapPrediction(
            path, classes, pixels=[int(counts[number]) for number in order], without_data=int(self._counts[-1])
        )
