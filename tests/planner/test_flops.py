from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from swinv2_train.config.model import NORM_PLACEMENTS, ModelConfig, stage_geometry, variant
from swinv2_train.models import ImageClassifier
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


@pytest.mark.parametrize("placement", NORM_PLACEMENTS)
def test_matrix_products_are_those_that_torch_counts_and_the_rest_are_norms(placement):
    """With bias tables, for torch counts the network of a position bias as well, and the official counter does not."""
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
    )
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        ImageClassifier(config, 10, size).eval()(torch.empty(1, 3, *size))
    stages = stage_geometry(config, *size)
    tokens = [stage.height * stage.width for stage in stages]
    branches = 4 if placement == "sandwich" else 2
    norms = tokens[0] * 8 + 64 * tokens[0] // 16  # after the patches; the last one as the official counter has it
    norms += sum(stage.depth * branches * n * stage.dim for stage, n in zip(stages, tokens, strict=True))
    norms += sum(n * stage.dim // 2 for stage, n in zip(stages[:3], tokens, strict=False))
    assert forward_macs(config, size, 10) == counter.get_total_flops() // 2 + norms


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
