"""Files in the names of SatVision-TOA (pytorch-caney), as DeepSpeed saves them, written from their description.

The names are those of the official SimMIM code; the norm on the main branch is called `norm3`, and every stage ends
with one.
"""

from __future__ import annotations

import argparse
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor

Shapes = dict[str, tuple[int, ...]]


def satvision_shapes(
    dim: int, depths: list[int], heads: list[int], channels: int, period: int, patch: int = 4
) -> Shapes:
    """Return names and shapes of the parameters of a SatVision model."""
    shapes: Shapes = {
        "encoder.mask_token": (1, 1, dim),
        "encoder.patch_embed.proj.weight": (dim, channels, patch, patch),
        "encoder.patch_embed.proj.bias": (dim,),
        **_norm("encoder.patch_embed.norm", dim),
    }
    for stage, (depth, number) in enumerate(zip(depths, heads, strict=True)):
        width = dim * 2**stage
        for block in range(depth):
            place = f"encoder.layers.{stage}.blocks.{block}"
            shapes |= {
                **_norm(f"{place}.norm1", width),
                f"{place}.attn.logit_scale": (number, 1, 1),
                f"{place}.attn.q_bias": (width,),
                f"{place}.attn.v_bias": (width,),
                f"{place}.attn.cpb_mlp.0.weight": (512, 2),
                f"{place}.attn.cpb_mlp.0.bias": (512,),
                f"{place}.attn.cpb_mlp.2.weight": (number, 512),
                f"{place}.attn.qkv.weight": (3 * width, width),
                f"{place}.attn.proj.weight": (width, width),
                f"{place}.attn.proj.bias": (width,),
                **_norm(f"{place}.norm2", width),
                f"{place}.mlp.fc1.weight": (4 * width, width),
                f"{place}.mlp.fc1.bias": (4 * width,),
                f"{place}.mlp.fc2.weight": (width, 4 * width),
                f"{place}.mlp.fc2.bias": (width,),
            }
            if (block + 1) % period == 0 or block + 1 == depth:
                shapes |= _norm(f"{place}.norm3", width)
        if stage < len(depths) - 1:
            shapes[f"encoder.layers.{stage}.downsample.reduction.weight"] = (2 * width, 4 * width)
            shapes |= _norm(f"encoder.layers.{stage}.downsample.norm", 2 * width)
    stride = patch * 2 ** (len(depths) - 1)
    return shapes | {
        **_norm("encoder.norm", dim * 8),
        "decoder.0.weight": (stride**2 * channels, dim * 8, 1, 1),
        "decoder.0.bias": (stride**2 * channels,),
    }


def _norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def random_state(shapes: Shapes) -> dict[str, Tensor]:
    """Return bfloat16 values of a size at which every parameter changes the outputs."""
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, shape in shapes.items():
        noise = torch.randn(shape, generator=generator)
        if "norm" in name and name.endswith("weight"):
            noise = 1 + 0.2 * noise
        elif name.endswith("logit_scale"):
            noise = 2 + 0.5 * noise
        elif len(shape) > 1:
            noise /= max(noise[0].numel(), 1) ** 0.5
        else:
            noise *= 0.1
        state[name] = noise.bfloat16()
    return state


def deepspeed_file(state: dict[str, Tensor]) -> dict[str, Any]:
    """Return the content of a `mp_rank_00_model_states.pt`: weights, and records that are not tensors."""
    return {
        "module": OrderedDict(state),
        "buffer_names": [name for name in state if name.endswith(("table", "index", "mask"))],
        "optimizer": None,
        "param_shapes": [OrderedDict((name, tensor.shape) for name, tensor in state.items())],
        "frozen_param_shapes": None,
        "shared_params": {},
        "lr_scheduler": None,
        "sparse_tensor_module_names": set(),
        "skipped_steps": 0,
        "global_steps": 30_000,
        "dp_world_size": 64,
        "mp_world_size": 1,
        "ds_config": {"zero_optimization": {"stage": 2}, "bf16": {"enabled": True}},
        "ds_version": "0.14.4",
        "args": argparse.Namespace(batch_size=64),
    }
