"""Time and memory of one training step of a SwinV2 backbone, per attention backend, against timm's on the same device.

    python scripts/bench/train_step.py --out results.json                              # the default for a GPU
    python scripts/bench/train_step.py --model swinv2_tiny --side 64 --window 4 --batch 2 --rounds 2      # a quick look

Every round runs all variants in turn, so that a drift of the machine's speed affects all alike; the ratio to timm is
the median over rounds. A step is forward, sum, and backward, without an optimizer; on CUDA in bf16 autocast, else in
fp32.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import timm
import torch
from report import device_name, write_report
from torch import nn

from swinv2_train.config.model import ATTENTION_BACKENDS, variant
from swinv2_train.models.backbone import SwinTransformerV2

WARMUP = 2


def build(
    model: str, side: int, window: int
) -> dict[str, tuple[nn.Module, Callable[[nn.Module, torch.Tensor], torch.Tensor]]]:
    """Return the variants: (module, function from module and images to a tensor that is summed)."""
    variants: dict[str, tuple[nn.Module, Callable[[nn.Module, torch.Tensor], torch.Tensor]]] = {}
    for backend in ATTENTION_BACKENDS:
        config = variant(model, window=window, attention=backend, drop_path=0.0)
        variants[backend] = (SwinTransformerV2(config), lambda module, images: module(images)[-1])
    shape = variant(model)
    peer = timm.models.swin_transformer_v2.SwinTransformerV2(
        img_size=side, window_size=window, embed_dim=shape.embed_dim, depths=tuple(shape.depths),
        num_heads=tuple(shape.num_heads), num_classes=0, drop_path_rate=0.0,
    )  # fmt: skip
    variants["timm"] = (peer, lambda module, images: module.forward_features(images))
    return variants


def step(module: nn.Module, forward: Callable, images: torch.Tensor) -> float:
    """Return the seconds of one step."""
    cuda = images.device.type == "cuda"
    if cuda:
        torch.cuda.synchronize()
    start = time.perf_counter()
    with torch.autocast(images.device.type, torch.bfloat16, enabled=cuda):
        total = forward(module, images).float().sum()
    total.backward()
    module.zero_grad(set_to_none=True)
    if cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def peak_gib(module: nn.Module, forward: Callable, images: torch.Tensor) -> float | None:
    """Return the peak memory of one step on a GPU."""
    if images.device.type != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats()
    step(module, forward, images)
    return torch.cuda.max_memory_allocated() / 2**30


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="swinv2_base")
    parser.add_argument("--side", type=int, default=192)
    parser.add_argument("--window", type=int, default=12)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    images = torch.rand(options.batch, 3, options.side, options.side, device=device)
    variants = build(options.model, options.side, options.window)
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for module, _ in variants.values():
        module.to(device).train()
    for round_number in range(WARMUP + options.rounds):
        for name, (module, forward) in variants.items():
            taken = step(module, forward, images)
            if round_number >= WARMUP:
                seconds[name].append(taken)
    results = {
        name: {
            "images_per_second": options.batch / statistics.median(times),
            "ratio_to_timm": statistics.median(peer / own for own, peer in zip(times, seconds["timm"], strict=True)),
            "peak_gib": peak_gib(*variants[name], images),
        }
        for name, times in seconds.items()
    }
    print(json.dumps(results, indent=1))
    write_report(options.out, ("torch", "timm"), device=device_name(), results=results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
