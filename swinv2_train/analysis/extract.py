"""Extraction of features from shards or image files into one table, over ranks; an interrupted one is continued.

The samples are cut into parts of a fixed length. A part is computed by one rank in fixed batches and written to
`OUT.parts`, so the result does not depend on the number of ranks or on interruptions. The main rank joins the parts.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from swinv2_train.analysis.evaluate import Progress, check_alive
from swinv2_train.analysis.feature_outputs import (
    REQUEST,
    check_outputs,
    check_parts,
    find_inputs,
    remove_parts,
    work_directory,
)
from swinv2_train.analysis.feature_table import BROKEN, join, read_part, write_part
from swinv2_train.analysis.features import POOLED, AnyImages, features_of, normalised, stage_name
from swinv2_train.config.checks import clip_frames, resolution
from swinv2_train.config.errors import ConfigError
from swinv2_train.config.model import stage_geometry
from swinv2_train.data.channel_statistics import check_channels_of_model
from swinv2_train.data.configured import main_member, open_for_model
from swinv2_train.data.decode import DecodeOptions
from swinv2_train.data.errors import DataError
from swinv2_train.data.file_set import FileSet
from swinv2_train.data.label_counts import with_classes
from swinv2_train.data.loader import SampleSource, Share, fixed_batches
from swinv2_train.data.shards import ShardSet
from swinv2_train.data.workers import Workers
from swinv2_train.errors import RunError
from swinv2_train.interop.export_facts import clip_facts
from swinv2_train.interop.load import LoadedModel, load_model
from swinv2_train.launch.environment import local_ranks
from swinv2_train.launch.failures import begun, from_main, on_main, together
from swinv2_train.launch.ranks import Ranks
from swinv2_train.models.precision import PRECISIONS
from swinv2_train.reading import UnreadableError, parse_json, read_text
from swinv2_train.redact import redacted
from swinv2_train.text import printable
from swinv2_train.writing import write_bytes

PART_SAMPLES = 256
"""Samples of a part, unless a batch has more."""
Samples = ShardSet | FileSet


@dataclass(frozen=True)
class FeatureOptions:
    """Options of an extraction."""

    checkpoint: str
    """See `interop.source.open_source`."""
    shards: Any = None
    """Shards, as `data.shards`; None: `images`."""
    images: Sequence[str] = ()
    """Files, folders, and patterns, of videos for a model of clips."""
    stages: Sequence[int] = ()
    """Stages whose maps are stored, in addition to the pooled features."""
    overrides: Sequence[str] = ()
    which: str = "newest"
    ema: bool = False
    batch: int = 32
    """Images per rank in one forward pass."""
    precision: str = "fp32"
    max_samples: int | None = None
    sheet: Path | None = None
    """Picture that the caller draws afterward; an earlier one is not among the images."""
    workers: int = 4
    cache_dir: str = "~/.cache/swinv2_train/shards"
    cache_gib: float = 50.0


@dataclass(frozen=True)
class Extracted:
    """Result of an extraction."""

    rows: int
    broken: list[tuple[str, str]]
    """Names of the samples that could not be used, with the reason."""
    continued: int
    """Samples that an interrupted extraction had computed."""
    notes: list[str]
    """Lines about the weights and about files that were not read."""
    lost: bool
    """True if these files may be images."""
    samples: Samples
    loaded: LoadedModel
    shapes: dict[str, list[int]]
    """Shape of the features of one image or clip, by name."""


def extract(options: FeatureOptions, out: Path, ranks: Ranks, progress: Progress | None = None) -> Extracted:
    """Write the features of all samples to a table, in their order. A collective.

    Args:
        out: .npz or .parquet; an existing table is replaced at the end.
        progress: called on the main rank with its batches.

    Raises:
        ConfigError: if the options contradict each other, an output is a file of the user, or the parts next to `out`
            belong to another extraction.
        DataError: if the images cannot be used.
        CheckpointError: if the weights cannot be read.
        RunError: if one of these occurred only on another rank, an output is not finite, or a part is damaged.
    """
    loaded = together(ranks, lambda: _load(options, ranks))
    samples, notes, lost, names = from_main(ranks, lambda: _open(options, loaded, out))
    count = min(options.max_samples or samples.num_samples, samples.num_samples)
    size = max(PART_SAMPLES, options.batch)
    parts = [range(start, min(start + size, count)) for start in range(0, count, size)]
    place = work_directory(out)
    about = _about(options, loaded, count, names)
    done = from_main(ranks, lambda: _prepare(place, about | _identity(options, samples, loaded)))
    paths = [place / f"part-{number:06d}.npz" for number in range(len(parts))]
    todo = [number for number in range(len(parts)) if paths[number].name not in done]
    share = -(-len(todo) // ranks.world_size)
    own = todo[ranks.rank * share : (ranks.rank + 1) * share]
    with begun():
        work = _Work(options, loaded, samples, ranks, progress)
        work.class_names = names
        together(ranks, lambda: work.compute({paths[number]: parts[number] for number in own}))
        result = on_main(ranks, lambda: _finish(paths, out, about))
    rows, broken = ranks.broadcast(result)
    continued = sum(len(part) for number, part in enumerate(parts) if number not in todo)
    notes = [*loaded.source.notes, *notes]
    return Extracted(rows, broken, continued, notes, lost, samples, loaded, about["shapes"])


def _load(options: FeatureOptions, ranks: Ranks) -> LoadedModel:
    if options.precision == "fp16" and ranks.device.type != "cuda":
        raise ConfigError("precision", "fp16", "needs a GPU; use bf16 or fp32")
    loaded = load_model(options.checkpoint, options.overrides, which=options.which, ema=options.ema)
    loaded.model.to(ranks.device, PRECISIONS[options.precision]).eval()
    return loaded


def _open(options: FeatureOptions, loaded: LoadedModel, out: Path) -> tuple[Samples, list[str], bool, list[str] | None]:
    """Return the samples, lines about what is not read, whether that may be images, and the names of the classes."""
    check_outputs(out, options.sheet)
    if options.shards is None:
        kind = main_member(loaded.config.data)
        found = find_inputs(options.images, out, options.sheet, kind)
        return FileSet(found.files, kind), found.notes, found.lost, None
    data = loaded.config.data
    shards = open_for_model(options.shards, loaded.config, options.cache_dir, options.cache_gib)
    if data.image is None:  # the card describes the first image of each sample
        check_channels_of_model(shards.card, loaded.config.model.in_channels, "shards", options.shards)
    notes = []
    try:
        shards = with_classes(shards, data.label, loaded.class_names)
    except DataError as error:
        if any(item.startswith("data.label=") for item in options.overrides):
            raise
        notes.append(str(error))  # of the training data; features need no label
    card = shards.card
    return shards, notes, False, loaded.class_names or (card.class_names if card else None)


def _about(options: FeatureOptions, loaded: LoadedModel, count: int, names: Sequence[str] | None) -> dict[str, Any]:
    """Describe the table: the weights, the input, the labels, and the shapes of the maps."""
    config, source = loaded.config, loaded.source
    data = config.data
    labels = {"label": data.label, "classes": names} if data.label is not None else {}
    return redacted({
        **labels,
        **clip_facts(config),
        "format": 1,
        "checkpoint": str(source.path.resolve()),
        "step": source.step,
        "weights": "ema" if options.ema else "raw",
        "model": asdict(config.model),
        "resolution": list(resolution(config)),
        "crop_pct": data.crop_pct,
        "crop_mode": data.crop_mode,
        "interpolation": data.augment.interpolation,
        "mean": loaded.mean,
        "std": loaded.std,
        "precision": options.precision,
        "data": options.shards if options.shards is not None else list(options.images),
        "samples": count,
        "shapes": _shapes(loaded, options.stages),
    })  # fmt: skip


def _shapes(loaded: LoadedModel, stages: Sequence[int]) -> dict[str, list[int]]:
    """Return the shape of the features of one image or clip, by name."""
    model, frames = loaded.config.model, clip_frames(loaded.config)
    maps = []
    for number, stage in enumerate(stage_geometry(model, *resolution(loaded.config), frames)):
        sides = [stage.time, stage.height, stage.width] if frames else [stage.height, stage.width]
        maps.append([model.embed_dim * 2**number, *sides])
    return {POOLED: maps[-1][:1], **{stage_name(stage): maps[stage - 1] for stage in stages}}


def _identity(options: FeatureOptions, samples: Samples, loaded: LoadedModel) -> dict[str, Any]:
    """Return what else must be the same for parts to belong together: bytes of weights and samples, batches."""
    return {
        "files of the weights": _fingerprint(_files(loaded.source.path)),
        "files of the samples": _fingerprint(_listed(samples)),
        "batch": options.batch,
        "samples of a part": max(PART_SAMPLES, options.batch),
        "overrides": sorted(options.overrides),
    }


def _files(path: Path) -> Iterator[tuple[Any, ...]]:
    for file in sorted(path.iterdir()) if path.is_dir() else [path]:
        stat = file.stat()
        yield file.name, stat.st_size, stat.st_mtime_ns


def _listed(samples: Samples) -> Iterator[tuple[Any, ...]]:
    if isinstance(samples, FileSet):
        for path in samples.files:
            stat = path.stat()
            yield str(path), stat.st_size, stat.st_mtime_ns
        return
    for shard in samples.shards:
        yield shard.name, shard.num_samples, shard.content


def _fingerprint(entries: Iterator[tuple[Any, ...]]) -> str:
    digest = hashlib.sha256()
    for entry in entries:
        digest.update(repr(entry).encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _prepare(place: Path, request: Mapping[str, Any]) -> set[str]:
    """Create the directory of parts, or return the parts of the interrupted extraction in it.

    Raises:
        ConfigError: if they belong to another one.
    """
    text = json.dumps(request, indent=1, sort_keys=True)
    try:
        before = parse_json(read_text(place / REQUEST))
    except FileNotFoundError:
        check_parts(place)
        place.mkdir(exist_ok=True)
        write_bytes(place / REQUEST, text.encode())
        return set()
    except UnreadableError as error:
        raise ConfigError("", place, f"{place / REQUEST} is damaged ({error}); remove {place}") from error
    now = json.loads(text)
    if before != now:
        known = before if isinstance(before, dict) else {}
        key = next((key for key in now if known.get(key) != now[key]), "format")
        hint = f"{place} holds parts of another extraction, with another {key}; remove it, or use another output"
        raise ConfigError("", place, hint)
    return {path.name for path in place.glob("part-*.npz")}


def _finish(paths: Sequence[Path], out: Path, about: Mapping[str, Any]) -> tuple[int, list[tuple[str, str]]]:
    """Join the parts and remove them; return the number of rows, and the samples that could not be used."""
    broken = [(str(name), str(reason)) for path in paths for name, reason in read_part(path, BROKEN)[BROKEN]]
    rows = join(paths, out, {**about, "broken": broken})
    remove_parts(work_directory(out))
    return rows, broken


class _Work:
    """The parts of one rank."""

    def __init__(
        self,
        options: FeatureOptions,
        loaded: LoadedModel,
        samples: Samples,
        ranks: Ranks,
        progress: Progress | None,
    ) -> None:
        self.options, self.loaded, self.samples, self.ranks = options, loaded, samples, ranks
        self.class_names: Sequence[str] | None = None
        self.progress: Callable[[int, int], None] = (ranks.is_main and progress) or (lambda done, total: None)

    def compute(self, parts: Mapping[Path, range]) -> None:
        """Compute parts and write each to its path.

        Raises:
            RunError: if the outputs of the model are not finite.
            OSError: if a part cannot be written.
        """
        if not parts:
            return
        step = self.options.batch
        cut = {path: [range(i, min(i + step, part.stop)) for i in part[::step]] for path, part in parts.items()}
        batches = [batch for listed in cut.values() for batch in listed]
        config = self.loaded.config
        decoding = DecodeOptions.of(config.data, self.loaded.mean)
        source = SampleSource(
            self.samples, AnyImages(config, self.class_names), config.model.in_channels, seed=0, decoding=decoding
        )
        share = Share(step, local_ranks=local_ranks(), connections=config.data.connections)
        workers = Workers(self.options.workers, config.data.prefetch_batches)
        finished = 0
        with closing(fixed_batches(source, batches, share, workers)) as pool, closing(self.samples):
            for path, listed in cut.items():
                rows = []
                broken: list[tuple[str, str]] = []
                for _ in listed:
                    check_alive()
                    batch = next(pool)
                    broken += [(printable(name), reason) for _, name, reason in batch["broken"]]
                    rows.append(self._columns(batch))
                    finished += 1
                    self.progress(finished, len(batches))
                names = rows[0].keys()
                write_part(path, {name: np.concatenate([each[name] for each in rows]) for name in names}, broken)

    def _columns(self, batch: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Return the columns of the usable samples of a batch."""
        loaded, valid = self.loaded, batch["valid"]
        images = normalised(batch["image"].to(self.ranks.device), loaded.mean, loaded.std)
        found = features_of(loaded.model, images, self.options.stages)
        if not all(value[valid].isfinite().all() for value in found.values()):
            raise RunError(f"the features of {loaded.source.path} are not finite: its weights are broken")
        positions = batch["position"][valid].tolist()
        columns = {
            "index": batch["position"][valid].numpy(),
            "name": _texts([self.samples.key(position) for position in positions]),
        }
        if isinstance(self.samples, ShardSet):
            columns["shard"] = _texts([self.samples.shards[self.samples.locate(i)[0]].name for i in positions])
            columns["label"] = batch["label"][valid].numpy()
        return columns | {name: value[valid].numpy() for name, value in found.items()}


def _texts(values: Sequence[str]) -> np.ndarray:
    """Return an array of text; bytes of a file name that are not UTF-8 are shown as escapes."""
    return np.array([value.encode("utf-8", "backslashreplace").decode() for value in values], dtype=np.str_)
