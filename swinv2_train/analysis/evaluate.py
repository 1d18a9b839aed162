"""Evaluation of finished weights outside of a run: any checkpoint or file, any labeled shards, any number of ranks.

Model, data, and metrics are those of the evaluation during training, so the same weights on the same samples yield the
same numbers. Every sample counts once, whatever the number of ranks.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from swinv2_train.analysis.features import EvalImages
from swinv2_train.analysis.probes import Probe
from swinv2_train.config.errors import ConfigError
from swinv2_train.config.schema import Config, ProbeConfig
from swinv2_train.config.tasks import DETECTIONS, PIXEL_LOGITS, TaskConfig
from swinv2_train.data.batch import Batch, select
from swinv2_train.data.card import Card
from swinv2_train.data.channel_statistics import check_channels_of_model
from swinv2_train.data.configured import as_read_by, open_for_model
from swinv2_train.data.device import on_device
from swinv2_train.data.errors import DataError
from swinv2_train.data.label_counts import with_classes
from swinv2_train.data.label_map import (
    NAMES,
    NUMBERS,
    check_label_options,
    check_same_categories,
    check_same_classes,
    match_names,
    read_label_map,
    read_real_labels,
    real_labels_of,
)
from swinv2_train.data.loader import EvalLoader
from swinv2_train.data.shards import ShardSet
from swinv2_train.errors import RunError
from swinv2_train.interop.load import load_model
from swinv2_train.launch.failures import begun, from_main, together
from swinv2_train.launch.ranks import Ranks
from swinv2_train.launch.signals import PARENT_VARIABLE
from swinv2_train.models.precision import PRECISIONS
from swinv2_train.tasks.build import build_task, evaluation_loader
from swinv2_train.tasks.classes import check_one_numbering
from swinv2_train.tasks.measured import Measured, Sums
from swinv2_train.tasks.outcome import combine
from swinv2_train.tasks.report import Report
from swinv2_train.tasks.task import Task

_SHOWN = 8
"""Videos of a figure."""
Progress = Callable[[int, int], None]
"""Called with the number of finished batches and the total."""


@dataclass(frozen=True)
class EvalOptions:
    """Options of an evaluation."""

    checkpoint: str
    """See `interop.source.open_source`."""
    data: Any
    """Shards, as `data.shards`."""
    overrides: Sequence[str] = ()
    """Changes to the model and its input, such as model.window=24 and data.resolution=384."""
    which: str = "newest"
    ema: bool = False
    batch: int = 32
    """Images per rank in one forward pass."""
    precision: str = "fp32"
    max_samples: int | None = None
    workers: int = 4
    cache_dir: str = "~/.cache/swinv2_train/shards"
    cache_gib: float = 50.0
    label_map: str | None = None
    """File of class numbers, `names`, or `numbers`; see `data.label_map`."""
    real_labels: Path | None = None
    """ReaL labels that replace those of the shards."""
    probe: ProbeConfig | None = None
    """Shards for a k-NN vote and a linear classifier, whose scores are reported too."""


@dataclass(frozen=True)
class Evaluated:
    """Result, identical on every rank except for the timings."""

    task: Task
    """The task as evaluated."""
    source: Path
    step: int | None
    metrics: dict[str, float]
    found: Measured
    """Sums and records behind the metrics; see `tasks.outcome.Outcome`."""
    class_names: list[str] | None
    samples: int
    """Samples that count: not padding, not broken, not unlabeled."""
    broken: list[tuple[str, str]]
    """Shard and key of the samples that could not be used, with the reason."""
    seconds: float
    """Seconds from the first batch to the last, including reading and decoding."""
    ranks: int
    device: str
    warnings: list[str] = field(default_factory=list)
    figure: Image.Image | None = None
    """Film strips of some videos with their true and predicted classes, on the main rank; None for images."""

    @property
    def sums(self) -> Sums:
        """Sums over the samples, the same on every rank."""
        return self.found.sums

    @property
    def config(self) -> Config:
        """Config of the model as evaluated."""
        return self.task.config

    @cached_property
    def report(self) -> Report:
        """Additional display of the task; on the main rank."""
        return self.task.report(self.found, self.metrics, self.class_names)

    @property
    def images_per_second(self) -> float:
        return self.samples / self.seconds if self.seconds > 0 else float("nan")


class ChosenClasses(nn.Module):
    """A model that chooses among some of its classes.

    Args:
        columns: the model's numbers of these classes, in the order of their new numbers.
    """

    def __init__(self, model: nn.Module, columns: Sequence[int]) -> None:
        super().__init__()
        self.model = model
        self.columns = list(columns)

    def forward(self, images: Tensor, **random: Tensor | None) -> Any:
        """Return the logits of the model, of which there may be several, for these classes: (B, len(columns), ...)."""
        found = self.model(images, **random)
        if isinstance(found, tuple):
            return tuple(None if logits is None else logits[:, self.columns] for logits in found)
        return found[:, self.columns]


@torch.no_grad()
def evaluate(options: EvalOptions, ranks: Ranks, progress: Progress | None = None) -> Evaluated:
    """Evaluate on all ranks together. A collective.

    Args:
        progress: called on the main rank.

    Raises:
        ConfigError: if the model and the options contradict each other.
        DataError: if the shards or the labels cannot be used.
        CheckpointError: if the weights cannot be read.
        RunError: if one of these occurred only on another rank, or a rank is gone.
    """
    bench = together(ranks, lambda: _Bench(options, ranks, progress))
    shards = from_main(ranks, bench.open_shards)
    together(ranks, lambda: bench.prepare(shards))
    started = time.perf_counter()
    with begun():
        own = together(ranks, bench.measure)
        outcome = combine(bench.task, own, ranks)
    seconds = time.perf_counter() - started
    broken = sorted({entry for part in ranks.gather(bench.broken) for entry in part})
    metrics = outcome.metrics
    if not metrics["samples"]:
        raise ranks.end(f"no sample in {options.data} counts: they are broken or have no label")
    if not math.isfinite(metrics.get("loss", 0.0)):
        raise ranks.end(f"the outputs of {bench.loaded.source.path} are not finite: its weights are broken")
    with begun():
        metrics |= bench.probe_scores()
    return Evaluated(
        task=bench.task,
        source=bench.loaded.source.path,
        step=bench.loaded.source.step,
        metrics=metrics,
        found=outcome.found,
        class_names=bench.class_names,
        samples=int(metrics["samples"]),
        broken=[(name, reason) for _, name, reason in broken],
        seconds=seconds,
        ranks=ranks.world_size,
        device=ranks.device_name,
        warnings=bench.warnings,
        figure=bench.figure() if ranks.is_main else None,
    )


class _Bench:
    """Model, data, and task of one evaluation, on one rank."""

    def __init__(self, options: EvalOptions, ranks: Ranks, progress: Progress | None) -> None:
        if options.precision == "fp16" and ranks.device.type != "cuda":
            raise ConfigError("precision", "fp16", "needs a GPU; use bf16 or fp32")
        self.options, self.ranks, self.progress = options, ranks, progress
        self.broken: list[tuple[int, str, str]] = []
        self.loaded = load_model(options.checkpoint, options.overrides, which=options.which, ema=options.ema)
        self.warnings = list(self.loaded.source.notes)
        self.shown: Batch | None = None
        """Samples of the figure."""

    def open_shards(self) -> ShardSet:
        """Open the shards to evaluate on."""
        options, config = self.options, self.loaded.config
        shards = open_for_model(options.data, config, options.cache_dir, options.cache_gib)
        try:
            # The labels of a file replace those of the shards, which need not have any.
            shards = shards if options.real_labels else as_read_by(config.task, shards, config.data.label)
        except DataError as error:
            error.args = (f"data={options.data}: {error}",)
            raise
        own = options.label_map is not None  # then the shards number classes of their own
        return with_classes(shards, self.loaded.config.data.label, None if own else self.loaded.class_names)

    def prepare(self, shards: ShardSet) -> None:
        """Build the task for these shards, and move the model to its device."""
        options, ranks = self.options, self.ranks
        self.shards = shards
        task = self.loaded.config.task
        if self.loaded.config.data.image is None:  # the card describes the first image of each sample
            check_channels_of_model(shards.card, self.loaded.config.model.in_channels, "data", options.data)
        self.class_names = self.loaded.class_names
        check_label_options(vars(options), task.label_options())
        self.columns = self._columns(task.classes) if task.classes is not None else None
        self.real_labels = read_real_labels(options.real_labels) if options.real_labels else {}
        self.config = self._config(task)
        self.task: Task = build_task(self.config, self.shards)
        if self.real_labels:  # the shards may be unlabeled
            self.task.eval_transform = EvalImages(self.config)
        self.model = self.loaded.model.to(ranks.device, PRECISIONS[options.precision]).eval()
        self.judged = self.model if self.columns is None else ChosenClasses(self.model, self.columns)

    def _columns(self, classes: int) -> list[int] | None:
        """Return the model's class for each class of the data; None if they are identical.

        Args:
            classes: number of classes of the model.
        """
        card = self.shards.card
        check_one_numbering(card, f"the shards of {self.options.data}")
        task = self.loaded.config.task
        names, highest = (card.class_names, _highest_label(card, task)) if card else (None, None)
        known_labels = card is None or highest is not None
        spec = self.options.label_map
        if spec == NAMES:
            columns = match_names(names, self.class_names, classes)
            self.class_names = [self.class_names[column] for column in columns] if self.class_names else names
            return columns
        if spec not in (None, NUMBERS):
            columns = read_label_map(Path(spec), classes)
            model_names = self.class_names
            self.class_names = names if names and len(names) == len(columns) else None
            if self.class_names is None and model_names:
                self.class_names = [model_names[column] for column in columns]
        else:
            columns = None
            own = None if spec == NUMBERS else self.class_names
            if task.OUTPUT == DETECTIONS:
                check_same_categories(names, own, classes, self.loaded.source.path)
            else:
                check_same_classes(names, own)
            if spec is None and known_labels and bool(names) != bool(self.class_names):
                self.warnings.append(_unnamed(self.options.data, names))
            self.class_names = self.class_names or (names if names and len(names) == classes else None)
        most = classes if columns is None else len(columns)
        if highest is not None and highest >= most:
            what = f"the model has {most} classes" if columns is None else f"the label map has {most} lines"
            fix = "use label_map=FILE" if columns is None else "write a line for each class of the shards"
            raise DataError(f"the shards have labels up to {highest}, but {what} (0 to {most - 1}): {fix}")
        return columns

    def _config(self, task: TaskConfig) -> Config:
        config, options = self.loaded.config, self.options
        task = task.for_evaluation(task.classes if self.columns is None else len(self.columns))
        data = replace(
            config.data,
            eval_shards=options.data,
            mean=self.loaded.mean,
            std=self.loaded.std,
            num_workers=options.workers,
            cache_dir=options.cache_dir,
            cache_gib=options.cache_gib,
        )
        return replace(config, task=task, data=data, probe=options.probe or ProbeConfig())

    def figure(self) -> Image.Image | None:
        """Draw some videos with their predictions; None for images."""
        return self.task.figure(self.judged, self.shown) if self.shown is not None else None

    def measure(self) -> Measured:
        """Measure this rank's part of the samples."""
        open_loader = evaluation_loader(self.config, self.task, self.shards, self.ranks)
        with closing(open_loader(self.options.max_samples, self.options.batch)) as loader:
            if not self.real_labels:
                return self.task.evaluate(self.judged, self._batches(loader))
            found = Measured()
            for batch in self._batches(loader):
                found.add(self.task.measure_any_of(self.judged, batch, self._labels), batch)
            return found

    def _batches(self, loader: EvalLoader) -> Iterator[Batch]:
        moved = on_device(self._each(loader), self.ranks.device, self.task.eval_transform.on_host)
        for done, batch in enumerate(moved, 1):
            yield batch
            if self.task.frames and self.shown is None and self.ranks.is_main and batch["valid"].any():
                self.shown = select(batch, batch["valid"].nonzero()[:_SHOWN, 0].tolist())
            if self.progress is not None and self.ranks.is_main:
                self.progress(done, len(loader))

    def _each(self, loader: EvalLoader) -> Iterator[Batch]:
        for batch in loader:
            check_alive()
            self.broken += batch.pop("broken")
            yield batch

    def _labels(self, position: int) -> list[int]:
        """Return the ReaL labels of a sample."""
        key, classes = self.shards.key(position), self.config.task.classes or 0
        labels = real_labels_of(key, self.real_labels)
        if labels is None:
            raise DataError(f"the real labels have no entry for sample {key}: they are matched by image name")
        if max(labels, default=0) >= classes:
            raise DataError(f"real label {max(labels)} of sample {key} is outside 0 to {classes - 1}")
        return labels

    def probe_scores(self) -> dict[str, float]:
        """Return the scores of the probes, if requested."""
        if self.options.probe is None:
            return {}
        options = {"mean": self.loaded.mean, "std": self.loaded.std, "micro_batch": self.options.batch}
        probe = Probe(self.config, self.ranks, warn=self.warnings.append, check=check_alive, **options)
        return probe.measure(self.model, self.loaded.source.step)


def _highest_label(card: Card, task: TaskConfig) -> int | None:
    """Return the highest class number in the labels, or in what the task has instead of them: label maps or objects;
    None without any."""
    if task.OUTPUT == DETECTIONS:
        return max(card.objects.objects, default=None) if card.objects else None
    if task.OUTPUT == PIXEL_LOGITS:
        return max(card.label_maps.pixels, default=None) if card.label_maps else None
    return max(card.class_counts, default=None)


def _unnamed(data: Any, names: Sequence[str] | None) -> str:
    named, other = (f"data={data}", "the model") if names else ("the model", f"data={data}")
    return (
        f"{named} names its classes and {other} does not, so class n of one is used for class n of the other, "
        f"unchecked (label_map={NUMBERS} if that is right)"
    )


def check_alive() -> None:
    """End this rank if the command that started it is gone.

    Raises:
        RunError: if it is gone.
    """
    parent = os.environ.get(PARENT_VARIABLE)
    if parent is not None and os.getppid() != int(parent):
        raise RunError("the command that started this rank is gone")
