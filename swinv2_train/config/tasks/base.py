"""Base of the task sections. Other code uses these methods and values, never the class or name of a section."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from swinv2_train.config.checks import resolution
from swinv2_train.config.errors import ConfigError, plain
from swinv2_train.config.model import count_parameters
from swinv2_train.config.section import Section

if TYPE_CHECKING:
    from swinv2_train.config.data import DataConfig
    from swinv2_train.config.schema import Config

LOSS = "loss"
"""Name of the only term of a loss with one term."""
LOGITS, PIXEL_LOGITS, DETECTIONS, FEATURES = "logits", "pixel_logits", "detections", "features"
"""Values of `TaskConfig.OUTPUT`."""
NEVER, OPTIONAL, ALWAYS = "never", "optional", "always"
"""Values of `TaskConfig.CLIPS`."""


@dataclass(frozen=True)
class Metric:
    """A number that an evaluation measures."""

    better: str
    """`min` or `max`: the better direction."""
    title: str = ""
    """Name in words, for tables and charts; empty: the metric's name."""
    share: bool = False
    """True for a fraction from 0 to 1, shown in percent."""


@dataclass(frozen=True)
class Description:
    """Lines of a dry run about the task."""

    words: str
    """The settings that matter, in one line."""
    head: str
    """Name of what the model has in addition to the backbone, such as `the head`."""
    parameters: int
    """Parameters of the entire model."""


@dataclass
class TaskConfig(Section):
    """Base of every task section.

    A custom task is a subclass with a `name`, `IMPLEMENTATION`, and whatever differs from the defaults here; see
    swinv2_train/tasks/README.md. Everything here works without torch.
    """

    IMPLEMENTATION: ClassVar[str] = ""
    """The task's class (see `tasks.task.Task`) as `module:Class`. Imported only when torch is needed."""
    METRICS: ClassVar[dict[str, Metric]] = {LOSS: Metric("min", "loss")}
    """Metrics of an evaluation other than the number of samples, in display order."""
    HEAD: ClassVar[tuple[str, ...]] = ()
    """Names of the parameters with one row per class; `init_from` copies their rows by class."""
    OUTPUT: ClassVar[str] = FEATURES
    """Output of an exported model: `logits`, one per class; `pixel_logits`, one per class and pixel, which the model's
    method `scores` returns; `detections`, a list of objects per image (programs have the feature pyramid, which the
    model's method `levels` returns); or the pooled `features` of the backbone."""
    FREE: ClassVar[tuple[str, ...]] = ("module",)
    """Fields that may change within a run; checkpoints with either value belong to the same run."""
    SIZES_DIFFER: ClassVar[bool] = False
    """True if images differ in size in an evaluation. The windows of the training are then recorded as the pretrained
    ones, because the position bias must not depend on the size."""
    CLIPS: ClassVar[str] = NEVER
    """Use of clips of videos (`data.frames`) instead of images: `never`, `optional`, or `always`."""
    TITLE: ClassVar[str] = ""
    """Description of the task in a sentence; empty: its name."""
    PURPOSE: ClassVar[str] = ""
    """Purpose of the weights, as stated in a model card."""
    PREDICT_OPTIONS: ClassVar[Mapping[str, str]] = {}
    """Options of swinv2-predict for this task in particular, each with the field that it sets."""
    PREDICT_FOLDERS: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    """Folders in the output directory of swinv2-predict that get a file for every image, each with the suffixes that it
    may have."""
    EXTRA_PARTS: ClassVar[str] = "the head"
    """Parts of the model that an export as a feature extractor omits."""

    name: str = ""
    """Name of the task."""
    module: str | None = None
    """Python module of a task that is not part of this package, such as `my_package.my_task`; null for built-in tasks.

    It must be importable: installed, or in a folder of PYTHONPATH. The working directory does not count. See
    swinv2_train/tasks/README.md.
    """

    # Not annotated, so these are not fields here; a section that has the setting defines a field of this name.
    multi_label = False  # a sample may have several classes
    repeats = 1  # differently augmented copies of a sample in one batch
    eval_inputs = 1  # inputs of the model that a sample has in an evaluation

    @property
    def title(self) -> str:
        """Description of the task in a sentence."""
        return self.TITLE or self.name

    @property
    def classes(self) -> int | None:
        """Number of classes, 0 while the data decides it; None for a task without classes.

        A section of a task with classes has a field `num_classes`.
        """
        return getattr(self, "num_classes", None)

    @property
    def label_member(self) -> str | None:
        """Member of a sample with its label map, which is never the image; None without one."""
        return None

    @property
    def object_member(self) -> str | None:
        """Member of a sample with its objects; None without one."""
        return None

    def maps_remedy(self, *, training: bool) -> str | None:
        """Return the remedy if no sample has `label_member`; None if it is not needed.

        Args:
            training: False for evaluations.
        """
        return None

    def metrics(self) -> tuple[str, ...]:
        """Return the names of the metrics of an evaluation, other than the number of samples."""
        return tuple(self.METRICS)

    def terms(self) -> dict[str, float]:
        """Return the terms of the loss by name, each with its factor in the sum."""
        return {LOSS: 1.0}

    def validate(self, config: Config) -> None:
        """Check this section and its requirements on the others.

        Raises:
            ConfigError: for the first error.
        """

    def doubts(self, config: Config) -> list[str]:
        """Return a warning for every setting that can be run but was probably not intended."""
        return []

    def describe(self, config: Config) -> Description:
        """Return what a dry run prints. The default counts the parameters of a head as 0."""
        return Description(self.title, "the head", count_parameters(config.model, resolution(config)))

    def head_macs(self, config: Config) -> int:
        """Return the multiply-accumulates of what follows the backbone, for one image; by default they do not count."""
        return 0

    def head_bytes(self, config: Config, element: int) -> int:
        """Return the bytes that head and loss save for backward, for one image; by default they do not count.

        Args:
            element: bytes of an element of the activations.
        """
        return 0

    def head_transient(self, config: Config, element: int, images: int) -> int:
        """Return the bytes that backward of head and loss creates at its peak, for a micro-batch; by default those that
        they saved.

        Args:
            element: as for `head_bytes`.
            images: samples of the micro-batch.
        """
        return images * self.head_bytes(config, element)

    def open_fields(self) -> tuple[str, ...]:
        """Return the fields that the data still decides; they are not compared with anything until `complete`."""
        return ("num_classes",) if self.classes == 0 else ()

    def in_data(self, key: str, value: Any) -> str:
        """Return words for data that decide an open field to be a value, such as `3 classes`."""
        return (
            f"{value} {'class' if value == 1 else 'classes'}"
            if key == "num_classes"
            else f"data with task.{key}={plain(value)}"
        )

    def data_doubts(self, card: Any) -> list[str]:
        """Return a warning for each setting that does not fit the training data.

        Args:
            card: as for `complete`.
        """
        return []

    def complete(self, saved: Mapping[str, Any], card: Any) -> None:
        """Set the open fields.

        Args:
            saved: this section as stored in the run's own checkpoint; empty without one.
            card: dataset card of the training shards (`data.card.Card`); None without one.

        Raises:
            ConfigError: if one remains unknown.
        """
        if self.classes != 0:
            return
        known = saved.get("num_classes") or (card.num_classes if card else None)
        if not known:
            fix = "the dataset card of data.shards lists no classes; set their number, or pack the data with its labels"
            raise ConfigError("task.num_classes", 0, fix)
        self.num_classes = known

    def for_evaluation(self, classes: int | None) -> TaskConfig:
        """Return this section for scoring finished weights.

        Args:
            classes: number of classes that the model chooses from; None for a task without classes.
        """
        return self

    def check_prediction(self, given: Mapping[str, Any] | None = None) -> None:
        """Check the settings that swinv2-predict and evaluations of finished weights use.

        Args:
            given: options of swinv2-predict that the user has set: `batch`, and those among `PREDICT_OPTIONS`.

        Raises:
            ConfigError: for the first error.
        """

    def check_evaluation(self, config: Config) -> None:
        """Check the settings of evaluations against those of the input, for finished weights.

        Raises:
            ConfigError: for the first error.
        """

    def fixed_crop(self, data: DataConfig) -> tuple[float, str]:
        """Return the `crop_pct` and `crop_mode` of inputs of one size: of features, probes, and exports.

        By default those of `data`, which evaluations use as well.
        """
        return data.crop_pct, data.crop_mode

    def training_preparation(self, config: Config) -> list[tuple[str, str]]:
        """Return how training makes inputs from images, for model cards, as pairs of a name and a text."""
        augment = config.data.augment
        if augment.transform is not None:
            return [("transform", augment.transform)]
        area, aspect = (", ".join(f"{value:.4g}" for value in pair) for pair in (augment.scale, augment.ratio))
        return [("random crop", f"area {area}, aspect {aspect}")]

    def preparation(self, config: Config) -> str | None:
        """Return how evaluations and predictions make inputs from images, for display; None: the crop of `data`."""
        return None

    def scaled_images(self, config: Config, factor: float) -> list[str] | None:
        """Return the overrides with which evaluations scale all images by a factor; None: `data.resolution` sets their
        size."""
        return None

    def evaluation_settings(self) -> dict[str, Any]:
        """Return the fields of this section that the results of finished weights depend on, for results.json."""
        return {}

    def label_options(self) -> tuple[str, ...]:
        """Return which options of swinv2-eval apply: `label_map`, `real_labels`."""
        return ()

    def worker_modules(self) -> list[str]:
        """Return the modules that the fork server of the decoding processes imports once, before it forks."""
        return [self.IMPLEMENTATION.partition(":")[0]]

    def implementation(self) -> Any:
        """Import and return the task's class, which needs torch.

        Raises:
            ConfigError: if it does not exist.
        """
        module, _, name = self.IMPLEMENTATION.partition(":")
        try:
            return getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError, ValueError) as error:
            where = f"{type(self).__module__}.{type(self).__name__}.IMPLEMENTATION={self.IMPLEMENTATION!r}"
            raise ConfigError("task.name", self.name, f"{where} cannot be imported ({error})") from error
