"""Training samples of a config, as far as a command line needs them. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from swinv2_train.config.errors import ConfigError
from swinv2_train.config.schema import Config

if TYPE_CHECKING:  # a dry run and `--help` do without numpy
    from swinv2_train.data.card import Card
    from swinv2_train.data.shards import ShardSet


@dataclass(frozen=True)
class Samples:
    """Training samples as far as the command line needs them."""

    count: int
    source: str
    """Origin of the count, for display."""
    shards: ShardSet | None
    """The training shards; None without any."""
    held_out: ShardSet | None
    """The held-out shards; None without any."""
    warnings: list[str] = field(default_factory=list)
    """Held-out shards that are trained on."""

    @property
    def card(self) -> Card | None:
        """Dataset card of the shards."""
        return self.shards.card if self.shards else None


def count_samples(config: Config, *, required: bool) -> Samples:
    """Count the training samples, and check that the held-out ones exist.

    Raises:
        ConfigError: if there are no shards, and `required` or no expected number.
        DataError: if the shards cannot be used.
    """
    from swinv2_train.data.configured import open_held_out, open_shards
    from swinv2_train.data.overlap import overlap_warning

    if config.not_packed and not required:
        source = f"the images of {config.images}, which are not packed yet"
        return Samples(config.data.expected_samples or 0, source, None, None)
    if config.images is not None:
        hint = "applies to a single run of swinv2-train; pack it with swinv2-data pack"
        raise ConfigError("images", config.images, f"{hint} {config.images} shards, and set data.shards")
    if config.data.shards:
        shards, held_out = open_shards(config.data, task=config.task)
        shared = overlap_warning("data.eval_shards", held_out, "data.shards", shards) if held_out else []
        return Samples(shards.num_samples, "counted in data.shards", shards, held_out, shared)
    if required or config.data.expected_samples is None:
        require_shards(config)
    held_out = open_held_out(config.data, task=config.task)
    return Samples(config.data.expected_samples, "data.expected_samples; data.shards is not set", None, held_out)


def require_shards(config: Config) -> None:
    """Raise ConfigError if a config names no training shards."""
    if not config.data.shards and config.data.frames:
        hint = "set tar files of videos, such as data.shards='shards/train-*.tar' (swinv2-data pack --video makes them)"
        raise ConfigError("data.shards", "''", hint)
    if not config.data.shards:
        raise ConfigError(
            "data.shards",
            "''",
            "set tar files of images, such as data.shards='shards/train-*.tar' (swinv2-data pack makes them), or the "
            "folder of the images, such as images=my-images",
        )
