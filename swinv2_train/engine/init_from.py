"""Start a run from the weights of another run, or of a file.

Every rank reads only the fp32 weights that it owns; the optimizer starts from scratch.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from swinv2_train.checkpoint.layout import KIND_OF
from swinv2_train.checkpoint.survey import is_checkpoint
from swinv2_train.checkpoint.verify import damage
from swinv2_train.config.checks import resolution
from swinv2_train.config.schema import Config
from swinv2_train.engine.deepspeed import Engine
from swinv2_train.engine.fill_in import read_map
from swinv2_train.interop.load import meta_model, start_note
from swinv2_train.interop.source import open_source
from swinv2_train.interop.transfer import Transfer, plan_transfer, shares_head
from swinv2_train.launch.failures import together
from swinv2_train.launch.ranks import Ranks
from swinv2_train.launch.status import write_text
from swinv2_train.models.state import state_shapes

REPORT = "init_from.txt"
"""File in the run directory: every tensor and what happened to it."""


def start_from(config: Config, engine: Engine, ranks: Ranks, class_names: Sequence[str] | None = None) -> list[str]:
    """Load the weights of `config.init_from` into the engine. A collective.

    Args:
        class_names: those of the run, one for every class; None without names.

    Returns:
        Lines for the log. The complete list is in `REPORT` in the run directory.

    Raises:
        ConfigError, CheckpointError, DataError: on the rank that found an error; MainRankError on the others.
    """
    path, passed_over = _whole_source(config, ranks)

    def load() -> Transfer:
        with open_source(path, ema=config.init.ema) as source:
            source.notes = [*passed_over, *source.notes]
            transfer = plan_transfer(
                source,
                state_shapes(engine.module),
                config.model,
                read_map(config, source, class_names),
                resolution=resolution(config),
                class_names=class_names,
                task=config.task,
            )
            source.notes += _warnings(config, transfer, class_names)
            _fill(engine, transfer)
            if ranks.is_main:
                source.notes += start_note(source, config.model, resolution(config))
        return transfer

    transfer = together(ranks, load)
    engine.publish()
    if ranks.is_main:
        write_text(Path(config.run.dir) / REPORT, transfer.table())
    windows = f"its position bias uses the windows it was trained with: {config.model.pretrained_window}"
    return [*transfer.lines(), windows, f"every tensor and what happened to it: {Path(config.run.dir) / REPORT}"]


def preview(config: Config, class_names: Sequence[str] | None = None) -> list[str]:
    """Return what `start_from` would do with a complete config, in lines for display; needs no engine and no memory.

    Raises:
        ConfigError, CheckpointError, DataError: like `start_from`, except for errors that only hashes reveal.
    """
    size = resolution(config)
    with open_source(config.init_from or "", which=config.init.which, ema=config.init.ema) as source:
        shapes = state_shapes(meta_model(config, size))
        source.notes += start_note(source, config.model, size)
        mapped = read_map(config, source, class_names)
        plan = plan_transfer(
            source, shapes, config.model, mapped, resolution=size, class_names=class_names, task=config.task
        )
        return [*plan.lines(), *_warnings(config, plan, class_names)]


def _warnings(config: Config, transfer: Transfer, class_names: Sequence[str] | None) -> list[str]:
    """Return a warning if the rows of the head are matched by number although one side names its classes."""
    source = transfer.source
    taken = shares_head(source, config.task) and source.num_classes and source.num_classes == config.task.classes
    if (
        not taken
        or transfer.new_head
        or config.init.label_map is not None
        or bool(class_names) == bool(source.class_names)
    ):
        return []
    named, other = ("data.shards", source.path) if class_names else (source.path, "data.shards")
    return [
        f"warning: {named} names its classes and {other} does not: row n of the head is used for class n, unchecked "
        "(init.label_map=numbers if that is right)"
    ]


@torch.no_grad()
def _fill(engine: Engine, transfer: Transfer) -> None:
    for piece in engine.fragments_to_load():
        values = transfer.elements(piece.name, piece.start, piece.start + piece.weight.numel())
        if values is not None:
            piece.weight.copy_(values)
        if piece.ema is not None:
            piece.ema.copy_(piece.weight)


def _whole_source(config: Config, ranks: Ranks) -> tuple[Path, list[str]]:
    """Return the selected checkpoint or file, verified by all ranks together, and lines for skipped checkpoints.

    One rank chooses for all: a run that is still training may save another checkpoint in the meantime.
    """
    skipped: dict[str, str] = {}

    def find() -> tuple[Path, list[str]] | None:
        if not ranks.is_main:
            return None
        init = config.init
        with open_source(config.init_from or "", which=init.which, ema=init.ema, skip=skipped) as source:
            return source.path, source.notes

    while True:
        path, notes = ranks.broadcast(together(ranks, find))
        if not is_checkpoint(path):
            return path, []  # the notes on a file are repeated when it is opened
        reason = damage(path, ranks, KIND_OF["ema" if config.init.ema else "weight"])
        if reason is None:
            return path, notes
        skipped[path.name] = reason
