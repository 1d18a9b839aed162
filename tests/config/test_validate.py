"""What cannot be run is refused, in one sentence."""

from __future__ import annotations

import pytest

from swinv2_train.config.compose import compose
from swinv2_train.config.errors import ConfigError
from swinv2_train.config.validate import resolution, validate

BASE = ["+experiment=simmim_tiny"]


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["model.window=0"], ["model.window=0"]),
        (["model.window=[12,12]"], ["model.window", "one per stage"]),
        (["model.num_heads=[5,6,12,24]"], ["5 heads", "96 channels"]),
        (["model.attention=flash"], ["model.attention=flash", "sequential"]),
        (["model.checkpointing=-1"], ["model.checkpointing=-1"]),
        (["model.drop_path=1.0"], ["model.drop_path=1.0"]),
        (["model.depths=[2,2,2]"], ["model.depths"]),
        (["data.resolution=0"], ["data.resolution=0"]),
        (["data.resolution=[192,192,192]"], ["data.resolution"]),
        (["data.resolution=32"], ["single mask patch"]),
        (["task.mask_patch_size=30"], ["task.mask_patch_size=30", "model.patch_size=4"]),
        (["task.mask_ratio=1.2"], ["task.mask_ratio=1.2"]),
        (["task.norm_target_window=46"], ["task.norm_target_window=46", "odd"]),
        (["model.in_channels=5"], ["data.mean=imagenet", "model.in_channels=5"]),
        (["data.mean=[0.5]"], ["data.mean", "one number per channel"]),
        (["data.std=[1,0,1]"], ["data.std", "above 0"]),
        (["data.augment.scale=[0.5,2]"], ["data.augment.scale"]),
        (["optim.steps=10"], ["optim.steps=10", "both"]),
        (["optim.epochs=null"], ["neither"]),
        (["optim.warmup_steps=3"], ["optim.warmup_steps=3", "either"]),
        (["optim.schedule=poly"], ["optim.schedule=poly"]),
        (["optim.milestones=[]"], ["optim.milestones"]),
        (["optim.lr=0"], ["optim.lr=0"]),
        (["data.std=[a,b,c]"], ["data.std", "needs numbers"]),
        (["data.expected_samples=0"], ["data.expected_samples=0"]),
        (["task.norm_target_window=1"], ["task.norm_target_window=1"]),
        (["optim.warmup_epochs=-5"], ["optim.warmup_epochs=-5"]),
        (["optim.epochs=0"], ["optim.epochs=0"]),
        (["optim.lr=nan"], ["optim.lr=nan"]),
        (["launch.master_port=99999"], ["launch.master_port=99999"]),
        (["engine.zero_stage=4"], ["engine.zero_stage=4"]),
        (["engine.precision=fp8"], ["engine.precision=fp8", "bf16"]),
        (["engine.precision=fp32", "engine.grad_accum_dtype=bf16"], ["engine.grad_accum_dtype=bf16"]),
        (["engine.micro_batch=0"], ["engine.micro_batch=0"]),
        (["checkpoint.keep_last=0"], ["checkpoint.keep_last=0"]),
        (["resume=maybe"], ["resume=maybe", "auto"]),
        (["launch.device=tpu"], ["launch.device=tpu"]),
        (["tracking.wandb=yes"], ["tracking.wandb"]),
    ],
)
def test_refused_with_field_value_and_mend(overrides: list[str], parts: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        validate(compose([*BASE, *overrides]))
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


def test_resolution_takes_one_side_or_two() -> None:
    assert resolution(compose([*BASE, "data.resolution=160"])) == (160, 160)
    assert resolution(compose([*BASE, "data.resolution=[96,160]"])) == (96, 160)
