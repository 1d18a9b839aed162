"""The DeepSpeed config."""

from __future__ import annotations

import pytest

from swinv2_train.config.compose import compose
from swinv2_train.config.errors import ConfigError
from swinv2_train.config.plan import make_plan
from swinv2_train.config.schema import BUCKET_ELEMENTS
from swinv2_train.config.validate import validate
from swinv2_train.engine.deepspeed import deepspeed_config


def settings(*overrides: str) -> dict:
    config = compose(["+experiment=simmim_tiny", "optim.global_batch=64", "engine.micro_batch=4", *overrides])
    return deepspeed_config(config, make_plan(config, 8, 1_000_000))


def test_batches_follow_from_the_plan() -> None:
    told = settings()
    assert told["train_batch_size"] == 64
    assert told["train_micro_batch_size_per_gpu"] == 4
    assert told["gradient_accumulation_steps"] == 2
    assert told["gradient_clipping"] == 5.0
    assert told["zero_optimization"]["stage"] == 1
    assert "optimizer" not in told
    assert "scheduler" not in told


@pytest.mark.slow
def test_precisions() -> None:
    bf16 = settings("engine.precision=bf16", "engine.grad_accum_dtype=fp32")
    assert bf16["bf16"] == {"enabled": True, "check_grad_overflow": True}
    assert bf16["data_types"] == {"grad_accum_dtype": "fp32"}
    fp16 = settings("engine.precision=fp16", "engine.fp16_initial_scale_power=12", "engine.grad_accum_dtype=null")
    assert fp16["fp16"] == {"enabled": True, "loss_scale": 0, "initial_scale_power": 12}
    fp32 = settings("engine.precision=fp32", "engine.grad_accum_dtype=null")
    assert not {"bf16", "fp16", "data_types"} & fp32.keys()


def test_further_keys_are_merged_and_derived_ones_refused() -> None:
    told = settings(
        "+engine.deepspeed.zero_optimization.overlap_comm=true", "+engine.deepspeed.wall_clock_breakdown=true"
    )
    assert told["zero_optimization"] == {"stage": 1, "reduce_bucket_size": BUCKET_ELEMENTS, "overlap_comm": True}
    assert told["wall_clock_breakdown"] is True


@pytest.mark.slow
@pytest.mark.parametrize(
    "override",
    [
        "train_batch_size=3",
        "zero_optimization.stage=3",
        "bf16.enabled=true",
        "gradient_clipping=1",
        "optimizer.type=A",
    ],
)
def test_what_other_fields_set_is_refused(override: str) -> None:
    config = compose(["+experiment=simmim_tiny", f"+engine.deepspeed.{override}"])
    with pytest.raises(ConfigError, match=r"engine\.deepspeed\..* is set by (optim|engine|the optim)"):
        validate(config)
