"""Every experiment opens with its contract, composes, and has the numbers of its source."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from swinv2_train.config.compose import compose, experiments
from swinv2_train.config.explain import conf_dir
from swinv2_train.config.metrics import best_mode
from swinv2_train.config.model import pretrained_windows, stage_geometry
from swinv2_train.config.plan import make_plan
from swinv2_train.config.schema import Config
from swinv2_train.config.tasks import ClassificationConfig, DetectionConfig, SegmentationConfig, VideoConfig
from swinv2_train.config.validate import resolution, validate
from swinv2_train.pipeline.spec import load_pipeline, split_arguments
from swinv2_train.planner.activations import activations
from swinv2_train.planner.fit import GIB
from swinv2_train.planner.memory import peak

NAMES = [name for name, _ in experiments()]
IN1K, IN22K, EXTENDED = 1_281_167, 14_197_122, 70_000_000
SMALL = {name for name in NAMES if name.endswith("_demo") or name.startswith("own_")} | {"detect_own", "video_own"}
"""Recipes of this project, for a CPU."""
OWN = SMALL | {"segment_tiles"}
"""Recipes of this project."""


def header(name: str) -> dict[str, str]:
    """The parts of an experiment's opening comment by their first words, up to the config."""
    parts: dict[str, str] = {}
    word = ""
    for line in (conf_dir() / "experiment" / f"{name}.yaml").read_text().splitlines():
        if not line.startswith("#"):
            break
        opening = re.match(r"# ([A-Z][a-z]+) {2,}(\S.*)", line)
        if opening:
            word = opening[1]
        parts[word] = f"{parts.get(word, '')} {opening[2] if opening else line[1:].strip()}".strip()
    return parts


@pytest.fixture(scope="module")
def recipes() -> dict[str, Config]:
    """Every experiment, composed and valid."""
    composed = {name: compose([f"+experiment={name}"]) for name in NAMES}
    for config in composed.values():
        validate(config)
    return composed


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_an_experiment_opens_with_its_contract(name: str, recipes: dict[str, Config]) -> None:
    parts = header(name)
    assert {"Recipe", "Expected", "Hardware", "Command", "Chosen"} <= parts.keys()
    if name not in OWN:
        assert {"Official", "Paper"} & parts.keys()
        assert "Derived" in parts
        assert re.search(r"not published|was published|Not reproduced|[Nn]othing", parts["Expected"])
    assert f"swinv2-train +experiment={name}" in parts["Command"]
    config = recipes[name]
    assert config.run.name == name
    if config.optim.steps is None:
        steps = make_plan(config, 1, config.data.expected_samples or 1000).total_steps
        same = header("simmim_base") if "see simmim_base" in parts["Recipe"] else parts
        assert f"{steps:,} steps" in same["Recipe"]
    if config.init_from:
        assert f"starts from {config.init_from}" in parts["Command"]
        stages = {stage.name for stage in load_pipeline("demo", split_arguments([])[1]).stages}
        assert Path(config.init_from).name in {*NAMES, *stages}


@pytest.mark.slow
def test_the_memory_in_a_header_is_that_of_the_planner(recipes: dict[str, Config]) -> None:
    """Of a rank at the peak, on as many GPUs as the header names last, and of an image in the recipe's micro-batch."""
    found = 0
    for name in sorted(set(NAMES) - SMALL):
        text, config = header(name)["Hardware"], recipes[name]
        if config.task.classes == 0:  # the data decides
            classes = int(re.search(r"for (\d+) classes", text)[1])  # type: ignore[index]
            config = replace(config, task=replace(config.task, num_classes=classes))  # type: ignore[call-arg]
        place = text.index("GiB of GPU memory at the peak")
        world = re.findall(r"(\d+|[Oo]ne) (?:A100-40G|GPUs?\b)", text[:place])[-1]
        plan = make_plan(config, int(world) if world.isdigit() else 1, config.data.expected_samples or 1000)
        needed = peak(config, plan)
        saved = activations(config, plan.micro_batch, gpu=True)[-1].saved / plan.micro_batch
        for size, words in (
            (f"{needed.total / GIB:.1f}", "GiB of GPU memory at the peak"),
            (f"{(needed.total - needed.states) / GIB:.1f}", "GiB are activations"),
            (f"{saved / GIB:.2f}", "GiB of saved activations per image"),
        ):
            stated = re.findall(rf"([\d.]+) {words}", text)
            assert stated in ([], [size]), f"{name}: {size} {words}"
            found += len(stated)
    assert found == 2 * len(set(NAMES) - SMALL) - 1  # simmim_huge states the peak alone


@pytest.mark.parametrize("path", sorted(conf_dir().rglob("*.yaml")), ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_lines_are_not_too_long(path: Path) -> None:
    assert [line for line in path.read_text().splitlines() if len(line) > 121] == []


# name: samples, batch, peak, warm-up and last learning rate, warm-up steps, steps, weight decay, clip, drop path, decay
NUMBERS = {
    "in1k_tiny_256": (IN1K, 1024, 1e-3, 1e-6, 1e-5, 25022, 375341, 0.05, 5, 0.2, 1),
    "in1k_small_256": (IN1K, 1024, 1e-3, 1e-6, 1e-5, 25022, 375341, 0.05, 5, 0.3, 1),
    "in1k_base_256": (IN1K, 1024, 1e-3, 1e-6, 1e-5, 25022, 375341, 0.05, 5, 0.5, 1),
    "supervised_base_22k": (IN22K, 4096, 1e-3, 1e-6, 1e-5, 17330, 311948, 0.1, 5, 0.2, 1),
    "supervised_large_22k": (IN22K, 4096, 1e-3, 1e-6, 1e-5, 17330, 311948, 0.1, 5, 0.2, 1),
    "in1k_base_256_22k": (IN1K, 1024, 4e-5, 4e-8, 4e-7, 6255, 37534, 1e-8, 5, 0.2, 1),
    "in1k_base_384_22k": (IN1K, 1024, 4e-5, 4e-8, 4e-7, 6255, 37534, 1e-8, 5, 0.2, 1),
    "in1k_large_256_22k": (IN1K, 1024, 4e-5, 4e-8, 4e-7, 6255, 37534, 1e-8, 5, 0.2, 1),
    "in1k_large_384_22k": (IN1K, 1024, 4e-5, 4e-8, 4e-7, 6255, 37534, 1e-8, 5, 0.2, 1),
    "simmim_finetune_base_224": (IN1K, 2048, 5e-3, 1e-6, 1e-6, 12511, 62556, 0.05, 5, 0.1, 0.75),
    "supervised_giant": (EXTENDED, 9216, 1.4e-3, 5e-7, 0, 20000, 227864, 0.1, 100, 0.3, 0.87),
    "in1k_giant_640": (IN1K, 576, 2.1e-5, 2.1e-8, 0, 4448, 22242, 0.1, 100, 0.5, 1),
}


def test_every_recipe_with_labels_is_listed() -> None:
    assert NUMBERS.keys() | SEGMENTED.keys() | DETECTED.keys() | FILMED.keys() == set(NAMES) - OWN - {
        f"simmim_{size}" for size in ("tiny", "small", "base", "large", "huge", "giant")
    }


@pytest.mark.parametrize("name", NUMBERS)
def test_a_recipe_has_the_numbers_of_its_source(name: str, recipes: dict[str, Config]) -> None:
    config = recipes[name]
    samples, batch, peak, first, last, warmup, steps, decay, clip, drop, layers = NUMBERS[name]
    plan = make_plan(config, 64, samples)
    assert config.data.expected_samples == samples
    assert (plan.global_batch, plan.warmup_steps, plan.total_steps) == (batch, warmup, steps)
    assert (plan.peak_lr, plan.warmup_lr, plan.min_lr) == pytest.approx((peak, first, last))
    optim = config.optim
    assert (optim.weight_decay, optim.clip_norm, optim.schedule) == (decay, clip, "cosine")
    assert (optim.layer_decay, config.model.drop_path) == (layers, drop)
    task = config.task
    assert isinstance(task, ClassificationConfig)
    giant = "giant" in name
    assert (task.mixup, task.cutmix) == ((0, 0) if giant else (0.8, 1.0))
    assert (task.auto_augment, task.erase_prob, task.label_smoothing) == ("rand-m9-mstd0.5-inc1", 0.25, 0.1)
    assert task.num_classes == (21841 if name.startswith("supervised") else 1000)
    assert config.data.augment.scale == [0.08, 1.0]
    assert (config.data.augment.interpolation, config.data.augment.hflip) == ("bicubic", 0.5)
    assert config.data.crop_mode == ("squash" if "384" in name or "640" in name else "center")
    assert config.data.crop_pct == 0.875
    assert (config.checkpoint.best_metric, best_mode(config.checkpoint)) == ("eval/top1", "max")
    assert config.checkpoint.every_steps < steps
    chosen = header(name)["Chosen"]
    assert ("Mixing is drawn per sample (official: per batch)" in chosen) is not giant  # the giant has none
    assert "noise of erasing is clipped" in chosen


# name: crop, batch, peak rate, warm-up steps, steps, clip, drop path, layer decay, windows, windows of the pretraining
ABLATION = (512, 16, 4e-5, 1500, 160_000, 5, 0.3, 0.95, [16, 16, 16, 8], [8, 8, 8, 8])
SYSTEM = (640, 64, 6e-5, 375, 40_000, 5, 0.3, 1, [40, 40, 40, 20], [12, 12, 12, 6])
SEGMENTED = {
    "ade20k_tiny_512": ABLATION,
    "ade20k_small_512": ABLATION,
    "ade20k_base_512": ABLATION,
    "ade20k_base_640": SYSTEM,
    "ade20k_large_640": SYSTEM,
    "ade20k_giant": (640, 32, 4e-5, 750, 80_000, 100, 0.4, 1, [40, 40, 40, 20], [12, 12, 12, 6]),
}


@pytest.mark.parametrize("name", SEGMENTED)
def test_a_recipe_of_segmentation_has_the_numbers_of_its_source(name: str, recipes: dict[str, Config]) -> None:
    config = recipes[name]
    size, batch, peak, warmup, steps, clip, drop, layers, used, trained = SEGMENTED[name]
    plan = make_plan(config, 16, 20_210)
    assert (config.data.expected_samples, resolution(config)) == (20_210, (size, size))
    assert (plan.global_batch, plan.warmup_steps, plan.total_steps) == (batch, warmup, steps)
    assert plan.epochs == pytest.approx(126.7, abs=0.05)
    assert (plan.peak_lr, plan.min_lr) == pytest.approx((peak, 0))
    assert plan.warmup_lr < peak / 900
    optim = config.optim
    assert (optim.weight_decay, optim.clip_norm, optim.schedule, optim.layer_decay) == (0.05, clip, "linear", layers)
    assert config.model.drop_path == drop
    assert [stage.window[0] for stage in stage_geometry(config.model, size, size)] == used
    assert [side[0] for side in pretrained_windows(config.model)] == trained
    task = config.task
    assert isinstance(task, SegmentationConfig)
    assert task == SegmentationConfig(num_classes=150, inference="slide" if size == 640 else "whole")
    assert (task.scale, task.max_class_share, task.auxiliary_weight, task.dropout) == ([0.5, 2.0], 0.75, 0.4, 0.1)
    assert (config.checkpoint.best_metric, best_mode(config.checkpoint)) == ("eval/miou", "max")


COCO, O365 = 118_287, 1_742_289
# name: size, images, batch, peak rate, steps, clip, drop path, rate of the backbone, windows, those of the pretraining
CASCADE = ((800, 1344), COCO, 16, 1e-4, 266_145, 0, 0.2, 1, [16, 16, 16, 8], [8, 8, 8, 8])
HTC = ((1536, 1536), COCO, 64, 4e-4, 66_536, 0, 0.3, 0.1, [32, 32, 32, 16], [12, 12, 12, 6])
DETECTED = {
    "coco_tiny_cascade": CASCADE,
    "coco_small_cascade": CASCADE,
    "coco_base_cascade": (*CASCADE[:6], 0.3, *CASCADE[7:]),
    "coco_base_htc": HTC,
    "coco_large_htc": HTC,
    "coco_giant": ((1536, 1536), COCO, 96, 6e-4, 45_000, 100, 0.4, 1, *HTC[-2:]),
    "o365_giant": ((800, 1024), O365, 96, 1.2e-3, 67_500, 100, 0.4, 1, *HTC[-2:]),
}


@pytest.mark.parametrize("name", DETECTED)
def test_a_recipe_of_detection_has_the_numbers_of_its_source(name: str, recipes: dict[str, Config]) -> None:
    config = recipes[name]
    size, images, batch, peak, steps, clip, drop, backbone, used, trained = DETECTED[name]
    plan = make_plan(config, 16, images)
    assert (config.data.expected_samples, resolution(config)) == (images, size)
    assert (plan.global_batch, plan.warmup_steps, plan.total_steps) == (batch, 500, steps)
    assert (plan.peak_lr, plan.warmup_lr) == pytest.approx((peak, peak / 1000))
    assert [mark / steps for mark in plan.milestones] == pytest.approx([27 / 36, 33 / 36], abs=1e-4)
    optim = config.optim
    assert (optim.weight_decay, optim.clip_norm, optim.schedule, optim.gamma) == (0.05, clip, "multistep", 0.1)
    assert (optim.layer_decay, optim.lr_scales) == (1, {"backbone": backbone} if backbone < 1 else None)
    assert config.model.drop_path == drop
    assert [stage.window[0] for stage in stage_geometry(config.model, *size)] == used
    assert [side[0] for side in pretrained_windows(config.model)] == trained
    task = config.task
    assert isinstance(task, DetectionConfig)
    jittered = {
        "detector": "htc", "global_attention": True, "class_agnostic": True, "box_loss": "smooth_l1", "box_weight": 1,
        "scale": [0.1, 2.0], "score_threshold": 0.001, "soft_nms": True,
    }  # fmt: skip
    on_coco = {"semantic_classes": 183, "copy_paste": 0.5, "test_short": 1100, "test_long": 1833}
    expected = {
        CASCADE[0]: DetectionConfig(num_classes=80, masks=True, scaling="short", crop_sides=[384, 600]),
        HTC[0]: DetectionConfig(num_classes=80, masks=True, **jittered, **on_coco),
        (800, 1024): DetectionConfig(num_classes=365, masks=False, **jittered),
    }[size]
    assert task == expected
    assert (config.checkpoint.best_metric, best_mode(config.checkpoint)) == ("eval/box_ap", "max")


K400 = 240_436
# name: size, frames, stride, batch, peak and first rate, warm-up steps, steps, decay, clip, drop path, windows, windows
# of the pretraining, test
OFFICIAL = (224, 32, 2, 64, 1e-3, 1e-4, 9392, 112_704, 0.02, 0, 0.1, [7, 7, 7, 7], [8, 8, 8, 8], "task.views=4x3")
FILMED = {
    "k400_tiny": OFFICIAL,
    "k400_base": (*OFFICIAL[:4], 3e-4, 3e-5, *OFFICIAL[6:8], 0.05, 0, 0.2, [7, 7, 7, 7], [12, 12, 12, 6], OFFICIAL[-1]),
    "k400_giant_256": (
        256, 16, 4, 80, 3.6e-4, 3.6e-7, 7513, 60_109, 0.1, 100, 0.4, [16, 16, 16, 8], [12, 12, 12, 6], "",
    ),
    "k400_giant_320": (
        320, 16, 4, 64, 5e-5, 5e-8, 3756, 18_784, 0.1, 100, 0.4, [20, 20, 20, 10], [12, 12, 12, 6],
        "data.resolution=384 model.window=[24,24,24,12] task.views=4x5",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FILMED)
def test_a_recipe_of_videos_has_the_numbers_of_its_source(name: str, recipes: dict[str, Config]) -> None:
    config = recipes[name]
    size, frames, stride, batch, peak, first, warmup, steps, decay, clip, drop, used, trained, test = FILMED[name]
    plan = make_plan(config, 16, K400)
    data, optim, task = config.data, config.optim, config.task
    assert (data.expected_samples, resolution(config)) == (K400, (size, size))
    assert (data.frames, data.frame_stride, config.model.temporal_patch) == (frames, stride, 2)
    assert frames * stride == 64
    assert (plan.global_batch, plan.warmup_steps, plan.total_steps) == (batch, warmup, steps)
    assert (plan.peak_lr, plan.warmup_lr, plan.min_lr) == pytest.approx((peak, first, 0))
    assert (optim.weight_decay, optim.clip_norm, optim.schedule, optim.layer_decay) == (decay, clip, "cosine", 1)
    assert (optim.lr_scales, config.model.drop_path) == ({"backbone": 0.1}, drop)
    stages = stage_geometry(config.model, size, size, frames=frames)
    assert [(stage.time, stage.time_window, *stage.window) for stage in stages] == [
        (frames // 2, 8, side, side) for side in used
    ]
    assert [side[0] for side in pretrained_windows(config.model)] == trained
    assert isinstance(task, VideoConfig)
    assert task == VideoConfig(num_classes=400)
    assert (task.dropout, task.mixup, task.label_smoothing, task.auto_augment) == (0.5, 0, 0, None)
    assert (data.augment.scale, data.augment.hflip, data.augment.interpolation) == ([0.08, 1.0], 0.5, "bilinear")
    assert (config.checkpoint.best_metric, best_mode(config.checkpoint)) == ("eval/top1", "max")
    if test:
        command = f"swinv2-eval outputs/{name} /data/k400/val {test}"
        assert command in header(name)["Command"].replace("\\ ", "")
        validate(compose([f"+experiment={name}", *test.split(), "data.crop_pct=1"]))


def test_the_recipe_of_tiles_takes_any_channels(recipes: dict[str, Config]) -> None:
    config = recipes["segment_tiles"]
    assert (config.model.in_channels, config.data.augment.vflip, config.data.mean) == (4, 0.5, "dataset")
    validate(compose(["+experiment=segment_tiles", "model.in_channels=13"]))
    validate(compose(["+experiment=segment_tiles", "model.in_channels=3", "task.photometric=true"]))


@pytest.mark.parametrize(
    ("name", "windows"),
    [
        ("in1k_base_256", [8, 8, 8, 8]),
        ("in1k_base_256_22k", [16, 16, 16, 8]),
        ("in1k_large_384_22k", [24, 24, 24, 12]),
        ("simmim_finetune_base_224", [14, 14, 14, 7]),
        ("supervised_giant", [12, 12, 12, 6]),
        ("in1k_giant_640", [40, 40, 40, 20]),
    ],
)
def test_windows_as_they_are_clamped(name: str, windows: list[int], recipes: dict[str, Config]) -> None:
    config = recipes[name]
    assert [stage.window[0] for stage in stage_geometry(config.model, *resolution(config))] == windows
    trained = [side[0] for side in pretrained_windows(config.model)]
    assert trained == ([12, 12, 12, 6] if config.init_from and name != "supervised_giant" else [0, 0, 0, 0])


def test_window_16_is_one_override() -> None:
    config = compose(["+experiment=in1k_base_256", "model.window=16", "run.name=in1k_base_256_w16"])
    validate(config)
    assert [stage.window[0] for stage in stage_geometry(config.model, 256, 256)] == [16, 16, 16, 8]
    assert config.run.dir == "outputs/in1k_base_256_w16"
