from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from swinv2_train.config.model import NORM_PLACEMENTS, ModelConfig, stage_geometry, variant
from swinv2_train.config.schema import Config, DataConfig
from swinv2_train.config.tasks import ClassificationConfig, SimMIMConfig, TaskConfig
from swinv2_train.models import SwinTransformerV2
from swinv2_train.planner.flops import forward_macs, training_flops

# Gigamacs with a head of 1000 classes, computed with the official counter.
OFFICIAL = {
    ("swinv2_tiny", 256, 8): "5.926",
    ("swinv2_small", 256, 8): "11.515",
    ("swinv2_base", 256, 8): "20.286",
    ("swinv2_tiny", 256, 16): "6.605",
    ("swinv2_small", 256, 16): "12.647",
    ("swinv2_base", 256, 16): "21.796",
    ("swinv2_base", 384, 24): "54.748",
    ("swinv2_large", 256, 16): "47.491",
    ("swinv2_large", 384, 24): "115.417",
    ("swinv2_base", 192, 12): "11.761",
    ("swinv2_large", 192, 12): "25.965",
    ("swinv2_base", 224, 14): "16.323",
    ("swinv2_huge", 192, 12): "85.752",
    ("swinv2_huge", 224, 14): "117.585",
    ("swinv2_huge", 512, 32): "686.537",
    ("swinv2_giant", 192, 12): "370.737",
    ("swinv2_giant", 256, 16): "665.486",
    ("swinv2_giant", 640, 40): "4639.302",
}


@pytest.mark.parametrize(("name", "side", "window"), OFFICIAL)
def test_forward_pass_to_the_digit_of_the_official_counter(name, side, window):
    config = variant(name, window=window)
    macs = forward_macs(config, (side, side)) + 8 * config.embed_dim * 1000
    assert f"{macs / 1e9:.3f}" == OFFICIAL[name, side, window]


@pytest.mark.parametrize(("name", "published"), [("tiny", 88), ("small", 166), ("base", 282), ("large", 604)])
def test_clips_cost_what_video_swin_publishes(name, published):
    """32 frames of 224 pixels, in billions of multiply-accumulates."""
    v1 = {"norm_placement": "pre", "similarity": "dot", "position_bias": "table"}
    config = variant(f"swinv2_{name}", **v1, window=7, temporal_patch=2, temporal_window=8)
    macs = forward_macs(config, (224, 224), 32) + 8 * config.embed_dim * 400
    assert macs / 1e9 == pytest.approx(published, abs=0.6)


def test_the_unpublished_giant_of_one_billion():
    config = ModelConfig(embed_dim=448, depths=[2, 2, 18, 2], num_heads=[14, 28, 56, 112], window=12)
    assert f"{(forward_macs(config, (192, 192)) + 8 * 448 * 1000) / 1e9:.3f}" == "138.272"


@pytest.mark.parametrize("placement", NORM_PLACEMENTS)
def test_matrix_products_are_those_that_torch_counts_and_the_rest_are_norms(placement):
    """With bias tables, for torch counts the network of a position bias as well, and the official counter does not."""
    for clip in ((), (6,)):
        _compare_with_torch(placement, clip)


def _compare_with_torch(placement, clip):
    size = (61, 90)
    config = ModelConfig(
        embed_dim=8,
        depths=[2, 1, 3, 2],
        num_heads=[1, 2, 2, 4],
        window=4,
        attention="reference",
        norm_placement=placement,
        similarity="dot",
        position_bias="table",
        temporal_patch=2 * len(clip),
        temporal_window=2,
    )
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        SwinTransformerV2(config, size).eval()(torch.empty(1, 3, *clip, *size))
    stages = stage_geometry(config, *size, *clip)
    tokens = [stage.tokens for stage in stages]
    branches = 4 if placement == "sandwich" else 2
    norms = tokens[0] * 8 + 64 * tokens[0] // 16  # after the patches; the last one as the official counter has it
    norms += sum(stage.depth * branches * n * stage.dim for stage, n in zip(stages, tokens, strict=True))
    norms += sum(n * stage.dim // 2 for stage, n in zip(stages[:3], tokens, strict=False))
    assert forward_macs(config, size, *clip) == counter.get_total_flops() // 2 + norms


def test_an_image_that_divides_nothing_costs_between_its_neighbors():
    config = variant("swinv2_tiny", window=8)
    below, odd, above = (forward_macs(config, (side, side)) for side in (256, 270, 320))
    assert below < odd < above
    assert forward_macs(config, (256, 128)) < below


@pytest.mark.parametrize("size", [(192, 192), (61, 90)])
@pytest.mark.parametrize("task", [SimMIMConfig(), ClassificationConfig(num_classes=10)], ids=lambda task: task.name)
def test_training_is_three_forward_passes_with_the_head(task, size):
    model = ModelConfig(embed_dim=8, depths=[1, 1, 2, 1], num_heads=[1, 2, 2, 4], window=4, checkpointing=1)
    config = Config(model=model, task=task, data=DataConfig(resolution=list(size)))
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        built = task.implementation().model_of(config, size)
        head = built.decoder[0] if task.name == "simmim" else built.head
        last = stage_geometry(model, *size)[-1]
        head(torch.empty(64, last.height, last.width) if task.name == "simmim" else torch.empty(1, 64))
    assert 2 * task.head_macs(config) == counter.get_total_flops() > 0
    assert training_flops(config) == 6 * forward_macs(model, size) + 3 * counter.get_total_flops()


def test_the_head_of_a_task_that_does_not_count_it_is_left_out():
    config = Config(task=TaskConfig(name="own"))
    assert training_flops(config) == 6 * forward_macs(config.model, (192, 192))
