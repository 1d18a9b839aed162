"""Prediction of files: what `swinv2-predict` asks of a task, and what it gets for every file. Torch-free."""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from swinv2_train.data.errors import BrokenSample

if TYPE_CHECKING:  # these import torch and PIL
    import torch
    from PIL import Image
    from torch import nn

    from swinv2_train.config.schema import Config


PICTURE_SIDE = 320
"""Longer side of a picture on a sheet, in pixels."""


@dataclass
class Prediction:
    """Prediction for one file, as every output of `swinv2-predict` shows it: the classes of an image.

    Other kinds of predictions are subclasses, with their own columns and records.
    """

    COLUMNS: ClassVar[tuple[str, ...]] = ("image", "rank", "class_number", "class", "probability")
    """Titles of the CSV table."""
    NOUN: ClassVar[str] = "image"
    """Name of one file, in messages and on sheets."""
    TITLES: ClassVar[tuple[str, ...]] = ("image",)
    """Titles of the first columns on the terminal; ranks follow."""
    EMPTY: ClassVar[str] = ""
    """Text in place of the classes of an image that has none."""

    path: Path
    classes: list[tuple[int, str, float]]
    """Number, name, and probability or share of the most likely or largest classes, best first."""
    picture: Image.Image | None = field(default=None, compare=False)
    """Picture for the sheet, if it was requested."""

    @classmethod
    def columns(cls, found: Sequence[Any]) -> tuple[str, ...]:
        """Return the titles of the CSV table of predictions of this kind."""
        return cls.COLUMNS

    def rows(self) -> list[tuple[Any, ...]]:
        """Return its lines of the CSV table."""
        numbered = enumerate(self.classes, 1)
        return [(self.path, rank, number, name, f"{share:.6f}") for rank, (number, name, share) in numbered]

    def record(self) -> dict[str, Any]:
        """Return its JSON object."""
        classes = [
            {"number": number, "name": name, "probability": round(share, 6)} for number, name, share in self.classes
        ]
        return {"image": str(self.path), "classes": classes}

    def summary(self, top: int) -> list[str]:
        """Return the first classes for a line on the terminal."""
        return [f"{name} {share:.1%}" for _, name, share in self.classes[:top]] or [self.EMPTY]

    def lines(self, top: int) -> list[tuple[str, ...]]:
        """Return its lines on the terminal."""
        return [(str(self.path), *self.summary(top))]

    def bars(self, top: int) -> list[tuple[str, float]]:
        """Return the first classes for a sheet, each with the length of its bar, a fraction."""
        return [(name, share) for _, name, share in self.classes[:top]]

    def colors(self) -> list[str] | None:
        """Return the color of every class in `classes` as #RRGGBB, if the picture shows the classes in colors."""
        return None

    @classmethod
    def collected(cls, found: Sequence[Any], names: Sequence[str]) -> dict[str, str]:
        """Return further files for the output directory, by name, with the predictions for all images.

        Args:
            found: predictions of this kind.
            names: one for each class.
        """
        return {}


@dataclass(frozen=True)
class Unreadable:
    """A file that cannot be read."""

    path: Path
    reason: str


@dataclass(frozen=True)
class PredictOptions:
    """Requests of the user."""

    top: int = 5
    """Classes per image in tables and on the sheet."""
    batch: int | None = None
    """Images, windows, or clips in one forward pass; None: the task's own number."""
    pictures: int = 0
    """Number of images, from the first, whose predictions need a picture."""
    files: Mapping[Path, Path] | None = None
    """Of tasks that write a file per image: where, below each folder of `TaskConfig.PREDICT_FOLDERS`, without a suffix,
    for each image; None: write none."""
    directory: Path | None = None
    """Directory of these folders."""
    record: Callable[[Path], None] | None = None
    """Called with each of these files before it is written."""


@dataclass(frozen=True)
class FinishedModel:
    """A trained model and what its inputs need."""

    module: nn.Module
    """In evaluation mode, on its device."""
    config: Config
    mean: Sequence[float]
    std: Sequence[float]
    names: Sequence[str]
    """One for each class."""
    device: torch.device


class Predictor(abc.ABC):
    """Prediction of files by the model of a task."""

    PREDICTION: ClassVar[type[Prediction]] = Prediction

    def __init__(
        self, model: FinishedModel, options: PredictOptions, progress: Callable[[str, int, int], None]
    ) -> None:
        """Take a model.

        Args:
            progress: called with the name of a unit, how many are done, and the total.
        """
        self.model, self.options, self.progress = model, options, progress
        self.notes: list[str] = []
        """Messages about the predictions for the user."""

    def target(self, path: Path, folder: str, suffix: str) -> Path:
        """Return the file of an image in one of the folders, to be written now; its directory is created.

        Raises:
            OSError: if that is not possible.
        """
        place = self._place(path, folder, suffix)
        if self.options.record is not None:
            self.options.record(place)
        place.parent.mkdir(parents=True, exist_ok=True)
        return place

    def remove(self, path: Path, folder: str, suffix: str) -> None:
        """Remove the file of an image that an earlier call wrote, if there is one."""
        self._place(path, folder, suffix).unlink(missing_ok=True)

    def _place(self, path: Path, folder: str, suffix: str) -> Path:
        assert self.options.files is not None
        assert self.options.directory is not None
        place = self.options.directory / folder / self.options.files[path]
        return place.with_name(place.name + suffix)

    @abc.abstractmethod
    def predict(self, paths: Sequence[Path]) -> Iterator[Prediction | Unreadable]:
        """Yield the prediction for every file, in their order; inside `torch.inference_mode`.

        Raises:
            FloatingPointError: if the outputs of the model are not finite.
            OSError: if a file cannot be written.
        """


class ImagePredictor(Predictor):
    """Prediction of files one by one."""

    def predict(self, paths: Sequence[Path]) -> Iterator[Prediction | Unreadable]:
        pictures = 0
        for number, path in enumerate(paths, 1):
            try:
                found = self.predict_image(path, wanted=pictures < self.options.pictures)
                pictures += found.picture is not None
                yield found
            except BrokenSample as error:
                yield Unreadable(path, str(error))
            self.progress(f"{self.PREDICTION.NOUN}s", number, len(paths))

    @abc.abstractmethod
    def predict_image(self, path: Path, *, wanted: bool) -> Prediction:
        """Return the prediction for a file.

        Args:
            wanted: True if a picture is requested.

        Raises:
            BrokenSample: if it cannot be read.
            FloatingPointError, OSError: as for `predict`.
        """
