from __future__ import annotations

import pytest

from swinv2_train.config.model import ModelConfig, stage_geometry, variant
from swinv2_train.planner.flops import (
    block_macs,
    forward_macs,
    recomputed_macs,
    simmim_decoder_macs,
    training_flops,
)

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
    macs = forward_macs(variant(name, window=window), (side, side), num_classes=1000)
    assert f"{macs / 1e9:.3f}" == OFFICIAL[name, side, window]


def test_the_unpublished_giant_of_one_billion():
    config = ModelConfig(embed_dim=448, depths=[2, 2, 18, 2], num_heads=[14, 28, 56, 112], window=12)
    assert f"{forward_macs(config, (192, 192), 1000) / 1e9:.3f}" == "138.272"


def test_an_image_that_divides_nothing_costs_between_its_neighbours():
    config = variant("swinv2_tiny", window=8)
    below, odd, above = (forward_macs(config, (side, side)) for side in (256, 270, 320))
    assert below < odd < above
    assert forward_macs(config, (256, 128)) < below


def test_training_is_three_forward_passes_and_four_where_recomputed():
    side = (192, 192)
    config = variant("swinv2_base", window=12)
    forward = forward_macs(config, side)
    assert training_flops(config, side) == 6 * forward
    decoder = simmim_decoder_macs(config, side)
    assert decoder == 6 * 6 * 1024 * 3072
    assert training_flops(config, side, head_macs=decoder) == 6 * (forward + decoder)

    config.checkpointing = [1, 0, 4, 0]
    stages = stage_geometry(config, *side)
    again = 2 * block_macs(config, stages[0]) + 5 * block_macs(config, stages[2])
    assert recomputed_macs(config, side) == again
    assert training_flops(config, side) == 6 * forward
    assert training_flops(config, side, with_recomputation=True) == 6 * forward + 2 * again
