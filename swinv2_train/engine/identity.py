"""Check that a run directory belongs to a run. Torch-free, so that a resume with another model is rejected early."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swinv2_train.checkpoint.errors import CheckpointError
from swinv2_train.checkpoint.identity import SHARDS, Difference, Identity, identity, shards_digest
from swinv2_train.checkpoint.layout import MANIFEST, list_checkpoints, read_manifest, step_of
from swinv2_train.config.errors import ConfigError, plain
from swinv2_train.config.model import pretrained_windows, set_temporal_windows
from swinv2_train.config.resume import DATA, GLOBAL_BATCH
from swinv2_train.config.schema import Config

if TYPE_CHECKING:  # a dry run and `--help` do without numpy
    from swinv2_train.data.shards import ShardSet


def run_identity(config: Config, shards: ShardSet, from_data: Sequence[str] = ()) -> Identity:
    """Return the identity of a run, from its complete config and its training shards.

    Args:
        from_data: fields of the task that the shards decided, see `TaskConfig.open_fields`.
    """
    digest = shards_digest([shard.name for shard in shards.shards], shards.shard_sizes)
    names = shards.card.class_names if shards.card and config.task.classes is not None else None
    own = identity(config, digest, [shard.content for shard in shards.shards], names)
    return replace(own, from_data={f"task.{key}": partial(config.task.in_data, key) for key in from_data})


def check_same_run(directory: Path, own: Identity, step: int | None = None) -> None:
    """Refuse to continue a run with another model, other data, or another order of samples.

    Checkpoints of other runs are allowed if at least one belongs to this run; they are skipped when one is loaded.

    Args:
        directory: the run directory.
        step: of the only checkpoint that counts; None: all.

    Raises:
        ConfigError: naming the difference, with both values.
    """
    refused: tuple[Difference, Path] | None = None
    for path, saved in _all_metadata(directory, step):
        found = own.refusal(saved)
        if found is None:
            return
        refused = refused or (found, path)
        if found.key == GLOBAL_BATCH and own.returns_to(saved):  # older checkpoints match, but newer ones would be lost
            break
    if refused is not None:
        found, path = refused
        described = own.from_data.get(found.key)
        if described is not None:  # the command does not set the key, so its name would say nothing
            raise ConfigError(
                SHARDS,
                _readable(own.metadata["order"][SHARDS]),
                f"has {described(found.now)}, and the run in {directory} was started with {described(found.before)}; "
                f"use data such as those of that run, or another run.dir for a new run ({found.key} follows from them)",
            )
        raise ConfigError(found.key, _shown(found, own), _advice(found, path, directory))


def _shown(found: Difference, own: Identity) -> Any:
    return _readable(own.metadata["order"][SHARDS]) if found.key == SHARDS else found.now


def _readable(value: Any) -> Any:
    """Return a recorded value for display; the description of shards has no singular, because it is compared."""
    return re.sub(r"\b1 (sample|shard)s\b", r"1 \1", value) if isinstance(value, str) else value


def _advice(found: Difference, checkpoint: Path, directory: Path) -> str:
    """Return a description of a difference from a checkpoint in a run directory, and the fix."""
    back = "set it back, or use another run.dir for a new run"
    if found.what and not found.option:
        return (
            f"{found.what}, so the labels of the run in {directory} have moved: pack the data again with "
            f"--class-names {checkpoint / MANIFEST}, which keeps the numbering, or use another run.dir with "
            f"init_from={directory}, which matches classes by name"
        )
    was = found.what or f"the run in {directory} was started with {_readable(plain(found.before))}"
    where = f" since the run in {directory} was started" if found.what else ""
    what = {DATA: "these data", GLOBAL_BATCH: "this batch"}.get(found.option or "")
    return f"{was}{where}; {back}{f', or resume.allow=[{found.option}] to continue with {what}' if what else ''}"


def saved_metadata(directory: Path, config: Config, step: int | None = None) -> dict[str, Any] | None:
    """Return the metadata in the newest checkpoint of a run; None if it has none.

    It is that of the newest readable manifest, among those of this run if there are any.

    Args:
        directory: the run directory.
        config: may leave pretrained windows of the model at 0, in some stages or all, and fields of the task open,
            which are then not compared.
        step: of the only checkpoint that counts; None: all.
    """
    found = [saved for _, saved in _all_metadata(directory, step)]
    own = identity(config)
    for key in config.task.open_fields():
        del own.metadata["task"][key]
    if not all(map(all, pretrained_windows(config.model))):
        del own.metadata["model"]["pretrained_window"]
    if not all(set_temporal_windows(config.model)):
        own.metadata["model"].pop("pretrained_temporal_window", None)
    return next((saved for saved in found if own.refusal(saved) is None), found[0] if found else None)


def _all_metadata(directory: Path, step: int | None) -> Iterator[tuple[Path, dict[str, Any]]]:
    for path in list_checkpoints(directory / "checkpoints"):
        if step not in (None, step_of(path)):
            continue
        try:
            yield path, read_manifest(path).metadata
        except CheckpointError:
            continue


def class_warnings(saved: dict[str, Any] | None, own: Identity) -> list[str]:
    """Return a warning if only one of checkpoint and data has class names, so that they cannot be compared.

    Args:
        saved: metadata of the checkpoint.
    """
    before = (saved or {}).get("classes")
    if saved is None or bool(before) == bool(own.class_names):
        return []
    which, other = ("the checkpoint", "data.shards") if before else ("data.shards", "the checkpoint")
    return [f"{which} names its classes and {other} does not: their numbering cannot be compared"]


def refuse_used(config: Config) -> None:
    """Refuse to start in the directory of a run if `resume.mode` is never. Raises ConfigError."""
    directory = Path(config.run.dir)
    if config.resume.mode == "never" and is_used(directory):
        raise ConfigError(
            "resume",
            "never",
            f"the directory {directory} already contains a run; use another run.dir, or resume=auto to continue it",
        )


def is_used(directory: Path) -> bool:
    """Return whether a run has left files in a directory."""
    left = any((directory / name).exists() for name in ("resolved.yaml", "metrics.jsonl"))
    return left or bool(list_checkpoints(directory / "checkpoints"))
