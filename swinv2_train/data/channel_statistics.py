"""Mean and standard deviation that normalize the images of a run. Torch-free, for dry runs."""

from __future__ import annotations

from collections.abc import Sequence

from swinv2_train.config.checks import check_statistics
from swinv2_train.config.errors import ConfigError
from swinv2_train.config.schema import DataConfig
from swinv2_train.config.values import scale_pairs
from swinv2_train.data.card import Card

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_MOST_COLORS = 4
"""Channels of an image in color with alpha."""


def resolve_statistics(config: DataConfig, card: Card | None, channels: int) -> tuple[list[float], list[float]]:
    """Per-channel mean and standard deviation for `normalise`.

    With `data.scale`, which must be numbers, `dataset` is that of the scaled and clipped values.

    Raises ConfigError if `data.mean` or `data.std` does not match the channels, or if the card does not contain them.
    """
    found = _of_card(config, card, channels)
    mean = _resolve("data.mean", config.mean, IMAGENET_MEAN, found and found[0], channels)
    std = _resolve("data.std", config.std, IMAGENET_STD, found and found[1], channels)
    if min(std) <= 0:
        raise ConfigError("data.std", config.std, "a standard deviation must be above 0; is one channel constant?")
    check_statistics("data.mean", mean)
    check_statistics("data.std", std)
    return mean, std


def check_channels(card: Card | None, channels: int) -> None:
    """Check that a model of this many channels reads any of the images on the dataset card.

    Raises:
        ConfigError: if not, with the number of channels that most images have.
    """
    if card is None or not card.channels:
        return
    # Gray, RGB, and alpha are converted; the decoder decides about these.
    readable = set(range(1, _MOST_COLORS + 1)) | {channels} if channels <= _MOST_COLORS else {channels, channels - 1}
    if readable.isdisjoint(card.channels):
        have = card.channels.most_common(1)[0][0]
        count = f"{have} channel{'' if have == 1 else 's'}"
        hint = (
            f"the images in data.shards have {count}: set model.in_channels={have} data.mean=dataset data.std=dataset"
        )
        raise ConfigError("model.in_channels", channels, hint)


def _of_card(config: DataConfig, card: Card | None, channels: int) -> tuple[list[float], list[float]] | None:
    """Return mean and standard deviation of the images on the dataset card; None if they are not needed.

    Raises ConfigError if they are, and the card does not contain them.
    """
    key = next((key for key in ("mean", "std") if getattr(config, key) == "dataset"), None)
    if key is None:
        return None
    if card is None:
        found, why = None, "the shards have no dataset card"
    elif config.scale is None:
        found, why = card.statistics(channels), f"the card knows no {channels}-channel images"
    else:
        stats = card.values_of(channels)
        if partial := card.partial_values(channels):
            hint = f"{partial}: set a list of {channels} numbers"
            raise ConfigError(f"data.{key}", "dataset", hint)
        pairs = scale_pairs(config.scale)
        found = stats.scaled(pairs if len(pairs) == channels else pairs * channels) if stats is not None else None
        why = f"the card has no values of {channels}-channel images with more than 8 bits"
    if found is None:
        hint = f"{why}: pack them with swinv2-data, or set a list of {channels} numbers"
        raise ConfigError(f"data.{key}", "dataset", hint)
    return found


def _resolve(
    key: str, value: object, imagenet: Sequence[float], dataset: list[float] | None, channels: int
) -> list[float]:
    if value == "imagenet":
        if channels != 3:
            raise ConfigError(
                key, value, f"ImageNet has 3 channels, not {channels}: use `dataset` or a list of {channels} numbers"
            )
        return list(imagenet)
    if value == "dataset":
        assert dataset is not None
        return dataset
    if isinstance(value, (list, tuple)) and all(isinstance(number, (int, float)) for number in value):
        if len(value) != channels:
            raise ConfigError(key, value, f"{len(value)} numbers for {channels} channels")
        return [float(number) for number in value]
    raise ConfigError(key, value, f"must be a list of {channels} numbers in [0, 1], `imagenet` or `dataset`")
