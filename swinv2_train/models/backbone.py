"""Swin Transformer V2 (arXiv 2111.09883), with the parameters of the official code under the official names.

Works on images of any size and any number of channels: maps are padded to whole windows, and windows that exceed a map
are clamped to it by one of two rules. At sizes that the official code accepts, `window_rule="official"` reproduces its
results; `window_rule="per-axis"` does so if every map is square, or larger than its window along both sides.

With `temporal_patch`, it works on clips the same way, with windows in space and time; the time is not merged between
stages (as in Video Swin, arXiv 2106.13230).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from swinv2_train.config.model import (
    NUM_STAGES,
    ModelConfig,
    attention_backends,
    attention_pretrained_windows,
    attention_windows,
    checkpointed_blocks,
    drop_path_rates,
    extra_norms,
    mlp_width,
    position_map,
)
from swinv2_train.config.validate_model import validate_model
from swinv2_train.models.attention.window_attention import WindowAttention
from swinv2_train.models.block import BlockWindow, SwinBlock, SwinStage
from swinv2_train.models.drop_path import branch_scales
from swinv2_train.models.init import draw_normal, init_weights
from swinv2_train.models.layers import InputError, LayerNorm, PatchEmbed, PatchMerging, position_embedding


class SwinTransformerV2(nn.Module):
    """Swin Transformer V2 backbone.

    Args:
        config: see `ModelConfig`.
        resolution: input (height, width) in pixels for which an absolute position embedding and bias tables are built;
            they are interpolated for other inputs. Without those, it has no effect.

    Raises:
        ConfigError: for a model that cannot be built.
    """

    def __init__(self, config: ModelConfig, resolution: tuple[int, int] | None = None) -> None:
        super().__init__()
        validate_model(config)
        self.in_channels, self.temporal_patch = config.in_channels, config.temporal_patch
        self.num_blocks = sum(config.depths)
        self.dims = [config.embed_dim * 2**stage for stage in range(NUM_STAGES)]
        self.drop_path_rates = drop_path_rates(config)
        self.absolute_pos_embed: nn.Parameter | None = None
        if config.absolute_position:
            self.position_map = position_map(config, resolution)
            length = self.position_map[0] * self.position_map[1]
            self.absolute_pos_embed = nn.Parameter(torch.empty(1, length, config.embed_dim))
        self.patch_embed = PatchEmbed(config.in_channels, config.patch_size, config.embed_dim, config.temporal_patch)
        self.layers = nn.ModuleList(_build_stage(config, stage, resolution) for stage in range(NUM_STAGES))
        self.norm = LayerNorm(self.dims[-1])
        init_weights(self)

    def init_parameters(self, generator: torch.Generator | None) -> None:
        """Set the initial values, see `init_weights`."""
        if self.absolute_pos_embed is not None:
            draw_normal(self.absolute_pos_embed, generator)

    def forward(
        self,
        images: Tensor,
        *,
        mask_token: Tensor | None = None,
        token_mask: Tensor | None = None,
        noise: Tensor | None = None,
    ) -> list[Tensor]:
        """Return the features of every stage.

        Args:
            images: (B, in_channels, H, W), any size; for clips (B, in_channels, T, H, W), T a multiple of the
                temporal patch.
            mask_token: (C,) replaces the masked tokens, after the patch norm and before a position embedding.
            token_mask: (B, ceil(H / p), ceil(W / p)) bool, True if masked; in a clip, at all times.
            noise: (B, num_blocks, 2) uniform numbers in [0, 1) that decide stochastic depth in training (see
                `drop_path_noise`); None draws them from torch's global generator. Not used in eval mode.

        Returns:
            Per stage (B, H_i, W_i, C_i), or (B, T / temporal_patch, H_i, W_i, C_i): before patch merging, the last one
            after the final norm.

        Raises:
            InputError: if an argument does not fit the model or the images.
        """
        kind, axes = ("clips", "frames, height, width") if self.temporal_patch else ("images", "height, width")
        if images.ndim != (5 if self.temporal_patch else 4) or images.shape[1] != self.in_channels:
            raise InputError(
                f"{kind} of shape {tuple(images.shape)}: the model needs (batch, {self.in_channels}, {axes})"
            )
        x = self.patch_embed(images)
        x = _put_mask_token(x, mask_token, token_mask)
        if self.absolute_pos_embed is not None:
            position = position_embedding(self.absolute_pos_embed, self.position_map, x.shape[1], x.shape[2])
            x = x + position.to(x.dtype)
        scales = self._stochastic_depth(noise, x)

        features, first_block = [], 0
        for stage in self.layers:
            last_block = first_block + len(stage.blocks)
            x = stage(x, None if scales is None else scales[:, first_block:last_block])
            first_block = last_block
            features.append(x)
            if stage.downsample is not None:
                x = stage.downsample(x)
        features[-1] = self.norm(features[-1])
        return features

    def compile_blocks(self, **options: Any) -> None:
        """Compile every block with `torch.compile`, for images of one size; equal blocks of a stage share a graph.

        Args:
            options: for `torch.compile`, such as `mode`.
        """
        # Four stages, with and without shift, extra norm, and training mode: more graphs than dynamo's default limit.
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 64)
        for stage in self.layers:
            for block in stage.blocks:
                block.attn.use_backend(block.attn.backend, compiled=True)
                block.compile(dynamic=False, **options)

    def _stochastic_depth(self, noise: Tensor | None, x: Tensor) -> Tensor | None:
        """Return the factors of all branches, (B, num_blocks, 2), or None if none is dropped."""
        if not self.training or not any(self.drop_path_rates):
            return None
        shape = (x.shape[0], self.num_blocks, 2)
        if noise is None:
            noise = torch.rand(shape, device=x.device)
        if noise.shape != shape:
            raise InputError(f"noise of shape {tuple(noise.shape)}: the model needs {shape} for this batch")
        return branch_scales(noise, self.drop_path_rates, x.dtype)


def backbone_of(model: nn.Module) -> SwinTransformerV2:
    """Return the backbone inside a model or a wrapper, or the model itself.

    Raises:
        ValueError: if there is not exactly one.
    """
    found = [module for module in model.modules() if isinstance(module, SwinTransformerV2)]
    if len(found) != 1:
        raise ValueError(f"{type(model).__name__} contains {len(found)} backbones, not one")
    return found[0]


def _build_stage(config: ModelConfig, stage: int, resolution: tuple[int, int] | None) -> SwinStage:
    dim = config.embed_dim * 2**stage
    norms = extra_norms(config)[stage]
    trained, window = attention_pretrained_windows(config, resolution)[stage], attention_windows(config)[stage]
    blocks = [
        SwinBlock(
            dim,
            WindowAttention(
                dim,
                config.num_heads[stage],
                trained,
                backend=attention_backends(config)[stage],
                chunk_mib=config.sequential_chunk_mib,
                similarity=config.similarity,
                position_bias=config.position_bias,
            ),
            mlp_width(config, dim),
            window=BlockWindow(window, shifted=index % 2 == 1, rule=config.window_rule),
            norm_placement=config.norm_placement,
            extra_norm=norms[index],
        )
        for index in range(config.depths[stage])
    ]
    downsample = PatchMerging(dim) if stage < NUM_STAGES - 1 else None
    return SwinStage(blocks, checkpointed_blocks(config)[stage], downsample)


def _put_mask_token(x: Tensor, mask_token: Tensor | None, token_mask: Tensor | None) -> Tensor:
    if mask_token is None and token_mask is None:
        return x
    if mask_token is None or token_mask is None:
        raise InputError("mask_token and token_mask go together: pass both or neither")
    places = (x.shape[0], *x.shape[-3:-1])
    if token_mask.shape != places:
        raise InputError(f"token_mask of shape {tuple(token_mask.shape)}: these images have {places} tokens")
    masked = token_mask.bool().unsqueeze(-1)
    return torch.where(masked if x.ndim == 4 else masked.unsqueeze(1), mask_token.to(x.dtype), x)
