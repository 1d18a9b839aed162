"""Mean and standard deviation that normalize the images of a run. Torch-free, for dry runs."""

from __future__ import annotations

from collections.abc import Sequence

from swinv2_train.config.checks import check_statistics
from swinv2_train.config.errors import ConfigError
from swinv2_train.config.schema import Config, DataConfig
from swinv2_train.config.values import scale_pairs
from swinv2_train.data.card import Card
from swinv2_train.text import counted

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_CONVERTED = {1: {3}, 3: {1}}
"""Numbers of channels that gray and color images are converted to."""
_COLOR_AND_ALPHA = 4


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
    """Check that a model of this many channels reads any of the training images.

    Raises:
        ConfigError: if not, with the number of channels that most images have.
    """
    have = unreadable_channels(card, channels)
    if have is not None:
        fix = f"set model.in_channels={have} data.mean=dataset data.std=dataset"
        hint = f"the images of data.shards have {counted(have, 'channel')}: {fix}"
        raise ConfigError("model.in_channels", channels, hint)


def check_channels_of_model(card: Card | None, channels: int, key: str, shards: object) -> None:
    """Check that a model for this many channels reads any of the images on the card of other shards.

    Args:
        key: the option that names them, for the message.

    Raises:
        ConfigError: if not, with the number of channels that most images have.
    """
    have = unreadable_channels(card, channels)
    if have is not None:
        hint = (
            f"its images have {counted(have, 'channel')}, and the model reads {channels}: use shards whose images "
            f"have {channels}, or a model for {have}"
        )
        raise ConfigError(key, shards, hint)


def check_held_out_channels(config: Config, card: Card | None) -> None:
    """Check the images of `data.eval_shards`, see `check_channels_of_model`.

    Args:
        card: of the held-out shards; None: without one, or without such shards.
    """
    if config.data.image is None:  # the card describes the first image of each sample
        check_channels_of_model(card, config.model.in_channels, "data.eval_shards", config.data.eval_shards)


def unreadable_channels(card: Card | None, channels: int) -> int | None:
    """Return the number of channels that most images have, if none is read with `channels`; else None.

    A card without the numbers of channels, as of stored values in an unknown range, shows nothing.
    """
    if card is None or not card.channels or 0 in card.channels:
        return None
    readable: set[int] = set()
    for have in card.channels:
        readable |= {have} | _CONVERTED.get(have, set())
        if card.alpha or not card.alpha_counted:
            readable.add(have + 1)
            if have == _COLOR_AND_ALPHA:  # a card of an earlier version may count alpha as a channel
                readable |= {3} | _CONVERTED[3]
    return None if channels in readable else card.channels.most_common(1)[0][0]


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
