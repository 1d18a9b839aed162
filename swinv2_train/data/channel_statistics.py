"""Mean and standard deviation that normalize the images of a run. Torch-free, for dry runs."""

from __future__ import annotations

from collections.abc import Sequence

from swinv2_train.config.checks import check_statistics
from swinv2_train.config.errors import ConfigError
from swinv2_train.config.schema import DataConfig
from swinv2_train.data.card import Card

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def resolve_statistics(config: DataConfig, card: Card | None, channels: int) -> tuple[list[float], list[float]]:
    """Per-channel mean and standard deviation for `normalise`.

    Raises ConfigError if `data.mean` or `data.std` does not match the channels, or if the card does not contain them.
    """
    mean = _resolve("data.mean", config.mean, IMAGENET_MEAN, 0, card, channels)
    std = _resolve("data.std", config.std, IMAGENET_STD, 1, card, channels)
    if min(std) <= 0:
        raise ConfigError("data.std", config.std, "a standard deviation must be above 0; is one channel constant?")
    check_statistics("data.mean", mean)
    check_statistics("data.std", std)
    return mean, std


def _resolve(
    key: str, value: object, imagenet: Sequence[float], which: int, card: Card | None, channels: int
) -> list[float]:
    if value == "imagenet":
        if channels != 3:
            raise ConfigError(
                key, value, f"ImageNet has 3 channels, not {channels}: use `dataset` or a list of {channels} numbers"
            )
        return list(imagenet)
    if value == "dataset":
        statistics = card.statistics(channels) if card is not None else None
        if statistics is None:
            why = "the shards have no dataset card" if card is None else f"the card knows no {channels}-channel images"
            raise ConfigError(key, value, f"{why}: pack them with swinv2-data, or set a list of {channels} numbers")
        return statistics[which]
    if isinstance(value, (list, tuple)) and all(isinstance(number, (int, float)) for number in value):
        if len(value) != channels:
            raise ConfigError(key, value, f"{len(value)} numbers for {channels} channels")
        return [float(number) for number in value]
    raise ConfigError(key, value, f"must be a list of {channels} numbers in [0, 1], `imagenet` or `dataset`")
