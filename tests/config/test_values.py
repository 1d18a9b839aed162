"""Settings for images whose values are not intensities of 8 or 16 bits."""

from __future__ import annotations

from typing import Any

import pytest

from swinv2_train.config.errors import ConfigError
from swinv2_train.config.schema import Config, DataConfig
from swinv2_train.config.tasks import TASK_SECTIONS
from swinv2_train.config.validate import validate_data
from swinv2_train.config.values import percentiles


def config(channels: int = 2, **data: Any) -> Config:
    made = Config(task=TASK_SECTIONS["simmim"](), data=DataConfig(**{"mean": [0.5] * channels, **data}))
    made.data.std = made.data.mean if made.data.mean != "imagenet" else "imagenet"
    made.model.in_channels = channels
    return made


@pytest.mark.parametrize(
    "data",
    [
        {"scale": [0, 1]},
        {"scale": [-1e6, 3.5], "nodata": -9999, "fill": 0},
        {"scale": [[0, 1], [2, 3]], "nodata": [0, -1.5], "fill": [1, 2]},
        {"scale": "p1-p99", "mean": "dataset"},
        {"scale": "p0.5-p100"},
        {"scale": [0, 255], "mean": "imagenet", "channels": 3},
    ],
)
def test_good_values_pass(data: dict[str, Any]) -> None:
    validate_data(config(**data))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"nodata": 0}, r"data\.nodata=0: needs data\.scale"),
        ({"fill": 3}, r"data\.fill=3: needs data\.scale"),
        ({"scale": []}, r"data\.scale=\[\]: must be null, \[low,high\]"),
        ({"scale": 5}, "must be null"),
        ({"scale": True}, "must be null"),
        ({"scale": [0]}, "must be null"),
        ({"scale": [0, "1"]}, "must be null"),
        ({"scale": [0, float("nan")]}, "must be null"),
        ({"scale": [[0, 1], 2]}, "must be null"),
        ({"scale": [1, 1]}, r"in \[1, 1\], the first number must be below the second"),
        ({"scale": [[0, 1], [2, 1]]}, r"in \[2, 1\], the first"),
        ({"scale": [[0, 1]] * 3}, r"has 3 pairs; set one for all channels, or one per channel, model\.in_channels=2"),
        ({"scale": "minmax"}, r"data\.scale=minmax: must be null.* from p0 to p100"),
        ({"scale": "p99-p1"}, "from p0 to p100"),
        ({"scale": "p1-p101"}, "from p0 to p100"),
        ({"scale": [0, 1], "nodata": "x"}, "must be null, a number, or one number per channel"),
        ({"scale": [0, 1], "nodata": [1, 2, 3]}, "one number per channel, model.in_channels=2"),
        ({"scale": [0, 1], "fill": "zero"}, "must be mean, a number, or one number per channel"),
        *(({"label": text}, r"data\.label=.*must be a member such as label\.cls") for text in ("json:", ":x", ".", "")),
    ],
)
def test_wrong_values_are_rejected_with_a_remedy(data: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        validate_data(config(**data))


def test_color_augmentation_is_for_3_channels_of_8_bits() -> None:
    for channels, scale, message in (
        (2, None, r"task\.color_jitter=0\.4: requires images of 3 channels, but model\.in_channels=2: set"),
        (3, [0, 1], r"requires images of 8 bits, but data\.scale makes them float32: set task\.auto_augment=null"),
    ):
        made = config(channels, scale=scale)
        made.task = TASK_SECTIONS["classification"](num_classes=2, auto_augment=None)
        made.optim.global_batch = 8
        with pytest.raises(ConfigError, match=message):
            made.task.validate(made)
        made.task.color_jitter = 0.0
        made.task.validate(made)


def test_percentiles_are_two_numbers() -> None:
    assert percentiles("p0.5-p99") == (0.5, 99.0)
    assert percentiles([0, 1]) is percentiles(None) is percentiles("p1") is None
