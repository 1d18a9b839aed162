"""Configs that cannot be run are rejected with one sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

from swinv2_train.config.checks import check_directory
from swinv2_train.config.compose import compose
from swinv2_train.config.errors import ConfigError
from swinv2_train.config.validate import resolution, validate
from tests.config.quickly import assert_refused, quickly

BASE = ["+experiment=simmim_tiny"]


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["run.name="], ["run.name=''", "must not be empty"]),
        ([f"seed={2**64}"], ["seed=18446744073709551616", "at most 64 bits"]),
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
        (["optim.freeze=backbone"], ["optim.freeze=backbone", "a list of names"]),
        (["optim.freeze={stages:5}"], ["optim.freeze.stages=5", "from 0 to 4"]),
        (["optim.freeze={stage:2}"], ["optim.freeze", "{stages: N}"]),
        (["optim.freeze=[]"], ["optim.freeze", "null freezes nothing"]),
        (["optim.lr_scales={backbone:0}"], ["optim.lr_scales", "backbone must be above 0", "optim.freeze"]),
        (["optim.lr_scales=0.1"], ["optim.lr_scales=0.1", "factors by name"]),
        (["launch.master_port=99999"], ["launch.master_port=99999"]),
        (["engine.zero_stage=4"], ["engine.zero_stage=4"]),
        (["engine.precision=fp8"], ["engine.precision=fp8", "bf16"]),
        (["engine.precision=fp32", "engine.grad_accum_dtype=bf16"], ["engine.grad_accum_dtype=bf16"]),
        (["engine.micro_batch=0"], ["engine.micro_batch=0"]),
        (["checkpoint.keep_last=0"], ["checkpoint.keep_last=0"]),
        (["resume=maybe"], ["resume=maybe", "auto"]),
        (["launch.device=tpu"], ["launch.device=tpu"]),
        (["tracking.wandb=yes"], ["tracking.wandb"]),
        (["tracking.peak_tflops=0"], ["tracking.peak_tflops=0", "TFLOPS of one device"]),
        (["tracking.peak_tflops=inf"], ["tracking.peak_tflops", "finite"]),
    ],
)
def test_rejected_with_field_value_and_fix(overrides: list[str], parts: list[str]) -> None:
    assert_refused(BASE, overrides, parts)


SUPERVISED = ["task=classification", "task.num_classes=10", "optim.epochs=1", "optim.global_batch=24"]


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["task.num_classes=-1"], ["task.num_classes=-1"]),
        (["task.num_classes=1"], ["task.num_classes=1", "multi_label"]),
        (["task.label_smoothing=1"], ["task.label_smoothing=1"]),
        (["task.class_weights=equal"], ["task.class_weights=equal", "balanced"]),
        (["task.class_weights=[1,a]"], ["task.class_weights"]),
        (["task.class_weights=[1,2]"], ["2 numbers for task.num_classes=10"]),
        (["task.num_classes=2", "task.class_weights=[0,0]"], ["not all 0"]),
        (["task.num_classes=2", "task.class_weights=[-1,1]"], ["numbers of at least 0"]),
        (["task.mixup=-0.1"], ["task.mixup=-0.1"]),
        (["task.cutmix=nan"], ["task.cutmix=nan"]),
        (["task.cutmix=inf"], ["task.cutmix=inf"]),
        (["task.mix_prob=1.5"], ["task.mix_prob=1.5"]),
        (["task.mix_switch_prob=-1"], ["task.mix_switch_prob=-1"]),
        (["task.auto_augment=randaug"], ["task.auto_augment=randaug", "rand-m9-mstd0.5-inc1"]),
        (["task.auto_augment=rand-m9-x3"], ["task.auto_augment=rand-m9-x3"]),
        (["task.auto_augment=''"], ["task.auto_augment", "null for none"]),
        (["task.color_jitter=-1"], ["task.color_jitter=-1"]),
        (["model.in_channels=5"], ["task.auto_augment=rand", "task.auto_augment=null task.color_jitter=0"]),
        (["model.in_channels=1", "task.auto_augment=null"], ["task.color_jitter=0.4", "model.in_channels=1"]),
        (["task.erase_prob=2"], ["task.erase_prob=2"]),
        (["task.repeats=0"], ["task.repeats=0"]),
        (["optim.global_batch=25"], ["optim.global_batch=25", "multiple of 2", "use 26", "task.mix_prob=0"]),
        (["task.repeats=5"], ["multiple of 10", "5 times (task.repeats)", "use 30"]),
        (["task.repeats=5", "task.mix_prob=0"], ["multiple of 5", "copies of a sample", "use 25"]),
        (["data.crop_pct=0"], ["data.crop_pct=0"]),
        (["data.crop_pct=1e-9"], ["data.crop_pct=1e-09", "is a share from 0.05 to 1"]),
        (["data.crop_pct=1.2"], ["data.crop_pct=1.2"]),
        (["data.crop_mode=pad"], ["data.crop_mode=pad", "squash"]),
        (["init_from=x", "init.which=oldest"], ["init.which=oldest", "best"]),
        (["init.ema=true"], ["init.ema=true", "init_from"]),
        (["init_from=''"], ["init_from="]),
        (["probe.shards=a"], ["probe.eval_shards"]),
        (["probe.every_steps=5"], ["probe.every_steps=5", "probe.shards"]),
        (["probe.max_samples=1"], ["probe.max_samples=1"]),
        (["probe.knn=-1"], ["probe.knn=-1"]),
        (["probe.shards=a", "probe.eval_shards=b", "probe.knn=0", "probe.linear=false"], ["probe.knn=0"]),
        (["eval.signal_every_steps=-1"], ["eval.signal_every_steps=-1"]),
        (["eval.signal_every_steps=5"], ["eval.signal_every_steps=5", "set data.eval_shards"]),
        (["optim.lr_scale=0"], ["optim.lr_scale=0"]),
        (["optim.lr_scale=inf"], ["optim.lr_scale=inf", "finite"]),
    ],
)
def test_supervised_runs_are_refused_in_the_same_way(overrides: list[str], parts: list[str]) -> None:
    assert_refused(SUPERVISED, overrides, parts)


SEGMENTED = ["task=segmentation", "task.num_classes=10", "optim.epochs=1", "data.resolution=256"]


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["task.num_classes=-1"], ["task.num_classes=-1", "at least 0"]),
        (["task.num_classes=1"], ["task.num_classes=1", "use 2, the second for the rest"]),
        (["task.num_classes=70000"], ["task.num_classes=70000", "at most 65535 classes"]),
        (["task.label=seg"], ["task.label=seg", "such as seg.png"]),
        (["task.label=''"], ["task.label=", "such as seg.png"]),
        (["task.label=a/b.png"], ["task.label=a/b.png"]),
        (["task.label=mask.png", "data.image=mask.png"], ["task.label=mask.png", "data.image"]),
        (["task.ignore_index=-1"], ["task.ignore_index=-1", "from 0 to 65535, or null"]),
        (["task.ignore_index=65536"], ["task.ignore_index=65536"]),
        (["data.label=cls"], ["data.label=cls", "task.label names the member"]),
        (["task.decoder=segformer"], ["task.decoder=segformer", "upernet, fpn, linear"]),
        (["task.channels=0"], ["task.channels=0", "at least 1"]),
        (["task.auxiliary_channels=0"], ["task.auxiliary_channels=0", "at least 1"]),
        (["task.pool_sizes=[]"], ["task.pool_sizes=[]", "such as [1,2,3,6]"]),
        (["task.pool_sizes=[0,1]"], ["task.pool_sizes=[0, 1]", "at least 1"]),
        (["task.dropout=1"], ["task.dropout=1", "from 0 to below 1"]),
        (["task.dropout=10"], ["task.dropout=10", "10% is 0.1"]),
        (["task.auxiliary_weight=-0.4"], ["task.auxiliary_weight=-0.4", "at least 0"]),
        (["task.focal_gamma=-1"], ["task.focal_gamma=-1", "at least 0"]),
        (["task.dice_weight=-1"], ["task.dice_weight=-1", "at least 0"]),
        (["task.dice_weight=inf"], ["task.dice_weight=inf", "finite"]),
        (["task.class_weights=equal"], ["task.class_weights=equal", "balanced"]),
        (["task.class_weights=[1,2]"], ["2 numbers for task.num_classes=10"]),
        (["task.resize=long"], ["task.resize=long", "short, native"]),
        (["task.scale=[0.5]"], ["task.scale=[0.5]", "a pair [low, high]"]),
        (["task.scale=[2,0.5]"], ["task.scale=[2.0, 0.5]", "a pair [low, high]"]),
        (["task.scale=[0,1]"], ["task.scale=[0.0, 1.0]", "above 0"]),
        (["task.max_aspect=0.5"], ["task.max_aspect=0.5", "at least 1"]),
        (["task.max_class_share=75"], ["task.max_class_share=75", "75% is 0.75"]),
        (["task.max_class_share=0"], ["task.max_class_share=0", "use 1 for no limit"]),
        (["model.in_channels=4", "data.mean=dataset", "data.std=dataset"], ["task.photometric=true", "in_channels=4"]),
        (["data.scale=[0,1]"], ["task.photometric=true", "data.scale", "set task.photometric=false"]),
        (["data.augment.transform=mine"], ["data.augment.transform=mine", "label map", "transform=null"]),
        (["task.inference=tiles"], ["task.inference=tiles", "whole, slide"]),
        (["task.overlap=1"], ["task.overlap=1", "from 0 to below 1"]),
        (
            ["task.inference=slide", "engine.zero_stage=3", "data.eval_shards=e.tar"],
            ["task.inference=slide", "engine.zero_stage=3", "task.inference=whole"],
        ),
        (["task.test_scales=[]"], ["task.test_scales=[]", "such as [0.75,1.0,1.25]"]),
        (["task.test_scales=[1,0]"], ["task.test_scales=[1.0, 0.0]", "above 0"]),
    ],
)
def test_segmentation_is_refused_in_the_same_way(overrides: list[str], parts: list[str]) -> None:
    assert_refused(SEGMENTED, overrides, parts)


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["task.num_classes=0", "task.class_weights=balanced"],
        ["task.decoder=linear", "task.auxiliary_weight=0", "task.dropout=0", "task.label=tif"],
        ["model.in_channels=7", "data.mean=dataset", "data.std=dataset", "task.photometric=false"],
        ["task.ignore_index=0", "task.test_scales=[0.5,1.5]", "task.inference=slide", "task.overlap=0"],
        ["data.resolution=[250,333]", "init_from=runs/x", "init.label_map=names"],
    ],
)
def test_segmentation_that_can_be_run_is_not_refused(overrides: list[str]) -> None:
    validate(quickly(SEGMENTED, overrides))


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["task.num_classes=0"],
        ["optim.global_batch=25", "task.mix_prob=0"],
        ["optim.global_batch=25", "task.mixup=0", "task.cutmix=0"],
        ["task.class_weights=balanced"],
        ["task.multi_label=true", "task.num_classes=1"],
        [
            "model.in_channels=5",
            "data.mean=dataset",
            "data.std=dataset",
            "task.auto_augment=null",
            "task.color_jitter=0",
        ],
        ["init_from=runs/x", "init.label_map=map.txt", "init.which=best"],
    ],
)
def test_what_can_be_run_is_not_refused(overrides: list[str]) -> None:
    validate(quickly(SUPERVISED, overrides))


PROBED = ["data.eval_shards=x", "probe.shards=a", "probe.eval_shards=b", "checkpoint.keep_best=1"]
PROBED += ["checkpoint.best_metric=eval/probe/knn_top1", "checkpoint.every_steps=24", "eval.every_steps=12"]


@pytest.mark.parametrize("every", [1, 3, 4, 12])
def test_a_probe_at_every_evaluation_may_choose_the_best(every: int) -> None:
    validate(quickly([*SUPERVISED, *PROBED], [f"probe.every_steps={every}"]))


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        ([], ["probe.every_steps=0", "eval/probe/knn_top1", "set 12, like eval.every_steps"]),
        (["probe.every_steps=5"], ["probe.every_steps=5", "set 12"]),
        (["probe.every_steps=24"], ["probe.every_steps=24"]),
        (["probe.every_steps=8", "checkpoint.every_steps=0"], ["probe.every_steps=8"]),
        (["probe.every_steps=12", "checkpoint.every_steps=30"], ["checkpoint.every_steps=30"]),
        (
            ["probe.every_steps=12", "probe.knn=0"],
            ["knn_top1", "as configured, the probes report eval/probe/linear_top1"],
        ),
        (["probe.every_steps=12", "checkpoint.best_metric=eval/probe/top1"], ["knn_top1 and eval/probe/linear_top1"]),
        (["probe.shards=''", "probe.eval_shards=''"], ["checkpoint.best_metric=eval/probe/knn_top1", "probe.shards"]),
    ],
)
def test_a_best_metric_that_would_be_missing_later_is_refused_at_once(overrides: list[str], parts: list[str]) -> None:
    assert_refused([*SUPERVISED, *PROBED], overrides, parts)


def test_without_keep_best_no_probe_is_asked_for() -> None:
    validate(compose([*SUPERVISED, *PROBED, "checkpoint.keep_best=0", "probe.every_steps=5"]))


POLICIES = ["rand-m9-mstd0.5-inc1", "rand-m9-n3-mstd0.5", "rand-mstd1-tweights", "rand", "rand-m5-p0.3-mmax20-t3aw"]
POLICIES += ["augmix-m5-w4-d2", "augmix", "augmix-b1-a0.5", "v0", "v0r", "original-mstd0.5", "originalr", "3a"]


@pytest.mark.slow
@pytest.mark.parametrize("policy", POLICIES)
def test_timm_builds_every_policy_that_is_let_through(policy: str) -> None:
    import numpy as np
    import torch

    from swinv2_train.data.auto_augment import ColourAugment

    validate(quickly(SUPERVISED, [f"task.auto_augment={policy}"]))
    augment = ColourAugment(policy, 0.0, (32, 32), (0.5,) * 3, "bicubic")
    image = torch.arange(3 * 32 * 32, dtype=torch.int32).to(torch.uint8).view(3, 32, 32)
    seeds = range(3)
    assert any(not torch.equal(augment(image, np.random.default_rng(seed), "x"), image) for seed in seeds)


def test_a_label_map_is_for_classification() -> None:
    with pytest.raises(ConfigError, match=r"init\.label_map=map\.txt: is for classification"):
        validate(compose([*BASE, "init_from=x", "init.label_map=map.txt"]))


def test_resolution_takes_one_side_or_two() -> None:
    assert resolution(compose([*BASE, "data.resolution=160"])) == (160, 160)
    assert resolution(compose([*BASE, "data.resolution=[96,160]"])) == (96, 160)


@pytest.mark.parametrize("given", ["abc", "null", "auto", "inf", "0", "-5", "1.5", "true"])
def test_a_bucket_is_a_number_of_elements(given: str) -> None:
    key = "engine.deepspeed.zero_optimization.reduce_bucket_size"
    with pytest.raises(ConfigError, match=f"{key}=.*: must be a whole number of elements"):
        validate(compose(["+experiment=simmim_giant", f"+{key}={given}"]))
    with pytest.raises(ConfigError, match="zero_optimization=2: must be a section"):
        validate(compose(["+experiment=simmim_giant", "+engine.deepspeed.zero_optimization=2"]))


def test_memory_of_gpus_means_nothing_on_a_cpu() -> None:
    with pytest.raises(ConfigError, match=r"launch.gpu_memory_gib=16.*: has no effect with launch.device=cpu"):
        validate(compose(["+experiment=simmim_giant", "launch.device=cpu", "launch.gpu_memory_gib=16"]))


@pytest.mark.parametrize(
    ("directory", "sentence"),
    [
        ("file", "key=file: is a file; use another directory"),
        ("file/a/b", "key=file/a/b: cannot be made, because file is a file; use another directory"),
        ("x" * 300, f"key={'x' * 60}...: is too long for the file system"),
        ("new/a/b", None),
        (".", None),
    ],
)
def test_a_directory_that_cannot_be_made_is_rejected(
    directory: str, sentence: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    if sentence is None:
        check_directory("key", directory, written=True)
    else:
        with pytest.raises(ConfigError) as caught:
            check_directory("key", directory, written=True)
        assert str(caught.value) == sentence
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_config_is_the_same_without_hydra() -> None:
    """Most of the cases above take this way."""
    overrides = ["optim.lr=1", "data.std=[1,0,1]", "optim.freeze={stages: 5}", "data.eval_shards=''", "optim.epochs=2"]
    overrides += ["tracking.peak_tflops=inf", "model.window=[12,12]", "task.mask_ratio=0.5", "optim.steps=null"]
    assert repr(quickly(BASE, overrides)) == repr(compose([*BASE, *overrides]))
    overrides = ["task.class_weights=[1,2]", "task.auto_augment=null", "init.label_map=map.txt"]
    assert repr(quickly(SUPERVISED, overrides)) == repr(compose([*SUPERVISED, *overrides]))
