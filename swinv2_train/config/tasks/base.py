"""Base of the task sections. Other code uses these methods and values, never the class or name of a section."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from swinv2_train.config.checks import resolution
from swinv2_train.config.errors import ConfigError
from swinv2_train.config.model import count_parameters
from swinv2_train.config.section import Section

if TYPE_CHECKING:
    from swinv2_train.config.schema import Config

LOSS = "loss"
"""Name of the only term of a loss that has one term."""


@dataclass(frozen=True)
class Metric:
    """A number that an evaluation measures."""

    better: str
    """`min` or `max`: which end is the better one."""
    title: str = ""
    """In words, for tables and charts; empty: the name."""
    share: bool = False
    """Goes from 0 to 1 and is shown in percent."""


@dataclass(frozen=True)
class Description:
    """Lines of a dry run about a task."""

    words: str
    """The settings that matter, in a line."""
    head: str
    """Name of what the model has in addition to the backbone, such as `the head`."""
    parameters: int
    """Of the whole model."""


@dataclass
class TaskConfig(Section):
    """Base of every task section.

    A task of your own is a subclass with a `name`, `IMPLEMENTATION`, and whatever differs from the defaults here; see
    swinv2_train/tasks/README.md. Everything here works without torch.
    """

    IMPLEMENTATION: ClassVar[str] = ""
    """The task's class (see `tasks.task.Task`) as `module:Class`. It is imported only where torch is needed."""
    METRICS: ClassVar[dict[str, Metric]] = {LOSS: Metric("min", "loss")}
    """Metrics of an evaluation other than the number of samples, in display order."""
    HEAD: ClassVar[tuple[str, ...]] = ()
    """Names of the parameters that have a row per class; `init_from` takes their rows by class."""
    OUTPUT: ClassVar[str] = "features"
    """Output of an exported model: `logits`, one per class, or the pooled `features` of the backbone."""
    FREE: ClassVar[tuple[str, ...]] = ("module",)
    """Fields that may change in a run; checkpoints of both values are of the same run."""
    TITLE: ClassVar[str] = ""
    """The task in sentences; empty: its name."""
    PURPOSE: ClassVar[str] = ""
    """Purpose of the weights, as stated in a model card."""
    EXTRA_PARTS: ClassVar[str] = "the head"
    """Parts of the model that an export as a feature extractor omits."""

    name: str = ""
    """Name of the task."""
    module: str | None = None
    """Python module of a task that is not part of this package, such as `my_package.my_task`; null for ours.

    It is found on the import path: installed, or in a folder of PYTHONPATH. The working directory does not count. See
    swinv2_train/tasks/README.md.
    """

    # Not annotated, so that they are not fields here; a section that has the setting has a field of this name.
    multi_label = False  # a sample may have several classes
    repeats = 1  # differently augmented copies of a sample in one batch

    @property
    def title(self) -> str:
        """The task in a sentence."""
        return self.TITLE or self.name

    @property
    def classes(self) -> int | None:
        """Number of classes, 0 while it is left to the data; None for a task without classes.

        A section of a task with classes has a field `num_classes`.
        """
        return getattr(self, "num_classes", None)

    def metrics(self) -> tuple[str, ...]:
        """Return the names of what an evaluation of this config measures, other than the number of samples."""
        return tuple(self.METRICS)

    def terms(self) -> dict[str, float]:
        """Return the terms of the loss by name, each with the factor that it has in the sum."""
        return {LOSS: 1.0}

    def validate(self, config: Config) -> None:
        """Check this section, and what it requires of the others.

        Raises:
            ConfigError: for the first thing that is wrong.
        """

    def doubts(self, config: Config) -> list[str]:
        """Return a warning for every setting that can be run but was probably not intended."""
        return []

    def describe(self, config: Config) -> Description:
        """Return what a dry run shows. The default counts the parameters of a head as 0."""
        return Description(self.title, "the head", count_parameters(config.model, resolution(config)))

    def head_macs(self, config: Config) -> int:
        """Return the multiply-accumulates of what follows the backbone, for one image; by default they do not count."""
        return 0

    def open_fields(self) -> tuple[str, ...]:
        """Return the fields that are still left to the data; they are compared with nothing until `complete`."""
        return ("num_classes",) if self.classes == 0 else ()

    def complete(self, saved: Mapping[str, Any], card: Any) -> None:
        """Set the open fields.

        Args:
            saved: this section as the run's own checkpoint has it; empty without one.
            card: dataset card of the training shards (`data.card.Card`); None without one.

        Raises:
            ConfigError: if one stays unknown.
        """
        if self.classes != 0:
            return
        known = saved.get("num_classes") or (card.num_classes if card else None)
        if not known:
            fix = (
                "the dataset card of data.shards knows of no classes; give their number, or pack the data with its "
                "labels"
            )
            raise ConfigError("task.num_classes", 0, fix)
        self.num_classes = known

    def for_evaluation(self, classes: int | None) -> TaskConfig:
        """Return this section for scoring finished weights.

        Args:
            classes: number of classes that the model chooses from; None for a task without classes.
        """
        return self

    def label_options(self) -> tuple[str, ...]:
        """Return which of `label_map` and `real_labels` of swinv2-eval apply."""
        return ()

    def worker_modules(self) -> list[str]:
        """Return the modules that decoding processes import once, before they are forked."""
        return [self.IMPLEMENTATION.partition(":")[0]]

    def implementation(self) -> Any:
        """Import and return the task's class, which needs torch.

        Raises:
            ConfigError: if it is not there.
        """
        module, _, name = self.IMPLEMENTATION.partition(":")
        try:
            return getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError, ValueError) as error:
            where = f"{type(self).__module__}.{type(self).__name__}.IMPLEMENTATION={self.IMPLEMENTATION!r}"
            raise ConfigError("task.name", self.name, f"{where} cannot be imported ({error})") from error
