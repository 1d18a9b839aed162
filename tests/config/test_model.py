from __future__ import annotations

import itertools
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from swinv2_train.config.errors import ConfigError
from swinv2_train.config.model import (
    VARIANTS,
    ModelConfig,
    attention_pretrained_windows,
    attention_windows,
    checkpointed_blocks,
    count_parameters,
    drop_path_rates,
    fit_window,
    stage_geometry,
    variant,
    windows,
)
from swinv2_train.config.schema import Config, DataConfig
from swinv2_train.config.tasks import SimMIMConfig
from swinv2_train.config.validate_model import validate_model
from swinv2_train.models import ImageClassifier, MaskedImageModel, SwinTransformerV2

# Backbone, with 1000 classes, with 21841 classes; all without the extra norms of H and G.
EXACT = {
    "swinv2_tiny": (27_578_154, 28_347_154, 44_373_883),
    "swinv2_small": (48_959_418, 49_728_418, 65_755_147),
    "swinv2_base": (86_893_816, 87_918_816, 109_280_841),
    "swinv2_large": (195_202_932, 196_739_932, 228_772_549),
    "swinv2_huge": (655_210_922, 658_027_922, 716_737_019),
    "swinv2_giant": (2_997_815_008, 3_001_912_008, 3_087_297_585),
}
EXTRA_NORMS = {"swinv2_huge": 8_448, "swinv2_giant": 28_672}


def count(model):
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("extra_norms", [True, False])
@pytest.mark.parametrize("name", VARIANTS)
def test_parameters_of_the_sizes_of_the_paper(name, extra_norms):
    config = variant(name) if extra_norms else variant(name, extra_norm_period=0)
    for classes, number in zip((0, 1000, 21841), EXACT[name], strict=True):
        expected = number + (EXTRA_NORMS.get(name, 0) if extra_norms else 0)
        assert count_parameters(config, num_classes=classes) == expected
        with torch.device("meta"):
            model = ImageClassifier(config, classes) if classes else SwinTransformerV2(config)
        assert count(model) == expected


def test_the_giant_has_three_billion_parameters():
    assert count_parameters(variant("swinv2_giant"), num_classes=1000) == 3_001_940_680


def simmim_parameters(model, size):
    config = Config(model=model, task=SimMIMConfig(), data=DataConfig(resolution=list(size)))
    return config.task.describe(config).parameters


def test_parameters_of_simmim():
    base = variant("swinv2_base", window=12)
    assert simmim_parameters(base, (192, 192)) == 90_042_744
    odd = variant("swinv2_tiny", in_channels=7, patch_size=3, mlp_ratio=2.7, absolute_position=True)
    with torch.device("meta"):
        assert count(MaskedImageModel(base)) == 90_042_744
        assert count(MaskedImageModel(odd, (50, 31))) == simmim_parameters(odd, (50, 31))


def test_counting_a_position_embedding_needs_a_resolution():
    with pytest.raises(ConfigError, match="needs the resolution"):
        count_parameters(variant("swinv2_tiny", absolute_position=True))


@pytest.mark.parametrize(
    ("side", "window", "expected"),
    [
        (256, 16, [(16, 8), (16, 8), (16, 0), (8, 0)]),
        (192, 12, [(12, 6), (12, 6), (12, 0), (6, 0)]),
        (384, 24, [(24, 12), (24, 12), (24, 0), (12, 0)]),
        (256, 8, [(8, 4), (8, 4), (8, 4), (8, 0)]),
    ],
)
def test_windows_of_square_images_are_the_official_ones(side, window, expected):
    stages = stage_geometry(ModelConfig(window=window), side, side)
    assert [stage.window for stage in stages] == [(w, w) for w, _ in expected]
    assert [stage.shift for stage in stages] == [(s, s) for _, s in expected]


def test_geometry_of_an_image_that_divides_nothing():
    stages = stage_geometry(ModelConfig(window=[[4, 3], 4, 2, 7]), 37, 53)
    assert [(stage.height, stage.width) for stage in stages] == [(10, 14), (5, 7), (3, 4), (2, 2)]
    assert [stage.window for stage in stages] == [(4, 3), (4, 4), (2, 2), (2, 2)]
    assert [stage.padded for stage in stages] == [(12, 15), (8, 8), (4, 4), (2, 2)]
    assert [stage.num_windows for stage in stages] == [15, 4, 4, 1]
    assert [stage.window_tokens for stage in stages] == [12, 16, 4, 4]
    assert fit_window((8, 8), (8, 20)) == ((8, 8), (0, 4))


def test_the_official_rule_is_one_square_window_of_the_shorter_side():
    for window, height, width in itertools.product(range(1, 6), range(1, 12), range(1, 12)):
        side, shift = window, window // 2
        if min(height, width) <= window:
            side, shift = min(height, width), 0
        assert fit_window((window, window), (height, width), "official") == ((side, side), (shift, shift))
        if height == width or min(height, width) > window:
            assert fit_window((window, window), (height, width)) == ((side, side), (shift, shift))


def test_a_time_axis_is_clamped_by_itself_under_both_rules():
    for window, sides, per_axis, official in [
        ((8, 7, 7), (16, 14, 21), ((8, 7, 7), (4, 3, 3)), ((8, 7, 7), (4, 3, 3))),
        ((8, 7, 7), (4, 14, 21), ((4, 7, 7), (0, 3, 3)), ((4, 7, 7), (0, 3, 3))),
        ((8, 7, 7), (16, 5, 21), ((8, 5, 7), (4, 0, 3)), ((8, 5, 5), (4, 0, 0))),
        ((2, 7, 7), (1, 7, 5), ((1, 7, 5), (0, 0, 0)), ((1, 5, 5), (0, 0, 0))),
    ]:
        assert fit_window(window, sides) == per_axis
        assert fit_window(window, sides, "official") == official


@pytest.mark.parametrize(
    ("size", "window", "official", "per_axis"),
    [
        ((256, 512), 8, [((8, 8), (4, 4))] * 3 + [((8, 8), (0, 0))], [((8, 8), (4, 4))] * 3 + [((8, 8), (0, 4))]),
        (
            (128, 256),
            8,
            [((8, 8), (4, 4))] * 2 + [((8, 8), (0, 0)), ((4, 4), (0, 0))],
            [((8, 8), (4, 4))] * 2 + [((8, 8), (0, 4)), ((4, 8), (0, 0))],
        ),
    ],
)
def test_the_rules_differ_where_a_side_of_an_oblong_map_is_not_larger(size, window, official, per_axis):
    for rule, expected in (("official", official), ("per-axis", per_axis)):
        stages = stage_geometry(ModelConfig(window=window, window_rule=rule), *size)
        assert [(stage.window, stage.shift) for stage in stages] == expected
    assert ModelConfig().window_rule == "per-axis"  # of all models before there was a choice


def test_one_value_or_one_per_stage():
    assert windows(ModelConfig(window=7)) == [(7, 7)] * 4
    assert windows(ModelConfig(window=[7, [8, 9], 6, 5])) == [(7, 7), (8, 9), (6, 6), (5, 5)]
    blocks = checkpointed_blocks(ModelConfig(depths=[2, 3, 4, 1], checkpointing=[0, 1, 3, 9]))
    assert blocks == [[False] * 2, [True] * 3, [True, False, False, True], [True]]


def test_stochastic_depth_grows_linearly_from_zero():
    assert drop_path_rates(ModelConfig(depths=[1, 1, 2, 1], drop_path=0.4)) == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"depths": [2, 2, 6]}, "depths"),
        ({"depths": [2, 2, 0, 2]}, "depths"),
        ({"num_heads": [5, 6, 12, 24]}, "num_heads"),
        ({"embed_dim": 0}, "embed_dim"),
        ({"in_channels": 0}, "in_channels"),
        ({"mlp_ratio": 0.001}, "mlp_ratio"),
        ({"window": 0}, "window"),
        ({"window": [8, 8]}, "window"),
        ({"window": [8, 8, 8, [8, 8, 8]]}, "window"),
        ({"window": 7.5}, "window"),
        ({"pretrained_window": -1}, "pretrained_window"),
        ({"drop_path": 1.0}, "drop_path"),
        ({"extra_norm_period": -1}, "extra_norm_period"),
        ({"attention": "flash"}, "attention"),
        ({"norm_placement": "prenorm"}, "norm_placement"),
        ({"similarity": "l2"}, "similarity"),
        ({"position_bias": None}, "position_bias"),
        ({"window_rule": "timm"}, "window_rule"),
        ({"window_rule": "official", "window": [8, 8, 8, [8, 4]]}, "window"),
        ({"checkpointing": True}, "checkpointing"),
        ({"sequential_chunk_mib": 0}, "sequential_chunk_mib"),
        ({"temporal_patch": -1}, "temporal_patch"),
        ({"temporal_patch": 2, "absolute_position": True}, "absolute_position"),
        ({"temporal_window": 0}, "temporal_window"),
        ({"temporal_window": [8, 8]}, "temporal_window"),
        ({"temporal_window": [8, 8, 8, [8, 8]]}, "temporal_window"),
        ({"pretrained_temporal_window": -1}, "pretrained_temporal_window"),
    ],
)
def test_an_impossible_model_names_the_field(fields, field):
    with pytest.raises(ConfigError, match=f"^model.{field}="):
        validate_model(ModelConfig(**fields))


def test_windows_of_clips_have_the_time_first_and_keep_their_training_in_every_clip():
    images = ModelConfig(window=[7, [8, 9], 6, 5], temporal_window=[8, 4, 2, 1])
    assert attention_windows(images) == windows(images) == [(7, 7), (8, 9), (6, 6), (5, 5)]
    clips = replace(images, temporal_patch=2)
    assert attention_windows(clips) == [(8, 7, 7), (4, 8, 9), (2, 6, 6), (1, 5, 5)]
    assert attention_pretrained_windows(clips) == [(8, 0, 0), (4, 0, 0), (2, 0, 0), (1, 0, 0)]
    later = replace(clips, pretrained_window=[7, 7, 7, 3], pretrained_temporal_window=[0, 3, 0, 6])
    assert attention_pretrained_windows(later) == [(8, 7, 7), (3, 7, 7), (2, 7, 7), (6, 3, 3)]
    table = replace(clips, position_bias="table")
    assert attention_pretrained_windows(table, (64, 32)) == [(8, 7, 7), (4, 8, 4), (2, 4, 2), (1, 2, 1)]


def test_a_clip_has_windows_and_padding_in_time():
    config = ModelConfig(temporal_patch=2, temporal_window=[8, 4, 3, 5], window=8)
    stages = stage_geometry(config, 64, 64, 10)
    found = [(stage.time, stage.time_window, stage.time_shift, stage.time_padded) for stage in stages]
    assert found == [(5, 5, 0, 5), (5, 4, 2, 8), (5, 3, 1, 6), (5, 5, 0, 5)]
    assert [stage.tokens for stage in stages] == [5 * 256, 5 * 64, 5 * 16, 5 * 4]
    assert [stage.num_windows for stage in stages] == [4, 2, 2, 1]
    assert [stage.window_tokens for stage in stages] == [5 * 64, 4 * 64, 3 * 16, 5 * 4]
    space = [(stage.height, stage.width, stage.window, stage.shift, stage.padded) for stage in stages]
    for geometry in (stage_geometry(config, 64, 64), stage_geometry(ModelConfig(window=8), 64, 64)):
        assert [(stage.height, stage.width, stage.window, stage.shift, stage.padded) for stage in geometry] == space
        assert [stage.time_padded for stage in geometry] == [1] * 4
    for wrong, patch, hint in ((9, 2, "a multiple of model.temporal_patch=2"), (8, 0, "needs model.temporal_patch")):
        with pytest.raises(ConfigError, match=f"^data.frames={wrong}: .*{hint}"):
            stage_geometry(replace(config, temporal_patch=patch), 64, 64, wrong)


@pytest.mark.parametrize("kind", [{}, {"position_bias": "table"}, {"norm_placement": "sandwich", "similarity": "dot"}])
def test_parameters_of_a_model_of_clips(kind):
    small = {"embed_dim": 16, "depths": [2, 1, 1, 1], "num_heads": [1, 2, 4, 8], "window": 3}
    config = ModelConfig(**small, **kind, temporal_patch=3, temporal_window=[2, 3, 4, 5])
    with torch.device("meta"):
        model = ImageClassifier(config, 7, (32, 64))
    assert count_parameters(config, (32, 64), 7) == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(("name", "millions"), [("tiny", 28.2), ("small", 49.8), ("base", 88.1), ("large", 197.0)])
def test_sizes_of_video_swin(name, millions):
    """Published for Kinetics-400. Those have biases of keys and wider norms of the merging: 0.01 to 0.03 more."""
    v1 = {"norm_placement": "pre", "similarity": "dot", "position_bias": "table"}
    config = variant(f"swinv2_{name}", **v1, window=7, temporal_patch=2, temporal_window=8)
    assert count_parameters(config, (224, 224), 400) / 1e6 == pytest.approx(millions, abs=0.075)


def test_unknown_sizes_and_empty_images_are_refused():
    with pytest.raises(ConfigError, match="use one of swinv2_tiny"):
        variant("swinv2_colossal")
    with pytest.raises(ConfigError, match="at least one pixel"):
        stage_geometry(ModelConfig(), 0, 32)


def test_geometry_and_arithmetic_need_no_torch():
    program = "import sys, swinv2_train.config.model, swinv2_train.planner.flops; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)
