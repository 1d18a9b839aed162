"""Identity of a run: the values in a checkpoint's manifest that a resumed run must match. Torch-free."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from swinv2_train.checkpoint.errors import CheckpointError
from swinv2_train.checkpoint.layout import Manifest, is_misnamed, list_checkpoints, read_manifest
from swinv2_train.class_lists import plain_name
from swinv2_train.config.compose import from_yaml, to_dict
from swinv2_train.config.errors import ConfigError
from swinv2_train.config.order import GROUPS, groups_block
from swinv2_train.config.resume import DATA, GLOBAL_BATCH
from swinv2_train.config.schema import Config
from swinv2_train.config.tasks import TASK_SECTIONS, TaskConfig
from swinv2_train.config.validate import resolution
from swinv2_train.config.values import VALUE_KEYS, value_settings

FREE_MODEL_KEYS = ("name", "attention", "sequential_chunk_mib", "checkpointing", "drop_path")
"""Fields of the model section that change neither its parameters nor their meaning."""
CLIP_MODEL_KEYS = ("temporal_window", "pretrained_temporal_window")
"""Fields of the model section that mean nothing for a model of images."""
COMPARED = ("model", "task", "data", "order")
"""Sections of the metadata that must not change within a run; the others are for readers of the weights."""
SHARDS, CONTENT = "data.shards", "data.content"
"""Keys of the section `order` that describe the data: names, sizes, and content of the shards."""
EARLIER_BACKGROUND = "drop"
"""`data.background` of runs whose checkpoints do not record it: earlier versions dropped the alpha channel."""
EARLIER = "earlier"
"""Section of the metadata with the values that a key had before in the same run, by key."""


@dataclass(frozen=True)
class Difference:
    """A value in which a checkpoint differs from the run."""

    key: str
    """Dotted config key."""
    before: Any
    """Value in the checkpoint."""
    now: Any
    """Value of the run."""
    what: str = ""
    """Description of a difference in the data, if the two values do not suffice."""
    option: str | None = None
    """Value of `resume.allow` that accepts it; None if none does."""

    def __str__(self) -> str:
        return self.what or f"{self.key}={self.before}, but this run has {self.now}"


@dataclass(frozen=True)
class Identity:
    """Values that a checkpoint must match to belong to the run."""

    metadata: Mapping[str, Any]
    """See `run_metadata`."""
    class_names: Sequence[str] | None = None
    """Class names of the training data; None without classes."""
    defaults: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """By section: values of fields that checkpoints of earlier versions do not record."""
    allow: Sequence[str] = ()
    """See `resume.allow`."""
    from_data: Mapping[str, Callable[[Any], str]] = field(default_factory=dict)
    """Keys that the training data decided, each with a function that describes data with a value."""

    def differences(self, saved: Mapping[str, Any]) -> list[Difference]:
        """Return every difference from the metadata of a checkpoint, most important first."""
        found = []
        for section in COMPARED:
            before = saved.get(section)
            for key, now in self.metadata.get(section, {}).items():
                if key in (SHARDS, CONTENT):
                    continue
                value = _value(before, key, self.defaults.get(section, {}).get(key, now))
                if value != now:
                    option = GLOBAL_BATCH if key == GLOBAL_BATCH else None
                    found.append(
                        Difference(key if section == "order" else f"{section}.{key}", value, now, option=option)
                    )
        return [*found, *self._class_difference(saved), *self._data_difference(saved.get("order"))]

    def refusal(self, saved: Mapping[str, Any]) -> Difference | None:
        """Return the first difference that `resume.allow` does not accept; None if there is none."""
        return next((one for one in self.differences(saved) if one.option not in self.allow), None)

    def accepted(self, saved: Mapping[str, Any], option: str) -> list[Difference]:
        """Return the differences that one value of `resume.allow` accepts."""
        return [one for one in self.differences(saved) if one.option == option and option in self.allow]

    def returns_to(self, saved: Mapping[str, Any]) -> bool:
        """Return whether this run has a global batch that the run of a checkpoint had and changed."""
        return self.metadata["order"].get(GLOBAL_BATCH) in earlier_batches(saved)

    def foreign(self, manifest: Manifest) -> str | None:
        """Return why a checkpoint does not belong to this run; None if it does."""
        found = self.refusal(manifest.metadata)
        if found is None:
            return None
        advice = f"; resume.allow=[{found.option}] accepts it" if found.option else ""
        return f"it belongs to another run ({found}{advice})"

    def _class_difference(self, saved: Mapping[str, Any]) -> list[Difference]:
        before, now = saved.get("classes"), self.class_names
        if not isinstance(before, list) or not now:
            return []
        pairs = enumerate(zip(before, now, strict=False))
        number = next((n for n, (a, b) in pairs if plain_name(str(a)) != plain_name(b)), None)
        if number is None:
            return []
        what = f"class {number} was {before[number]!r} and is {now[number]!r} in the data"
        # The rows of the head would mean other classes, so no option accepts this.
        option = None if moved_name(before, now) else DATA
        return [Difference(SHARDS, before[number], now[number], what, option=option)]

    def _data_difference(self, saved: Any) -> list[Difference]:
        order = self.metadata.get("order", {})
        shards, content = order.get(SHARDS), order.get(CONTENT)
        before = _value(saved, SHARDS, shards)
        if not shards or not before:
            return []
        if before != shards:
            return [Difference(SHARDS, before, shards, option=DATA)]
        listed = _value(saved, CONTENT, None)
        if not isinstance(listed, list) or not content or len(listed) != len(content):
            return []
        number = next((n for n, pair in enumerate(zip(listed, content, strict=True)) if _replaced(*pair)), None)
        if number is None:
            return []
        what = f"shard {number} of data.shards was replaced (then {listed[number]}, now {content[number]})"
        return [Difference(SHARDS, listed[number], content[number], what, option=DATA)]


def _value(section: Any, key: str, default: Any) -> Any:
    return section.get(key, default) if isinstance(section, Mapping) else default


def earlier_batches(metadata: Mapping[str, Any]) -> list[int]:
    """Return the global batches that the run of a checkpoint had before, oldest first."""
    found = _value(metadata.get(EARLIER), GLOBAL_BATCH, [])
    return list(found) if isinstance(found, list) else []


def _replaced(before: str, now: str) -> bool:
    """Return whether two descriptions of a shard (`Shard.content`) contradict each other.

    They consist of words; only words of the same kind, the part before the first colon, are compared. A hash alone
    decides.
    """
    there = dict(word.split(":", 1) for word in str(before).split() if ":" in word)
    here = dict(word.split(":", 1) for word in str(now).split() if ":" in word)
    kinds = there.keys() & here.keys()
    return any(there[kind] != here[kind] for kind in ({"sha256"} if "sha256" in kinds else kinds))


def moved_name(before: Sequence[str], now: Sequence[str]) -> str | None:
    """Return the first name that two lists of classes assign to different numbers; None if there is none."""
    numbers = {name: number for number, name in enumerate(before)}
    return next((name for number, name in enumerate(now) if numbers.get(name, number) != number), None)


def shards_digest(names: Sequence[str], sizes: Sequence[int]) -> str:
    """Return a short digest of the shards' names and numbers of samples, in order. Their folders may change."""
    digest = hashlib.sha256(json.dumps([list(names), list(sizes)]).encode()).hexdigest()[:12]
    # Not in the singular, because checkpoints record and compare it.
    return f"{sum(sizes)} samples in {len(sizes)} shards ({digest})"


def run_metadata(
    config: Config,
    shards: str,
    classes: list[str] | None = None,
    statistics: tuple[list[float], list[float]] | None = None,
    content: Sequence[str] = (),
    bits: list[int] | None = None,
) -> dict[str, Any]:
    """Return what a checkpoint records of its run: dotted config keys and their values.

    `task`, `model`, `data`, `classes`, and `preprocess` are needed to use the weights; `order` determines the sequence
    of samples.

    Args:
        shards: digest of the training shards.
        classes: names of the classes.
        statistics: per-channel mean and standard deviation, if `data.mean` and `data.std` only name their source.
        content: `Shard.content` of every training shard.
        bits: bit depths of the training images, if the dataset card records them.
    """
    mean, std = statistics or (config.data.mean, config.data.std)
    unused = (*FREE_MODEL_KEYS, *(() if config.model.temporal_patch else CLIP_MODEL_KEYS))
    model = {key: value for key, value in to_dict(config.model).items() if key not in unused}
    clips = {"frames": config.data.frames, "frame_stride": config.data.frame_stride} if config.data.frames else {}
    return {
        "imports": list(config.imports),
        "task": to_dict(config.task),
        "model": model,
        "data": {
            "resolution": list(resolution(config)),
            "mean": config.data.mean,
            "std": config.data.std,
            "background": config.data.background,
            **{key: getattr(config.data, key) for key in VALUE_KEYS},
            "label": config.data.label,
            **clips,
        },
        "order": {
            "seed": config.seed,
            "optim.global_batch": config.optim.global_batch,
            "data.order": config.data.order,
            "data.lanes": config.data.lanes,
            "data.shuffle_samples": config.data.shuffle_samples,
            "data.block_samples": config.data.block_samples,
            SHARDS: shards,
            CONTENT: list(content),
            "data.image": config.data.image,
        },
        "classes": classes,
        "preprocess": {
            "crop_pct": config.data.crop_pct,
            "crop_mode": config.data.crop_mode,
            "interpolation": config.data.augment.interpolation,
            "mean": mean,
            "std": std,
            "bits": bits,
            "background": config.data.background,
            **value_settings(config.data),
        },
    }


def identity(
    config: Config, shards: str = "", content: Sequence[str] = (), class_names: Sequence[str] | None = None
) -> Identity:
    """Return the identity of the run of a config.

    Args:
        shards, content: as in `run_metadata`; without `shards` the data are not compared.
        class_names: names of the classes of the training data.
    """
    defaults = {name: to_dict(type(getattr(config, name))()) for name in ("model", "task", "data")}
    defaults["data"]["background"] = EARLIER_BACKGROUND
    defaults["order"] = {
        "data.image": None,
        "data.order": GROUPS,
        "data.lanes": 1,
        "data.block_samples": groups_block(config),
    }
    own = run_metadata(config, shards, content=content)
    for key in config.task.FREE:
        del own["task"][key]
    if config.data.background is None:  # not filled in yet
        del own["data"]["background"]
    if isinstance(config.data.scale, str):  # the same
        del own["data"]["scale"]
    if config.data.order is None:
        for key in ("data.order", "data.lanes", "data.block_samples"):
            del own["order"][key]
    return Identity(own, class_names, defaults, tuple(config.resume.allow))


def same_run(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Return whether the metadata of two checkpoints belongs to the same run, ignoring the data."""
    name = _value(one.get("task"), "name", None)
    free = {"task": TASK_SECTIONS.get(str(name), TaskConfig).FREE, "order": (SHARDS, CONTENT)}
    if {global_batch_of(one), *earlier_batches(one)} & {global_batch_of(other), *earlier_batches(other)}:
        free["order"] = (SHARDS, CONTENT, GLOBAL_BATCH)
    for section in COMPARED:
        values = one.get(section)
        for key, value in values.items() if isinstance(values, Mapping) else ():
            if key not in free.get(section, ()) and _value(other.get(section), key, value) != value:
                return False
    return True


def global_batch_of(metadata: Mapping[str, Any]) -> Any:
    """Return the global batch in the metadata of a checkpoint; None if it has none."""
    return _value(metadata.get("order"), GLOBAL_BATCH, None)


def is_foreign(path: Path, own: Mapping[str, Any] | None) -> bool:
    """Return whether a checkpoint belongs to another run than `own`, or is named after another step.

    Args:
        own: metadata of the run; None if it is unknown, so only the name is checked.
    """
    try:
        saved = read_manifest(path).metadata
    except CheckpointError:
        return is_misnamed(path)
    return own is not None and not same_run(saved, own)


def strangers(directory: Path) -> dict[str, str]:
    """Return the checkpoints of other runs in a directory of checkpoints, by name, each with the reason.

    The run is that of the `resolved.yaml` next to the directory; without one, only renamed checkpoints count.
    """
    found: dict[str, Manifest] = {}
    renamed: dict[str, str] = {}
    for path in list_checkpoints(directory):
        try:
            found[path.name] = read_manifest(path)
        except CheckpointError as error:
            if is_misnamed(path):
                renamed[path.name] = str(error)
    saved = [manifest.metadata for manifest in found.values()]
    # Read the config only if it is needed to decide: composing it takes longer than everything else here.
    if all(same_run(saved[0], other) for other in saved[1:]):
        return renamed
    try:
        own = identity(from_yaml(directory.parent / "resolved.yaml"))
    except ConfigError:
        return renamed
    return renamed | {name: reason for name, manifest in found.items() if (reason := own.foreign(manifest))}
