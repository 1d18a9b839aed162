"""The numbers that follow from a config: batches that add up, epochs converted once, rates scaled."""

from __future__ import annotations

import pytest

from swinv2_train.config.compose import compose
from swinv2_train.config.errors import ConfigError
from swinv2_train.config.plan import make_plan, split_batch
from tests.config.quickly import quickly


def test_the_giant_recipe_has_the_numbers_of_the_paper() -> None:
    config = compose(["+experiment=simmim_giant"])
    plan = make_plan(config, 64, config.data.expected_samples)
    assert plan.total_steps == 151_909  # 20 epochs of 70 million images in batches of 9216
    assert plan.warmup_steps == 30_000
    assert plan.peak_lr == pytest.approx(1.4e-3)
    assert config.optim.clip_norm == 100
    assert config.optim.weight_decay == pytest.approx(0.1)


def test_the_base_recipe_has_the_official_numbers() -> None:
    config = compose(["+experiment=simmim_base"])
    plan = make_plan(config, 16, config.data.expected_samples)
    assert plan.peak_lr == pytest.approx(4e-4)  # 1e-4 per 512 at a batch of 2048
    assert plan.warmup_lr == pytest.approx(2e-6)
    assert plan.milestones == (int(700 * 1_281_167 / 2048),)
    assert config.task.norm_target_window == 47
    assert config.model.drop_path == pytest.approx(0.1)


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 6, 8, 12])
@pytest.mark.parametrize("most", [None, 1, 2, 5, 7, 100])
def test_micro_batches_add_up_to_the_global_batch(world_size: int, most: int | None) -> None:
    config = quickly(["optim.global_batch=24"], [f"engine.micro_batch={'null' if most is None else most}"])
    micro, accumulation = split_batch(config, world_size)
    assert micro * accumulation * world_size == 24
    assert most is None or micro <= most


def test_a_batch_that_does_not_divide_names_the_nearest_ones() -> None:
    with pytest.raises(ConfigError, match=r"optim.global_batch=32: does not divide among 3 ranks; use 30 or 33"):
        split_batch(compose(["optim.global_batch=32"]), 3)


def test_a_share_of_the_rate_is_a_share_of_all_its_ends() -> None:
    recipe = ["+experiment=in1k_base_256"]
    whole, part = (make_plan(compose([*recipe, *more]), 1, 1_281_167) for more in ([], ["optim.lr_scale=0.25"]))
    assert (whole.peak_lr, whole.warmup_lr, whole.min_lr) == pytest.approx((1e-3, 1e-6, 1e-5))
    assert (part.peak_lr, part.warmup_lr, part.min_lr) == pytest.approx((2.5e-4, 2.5e-7, 2.5e-6))


def test_a_run_without_a_step_is_refused() -> None:
    with pytest.raises(ConfigError, match="less than one step"):
        make_plan(compose(["optim.epochs=1", "optim.global_batch=64"]), 1, 10)


def test_a_warm_up_longer_than_the_run_is_refused() -> None:
    with pytest.raises(ConfigError, match="warm-up of 20 steps"):
        make_plan(compose(["optim.steps=10", "optim.warmup_steps=20"]), 1, 1000)
