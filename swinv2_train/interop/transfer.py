"""Transfer of weights from a source into another kind of model: each tensor is loaded, changed, new, or dropped.

Nothing happens silently: a `Transfer` has one row per tensor of the source and of the model. A contradiction is
rejected with a one-sentence error.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from swinv2_train.config.errors import ConfigError
from swinv2_train.config.model import ModelConfig, fit_window, stage_geometry, windows
from swinv2_train.config.tasks import TASK_SECTIONS, TaskConfig
from swinv2_train.interop.head import HeadRows, reason_for_new_head, rows_by_name
from swinv2_train.interop.inflation import PATCHES, change_channels, inflated
from swinv2_train.interop.metadata import model_config
from swinv2_train.interop.names import FORMATS, HEAD, SIMMIM_ONLY, in_backbone
from swinv2_train.interop.source import OWN, WeightSource
from swinv2_train.interop.storage import numel
from swinv2_train.interop.structure import check_structure
from swinv2_train.text import counted

if TYPE_CHECKING:
    from torch import Tensor

POSITION = "absolute_pos_embed"


@dataclass(frozen=True)
class Row:
    """Fate of one tensor."""

    key: str
    """Canonical name, or for a dropped tensor its name in the file."""
    action: str
    """loaded, renamed, inflated, averaged, resized, rows taken, new or dropped."""
    detail: str = ""


@dataclass
class Transfer:
    """A plan that can be inspected and then read from, tensor by tensor."""

    source: WeightSource
    rows: list[Row] = field(default_factory=list)
    _shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    _make: dict[str, Callable[[], Tensor]] = field(default_factory=dict)
    """Functions that create tensors that the source does not have in this form, by canonical name."""
    _kept: set[str] = field(default_factory=set)
    head: HeadRows | None = None
    """Rows of the head, unless all of it is loaded unchanged or new."""
    new_head: str | None = None
    """Reason for a head with its initial values although rows of the source would fit."""
    same_head: bool = True
    """True if parameters outside of the backbone have the same meaning in source and model when names match."""

    def tensor(self, name: str) -> Tensor | None:
        """Return the value of a parameter, fp32 on the CPU; None if the model keeps its initial value.

        Args:
            name: name in the model's `named_parameters`.

        Raises:
            CheckpointError: if the source cannot be read.
        """
        shape = self._shapes[_canonical(name)]
        values = self.elements(name, 0, numel(shape))
        return None if values is None else values.reshape(shape)

    def elements(self, name: str, start: int, stop: int) -> Tensor | None:
        """Return the elements from `start` to `stop` of a flattened parameter; if it is loaded unchanged, only those
        are read.

        Raises:
            CheckpointError: if the source cannot be read.
        """
        key = _canonical(name)
        if key in self._kept:
            return self.source.elements(key, start, stop)
        if key in self._make:
            return self._make[key]().reshape(-1)[start:stop]
        return None

    def of(self, action: str) -> list[Row]:
        """Return the rows with an action."""
        return [row for row in self.rows if row.action == action]

    def lines(self) -> list[str]:
        """Return a summary of the transfer in a few lines."""
        step = "" if self.source.step is None else f", step {self.source.step}"
        counts = Counter(row.action for row in self.rows)
        said = [f"{count} {action}{self._examples(action)}" for action, count in counts.items()]
        changed = [row for row in self.rows if row.action not in _QUIET]
        details = dict.fromkeys(row.detail for row in changed)
        return [
            f"weights from {self.source.path} ({self.source.format}{step}): {', '.join(said)}",
            *(f"{_names(row for row in changed if row.detail == detail)}: {detail}" for detail in details),
            *self.source.notes,
        ]

    def table(self) -> str:
        """Return a table with every tensor and what happens to it, one per line."""
        width = max((len(row.key) for row in self.rows), default=0)
        lines = [f"{row.key:<{width}}  {row.action:<10}  {row.detail}".rstrip() for row in self.rows]
        rows = ["", *self.head.lines(self.source.class_names)] if self.head else []
        return "\n".join([*self.lines(), "", *lines, *rows]) + "\n"

    def _examples(self, action: str) -> str:
        if action == "loaded":
            return ""
        if action == "renamed":
            return f" (from the names of {self.source.format})"
        return f" ({_names(self.of(action))})"


ROWS_TAKEN = "rows taken"
"""Action of a head whose rows are taken by class."""
_QUIET = ("loaded", "renamed", "dropped")
_ONLY_OF = "of task="
"""Beginning of the reason for dropping a part of another task or of another head."""


def _names(rows: Iterable[Row]) -> str:
    """Return the tensors of some rows in a few words."""
    distinct = list(dict.fromkeys(map(_short, rows)))
    return f"{', '.join(distinct[:4])}{', ...' if len(distinct) > 4 else ''}"


def _short(row: Row) -> str:
    """Return a tensor in a word or two: `head`, `decoder`, `decoder.classifier` for some of its rows, or the last part
    of the name of a buffer."""
    if row.action == ROWS_TAKEN:
        return row.key.rpartition(".")[0]
    of_task = row.action == "new" or (row.action == "dropped" and row.detail.startswith(_ONLY_OF))
    if row.key in (*HEAD, *SIMMIM_ONLY) or (of_task and not in_backbone(row.key)):
        return row.key.partition(".")[0]
    return row.key.rpartition(".")[2] if row.action == "dropped" else row.key


def _canonical(name: str) -> str:
    return FORMATS["swinv2-train"].to_canonical(name)


def plan_transfer(
    source: WeightSource,
    target: Mapping[str, tuple[int, ...]],
    model: ModelConfig,
    label_map: Sequence[int] | None = None,
    *,
    resolution: tuple[int, int] | None = None,
    class_names: Sequence[str] | None = None,
    task: TaskConfig | None = None,
) -> Transfer:
    """Decide what happens to every tensor of the source and of a model.

    Args:
        target: shapes of the model's parameters by name.
        model: the section that the model was built from.
        label_map: for each class of the model, the class of the source that provides its row of the head.
        resolution: input (height, width) in pixels of the model; needed by an absolute position embedding of a map that
            is not square.
        class_names: those of the model. Without a label map, the rows of the head are matched by name if the source has
            names too.
        task: that of the model; None: the source's. Parts of another task outside of the backbone are not loaded, even
            if their names match.

    Raises:
        ConfigError: on a contradiction, naming the first tensor that shows it, and the fix.
    """
    keys = canonical_names(target, task)
    wanted = {keys[name]: tuple(shape) for name, shape in target.items()}
    check_structure(source, model)
    _refuse_incomplete(source, wanted)
    if note := _other_rule(source, model, resolution):
        source.notes.append(note)
    transfer = Transfer(source, _shapes=wanted, same_head=shares_head(source, task))
    there, here = (shapes.get(source.head[0]) for shapes in (source.shapes, wanted))
    rows_fit = transfer.same_head and there is not None and here is not None and there[1:] == here[1:]
    if label_map is not None and not rows_fit:
        hint = f"{source.head[0]} is {there} in {source.path} and {here} in the model, so no row fits; set it to null"
        raise ConfigError("init.label_map", f"<{counted(len(label_map), 'line')}>", hint)
    if label_map is not None:
        transfer.head = HeadRows(list(label_map), "by the label map", class_names)
    elif rows_fit:
        transfer.head = rows_by_name(class_names, source.class_names)
    if rows_fit and model.temporal_patch:
        same_names = bool(class_names) and list(class_names) == source.class_names
        of_images = task is not None and not model_config(source.metadata).temporal_patch
        reason = reason_for_new_head(transfer.head, there[0], here[0], unnamed=of_images and not same_names)
        transfer.new_head, transfer.head = reason, None if reason else transfer.head
    for key, shape in wanted.items():
        transfer.rows.append(_row(transfer, key, shape, model, resolution))
    for key in source.shapes:
        if key not in wanted or not (transfer.same_head or in_backbone(key)):
            transfer.rows.append(Row(key, "dropped", _why_left(source, key, task)))
    transfer.rows.extend(Row(key, "dropped", why) for key, why in source.dropped)
    return transfer


def canonical_names(names: Iterable[str], task: TaskConfig | None) -> dict[str, str]:
    """Return the canonical name of every parameter of a model.

    Raises:
        ConfigError: if the backbone of a task's model has another name, or if another part has a name of the
            backbone's.
    """
    keys: dict[str, str] = {}
    seen: set[str] = set()
    for name in names:
        key = _canonical(name)
        if key in seen or (key == name and in_backbone(name)):
            fix = f"its model has a parameter {name}, which is a name used by the backbone; rename this part"
            raise ConfigError("task", task.name if task else "?", fix)
        keys[name] = key
        seen.add(key)
    if PATCHES not in seen:
        fix = "its model has no attribute `backbone`, which holds the weights that tasks share; name it so"
        raise ConfigError("task", task.name if task else "?", fix)
    return keys


def shares_head(source: WeightSource, task: TaskConfig | None) -> bool:
    """Return whether parameters outside of the backbone have the same meaning in source and task when names match."""
    there = (source.metadata.get("task") or {}).get("name")
    if task is None or there in (None, task.name):
        return True
    known = TASK_SECTIONS.get(str(there), TaskConfig)
    return bool(task.HEAD) and known.HEAD == task.HEAD and bool(source.num_classes)


def _other_rule(source: WeightSource, model: ModelConfig, resolution: tuple[int, int] | None) -> str | None:
    """Return a warning if the model clamps windows by another rule than the weights, and that changes a window here."""
    rule = model_config(source.metadata).window_rule
    if resolution is None or rule == model.window_rule:
        return None
    stages = stage_geometry(model, *resolution)
    for number, stage in enumerate(stages, 1):
        window, shift = fit_window(windows(model)[number - 1], (stage.height, stage.width), rule)
        if (window, shift) != (stage.window, stage.shift):
            return (
                f"WARNING: the weights in {source.path} are of model.window_rule={rule}, which has windows of "
                f"{window[0]}x{window[1]} shifted by {shift[0]}x{shift[1]} on the {stage.height}x{stage.width} map of "
                f"stage {number}; model.window_rule={model.window_rule} has {stage.window[0]}x{stage.window[1]} "
                f"shifted by {stage.shift[0]}x{stage.shift[1]}; set model.window_rule={rule} to keep theirs"
            )
    return None


def _row(
    transfer: Transfer,
    key: str,
    shape: tuple[int, ...],
    model: ModelConfig,
    resolution: tuple[int, int] | None,
) -> Row:
    source = transfer.source
    there = source.shapes.get(key)
    if there is not None and not transfer.same_head and not in_backbone(key):
        return Row(key, "new", f"initial value; {key} in the source is of task={source.metadata['task']['name']}")
    if transfer.new_head and key in source.head:
        return Row(key, "new", f"initial value; {transfer.new_head}")
    place, _, part = key.rpartition(".")
    weights = [shapes.get(f"{place}.weight", ())[1:] for shapes in (source.shapes, transfer._shapes)]
    if part == "bias" and there is not None and not in_backbone(key) and weights[0] != weights[1]:
        return Row(key, "new", "initial value; its weight in the source does not fit")
    rows_fit = key in source.head and there is not None and there[1:] == shape[1:] and source.num_classes
    if rows_fit and (transfer.head is not None or there != shape):
        return _head(transfer, key, shape)
    if there is None and not in_backbone(key):
        return Row(key, "new", "initial value; the source has none")
    if key == POSITION and (maps := _other_map(source, there, shape, model, resolution)):
        before, after = maps
        transfer._make[key] = lambda: _resize_position(source.tensor(key), before, after)
        return Row(key, "resized", f"{before[0]}x{before[1]} to {after[0]}x{after[1]} positions, bicubic")
    if there == shape:
        transfer._kept.add(key)
        spelled = source.renamed.get(key)
        return Row(key, "renamed", f"from {spelled}") if spelled else Row(key, "loaded")
    still = model.temporal_patch and not model_config(source.metadata).temporal_patch
    if still and there is not None and (found := inflated(key, there, shape)):
        make, detail = found
        transfer._make[key] = lambda: make(source.tensor(key))
        return Row(key, "inflated", detail)
    if key == PATCHES:
        transfer._make[key] = lambda: change_channels(source.tensor(key), shape[1])
        return _channels_row(key, there[1], shape[1])
    if not in_backbone(key):
        return Row(key, "new", f"initial value; {there} in the source does not fit {shape}")
    raise _contradiction(source, key, there, shape)


def _head(transfer: Transfer, key: str, shape: tuple[int, ...]) -> Row:
    import torch

    source, classes = transfer.source, transfer.source.num_classes
    if transfer.head is None:
        transfer._make[key] = lambda: torch.zeros(shape)
        return Row(key, "new", f"zeros; the source has {classes} classes, the model {shape[0]}")
    rows = transfer.head.rows
    if len(rows) != shape[0]:
        hint = f"it has {counted(len(rows), 'line')}, and the model {shape[0]} classes; use one line per class"
        raise ConfigError("init.label_map", f"<{counted(len(rows), 'line')}>", hint)
    outside = next((row for row in rows if row is not None and not 0 <= row < classes), None)
    if outside is not None:
        hint = f"names class {outside}, but {source.path} has classes 0 to {classes - 1}"
        raise ConfigError("init.label_map", f"<{counted(len(rows), 'line')}>", hint)

    def make() -> Tensor:
        taken = torch.tensor([number for number, row in enumerate(rows) if row is not None], dtype=torch.long)
        values = torch.zeros(shape)
        values[taken] = source.tensor(key)[[row for row in rows if row is not None]]
        return values

    transfer._make[key] = make
    return Row(key, ROWS_TAKEN if transfer.head.taken else "new", transfer.head.detail(classes))


def _channels_row(key: str, old: int, new: int) -> Row:
    if new > old:
        share = f"scaled by {old}/{new}" if new % old == 0 else "copies share the weight of their channel"
        return Row(key, "inflated", f"{old} input channels repeated in turn to {new}, {share}")
    return Row(key, "averaged", f"{old} input channels summed in turn into {new}; a gray image responds as before")


def _other_map(
    source: WeightSource,
    there: tuple[int, ...],
    shape: tuple[int, ...],
    model: ModelConfig,
    resolution: tuple[int, int] | None,
) -> tuple[tuple[int, int], tuple[int, int]] | None:
    """Return the maps of the position embeddings of source and model; None if they are equal.

    They may differ although the lengths are equal: 16 by 64 tokens are as many as 32 by 32.
    """
    trained = source.metadata.get("data", {}).get("resolution")
    if there == shape and not (trained and resolution):  # they cannot be distinguished
        return None
    before = _position_map(trained, there[1], model, source.path)
    after = _position_map(resolution, shape[1], model, "the model")
    return None if before == after else (before, after)


def _position_map(resolution: Any, length: int, model: ModelConfig, whose: object) -> tuple[int, int]:
    """Return the rows and columns of an absolute position embedding of this length."""
    if resolution:
        rows, columns = (-(-side // model.patch_size) for side in resolution)
        if rows * columns == length:
            return rows, columns
    side = math.isqrt(length)
    if side * side != length:
        hint = f"{length} positions of {whose} do not form a square, and their rows and columns are not recorded"
        raise ConfigError("model.absolute_position", True, hint)
    return side, side


def _resize_position(embedding: Tensor, before: tuple[int, int], after: tuple[int, int]) -> Tensor:
    from swinv2_train.models.layers import position_embedding

    return position_embedding(embedding, before, *after).flatten(1, 2)


def _why_left(source: WeightSource, key: str, task: TaskConfig | None) -> str:
    """Return why a tensor of the source has no counterpart in the model.

    Raises:
        ConfigError: if there is no good reason.
    """
    if key in SIMMIM_ONLY:
        return "of SimMIM pretraining only"
    there = (source.metadata.get("task") or {}).get("name")
    if key in source.head and source.num_classes:
        return "this task has no classes" if task is None or task.classes is None else f"{_ONLY_OF}{there} only"
    if source.format == OWN and not in_backbone(key):
        return f"{_ONLY_OF}{there} only"
    shape = source.shapes[key]
    hint = f"{source.path} holds {key} of shape {shape}, which has no counterpart in the model; use other weights"
    raise ConfigError("init_from", source.path, hint)


def _refuse_incomplete(source: WeightSource, wanted: Mapping[str, tuple[int, ...]]) -> None:
    for key, shape in wanted.items():
        if key not in source.shapes and in_backbone(key):
            hint = f"{source.path} lacks {key}, which is {shape} in the model; it is incomplete, use other weights"
            raise ConfigError("init_from", source.path, hint)


def _contradiction(
    source: WeightSource, key: str, there: tuple[int, ...] | None, shape: tuple[int, ...]
) -> ConfigError:
    hint = f"{key} is {there} in {source.path} and {shape} in the model"
    if key.endswith("relative_position_bias_table"):
        return ConfigError("", key, f"{hint}; leave model.pretrained_window at 0 to use the windows of the source")
    return ConfigError("init_from", source.path, f"{hint}; use weights of the same size")
