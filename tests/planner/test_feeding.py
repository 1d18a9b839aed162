"""The demand of a GPU for images, from FLOPs and peak."""

from __future__ import annotations

import pytest

from swinv2_train.config.compose import compose
from swinv2_train.planner.feeding import GPUS, MODELS, UTILIZATION, images_per_second
from swinv2_train.planner.flops import training_flops


@pytest.mark.slow
def test_it_is_the_utilized_peak_over_the_flops_of_an_image() -> None:
    for model in ("swinv2_tiny", "swinv2_large"):
        config = compose([f"model={model}", "task=simmim", "data.resolution=192"])
        config.model.window = 8
        assert images_per_second(model, 192, "A100") * training_flops(config) == pytest.approx(UTILIZATION * 312e12)
        assert images_per_second(model, 192, "H100") * training_flops(config) == pytest.approx(UTILIZATION * 989e12)


def test_every_model_and_gpu_has_a_number_that_falls_with_size() -> None:
    for gpu in GPUS:
        rates = [images_per_second(model, 192, gpu) for model in MODELS]
        assert rates == sorted(rates, reverse=True)
        assert images_per_second("swinv2_base", 192, gpu, 7) == images_per_second("swinv2_base", 192, gpu, 8) < rates[2]
        assert images_per_second("swinv2_base", 384, gpu) < rates[2] / 3  # small images are padded more
