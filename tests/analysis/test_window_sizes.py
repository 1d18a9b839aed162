"""Test-time windows that a machine cannot evaluate are refused before it runs out of memory."""

from __future__ import annotations

import pytest

from swinv2_train.analysis.window_sizes import check_windows, host_memory
from swinv2_train.config.errors import ConfigError
from swinv2_train.config.schema import Config
from swinv2_train.config.tasks import SegmentationConfig


def trained(task: SegmentationConfig | None = None, attention: str = "sdpa") -> Config:
    """Windows of 8 at 256 pixels, 3 heads and 96 channels in stage 1."""
    config = Config(task=task) if task else Config()
    config.data.resolution, config.model.window, config.model.attention = 256, 8, attention
    return config


def check(config: Config, window: int, memory: int | None, batch: int = 2) -> None:
    check_windows(config, [8, window], None, batch=batch, element=4, memory=memory)


def test_the_pixels_of_an_image_are_limited() -> None:
    config = trained()
    config.data.max_pixels = 512**2
    check(config, 16, None)
    with pytest.raises(ConfigError, match=r"windows=17: window 17 needs images of 544 x 544 pixels, above .* 262,144"):
        check(config, 17, None)


def test_images_and_attention_must_fit_into_memory() -> None:
    # Stage 4 of 24 heads has the largest bias: a window of 64 x 64 tokens, the whole map.
    needed = 4 * (2 * 3 * 2048**2 + 2 * 4 * 64**2 * 768 + 24 * 64**4)
    check(trained(), 64, needed)
    with pytest.raises(ConfigError, match=r"images of 2048 x 2048 pixels, and batch=2 of them at least 1.7 GiB, but"):
        check(trained(), 64, needed - 1)
    with pytest.raises(ConfigError, match=r"this machine has 0.0 GiB: use smaller windows"):
        check(trained(SegmentationConfig(num_classes=3)), 64, 1)
    check(trained(attention="sequential"), 64, needed // 2)
    check(trained(), 64, None)


def test_a_machine_has_memory() -> None:
    assert host_memory() > 2**28
