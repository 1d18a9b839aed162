"""Arithmetic of a model, counted like in the official code, without building the model: for one image or clip.

Matrix products and norms are counted. The bias network or the interpolation of a bias table, the softmax, the
normalization of queries and keys, and the additions are not. One multiply-accumulate (MAC) is two FLOPs.
"""

from __future__ import annotations

from swinv2_train.config.checks import clip_frames, resolution
from swinv2_train.config.model import NUM_STAGES, ModelConfig, StageGeometry, mlp_width, patch_pixels, stage_geometry
from swinv2_train.config.schema import Config


def block_macs(config: ModelConfig, stage: StageGeometry) -> int:
    """Return the multiply-accumulates of one block of a stage for one image.

    Attention operates on the map padded to whole windows, the MLP and the norms on the map itself. Like the official
    counter, this omits the extra norm of H and G, a few millionths of the block.
    """
    d, tokens = stage.dim, stage.tokens
    padded = stage.num_windows * stage.window_tokens
    attention = padded * (4 * d * d + 2 * stage.window_tokens * d)
    norms = 4 if config.norm_placement == "sandwich" else 2
    return attention + 2 * tokens * d * mlp_width(config, d) + norms * tokens * d


def merging_macs(stage: StageGeometry) -> int:
    """Return the multiply-accumulates of the patch merging after a stage for one image."""
    merged = stage.time * -(-stage.height // 2) * -(-stage.width // 2)
    return merged * 8 * stage.dim * stage.dim + stage.tokens * stage.dim // 2


def forward_macs(config: ModelConfig, size: tuple[int, int], frames: int = 0) -> int:
    """Return the multiply-accumulates of the backbone's forward pass for one image, exactly like the official counter.

    Args:
        size: (height, width) in pixels.
        frames: of a clip; 0: an image.
    """
    stages = stage_geometry(config, *size, frames)
    patches = stages[0].tokens
    total = patches * config.embed_dim * (config.in_channels * patch_pixels(config) + 1)
    for index, stage in enumerate(stages):
        total += stage.depth * block_macs(config, stage)
        if index < NUM_STAGES - 1:
            total += merging_macs(stage)
    channels = stages[-1].dim
    # The last norm: the official counter divides the patches by 2 per stage, but the map shrinks by 4 per merging.
    return total + channels * patches // 2**NUM_STAGES


def training_flops(config: Config) -> int:
    """Return the FLOPs of training on one image or clip: forward and backward pass, three times the forward pass.

    The second forward pass of checkpointed blocks is not counted, as in the model FLOPs utilization (MFU).
    """
    backbone = forward_macs(config.model, resolution(config), clip_frames(config))
    return 2 * 3 * (backbone + config.task.head_macs(config))
