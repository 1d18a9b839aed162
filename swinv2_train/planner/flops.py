"""Arithmetic of a model, counted as the official code counts it, without building the model.

Counted are the matrix products and the norms; the bias network or the interpolation of a bias table, the softmax, the
normalisation of queries and keys, and the additions are not. One multiply-accumulate (MAC) is two FLOPs.
"""

from __future__ import annotations

from swinv2_train.config.model import (
    NUM_STAGES,
    ModelConfig,
    StageGeometry,
    checkpointed_blocks,
    mlp_width,
    stage_geometry,
    total_stride,
)


def block_macs(config: ModelConfig, stage: StageGeometry) -> int:
    """Multiply-accumulates of one block of a stage for one image.

    Attention works on the map padded to whole windows, the MLP and the norms on the map itself. Like the official
    counter this leaves out the extra norm of H and G, a few millionths of the block.
    """
    d, tokens = stage.dim, stage.height * stage.width
    padded = stage.num_windows * stage.window_tokens
    attention = padded * (4 * d * d + 2 * stage.window_tokens * d)
    norms = 4 if config.norm_placement == "sandwich" else 2
    return attention + 2 * tokens * d * mlp_width(config, d) + norms * tokens * d


def merging_macs(stage: StageGeometry) -> int:
    """Multiply-accumulates of the patch merging after a stage for one image."""
    merged = -(-stage.height // 2) * -(-stage.width // 2)
    return merged * 8 * stage.dim * stage.dim + stage.height * stage.width * stage.dim // 2


def forward_macs(config: ModelConfig, resolution: tuple[int, int], num_classes: int = 0) -> int:
    """Multiply-accumulates of a forward pass for one image, to the digit of the official counter.

    Args:
        resolution: (height, width) in pixels.
        num_classes: width of the linear head; 0 for none.
    """
    stages = stage_geometry(config, *resolution)
    patches = stages[0].height * stages[0].width
    total = patches * config.embed_dim * (config.in_channels * config.patch_size**2 + 1)
    for index, stage in enumerate(stages):
        total += stage.depth * block_macs(config, stage)
        if index < NUM_STAGES - 1:
            total += merging_macs(stage)
    channels = stages[-1].dim
    # The last norm: the official counter divides the patches by 2 per stage where the map shrinks by 4 per merging.
    return total + channels * patches // 2**NUM_STAGES + channels * num_classes


def simmim_decoder_macs(config: ModelConfig, resolution: tuple[int, int]) -> int:
    """Multiply-accumulates of the linear decoder of SimMIM for one image."""
    last = stage_geometry(config, *resolution)[-1]
    return last.height * last.width * last.dim * config.in_channels * total_stride(config) ** 2


def recomputed_macs(config: ModelConfig, resolution: tuple[int, int]) -> int:
    """Multiply-accumulates that activation checkpointing adds to the training on one image."""
    stages = stage_geometry(config, *resolution)
    return sum(
        sum(blocks) * block_macs(config, stage)
        for blocks, stage in zip(checkpointed_blocks(config), stages, strict=True)
    )


def training_flops(
    config: ModelConfig, resolution: tuple[int, int], *, head_macs: int = 0, with_recomputation: bool = False
) -> int:
    """FLOPs of forward and backward pass for one image: three times the forward pass.

    Args:
        head_macs: multiply-accumulates of what follows the backbone, such as `simmim_decoder_macs`.
        with_recomputation: add the second forward pass of checkpointed blocks, making them four times. Leave it out for
            model FLOPs utilisation (MFU), put it in for the load on the hardware.
    """
    macs = 3 * (forward_macs(config, resolution) + head_macs)
    if with_recomputation:
        macs += recomputed_macs(config, resolution)
    return 2 * macs
