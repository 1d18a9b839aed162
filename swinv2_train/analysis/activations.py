"""Signal propagation plot (paper, figure 2): the growth of activations from block to block.

One function measures a model on a batch of images, one plots any number of models in one figure, and one returns the
numbers that are worth a curve during training.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from swinv2_train.models.activations import BlockActivations, record_activations
from swinv2_train.models.heads import pooled_features
from swinv2_train.models.state import evaluating
from swinv2_train.tracking.charts import Chart, Series, line_chart


@torch.no_grad()
def measure_activations(model: nn.Module, images: Tensor) -> list[BlockActivations]:
    """Return the amplitudes of all blocks in one forward pass of the backbone, in eval mode and without a mask.

    Args:
        model: any model of the package, even one in training; its mode is restored. Under ZeRO-3, all ranks must call
            this.
        images: (B, C, H, W), normalized, on the model's device.
    """
    with evaluating(model), record_activations(model) as signal:
        pooled_features(model, images)
    return signal.blocks


def activation_metrics(blocks: Sequence[BlockActivations]) -> dict[str, float]:
    """Return `signal/largest`, the largest main-branch amplitude, and `signal/discrepancy`, the largest over the
    smallest.

    The paper reports the discrepancy: up to 10^4 for pre-norm at the size of Large.
    """
    main = [block.main for block in blocks]
    smallest = min(main)
    return {
        "signal/largest": max(main),
        "signal/discrepancy": max(main) / smallest if smallest > 0 else math.inf,
    }


def activation_chart(models: Mapping[str, Sequence[BlockActivations]]) -> Chart:
    """Plot one or more models by name, over the block number, on a logarithmic axis.

    For a single model, the residual branch is plotted too; for several, only the main branch.
    """
    curves = []
    for name, blocks in models.items():
        x = range(1, len(blocks) + 1)
        curves.append(Series("main branch" if len(models) == 1 else name, x, [block.main for block in blocks]))
        if len(models) == 1:
            branch = [block.branch for block in blocks]
            curves.append(Series("larger residual branch", x, branch, dashed=True))
    ends = {tuple(_stage_ends(blocks)) for blocks in models.values()}
    longest = max(len(blocks) for blocks in models.values())
    return line_chart(
        curves,
        x_label="block",
        y_label="activation amplitude\n(average channel variance)",
        title=next(iter(models)) if len(models) == 1 else "",
        log_y=True,
        x_ticks=[(number, str(number)) for number in _ticks(longest)],
        separators=ends.pop() if len(ends) == 1 else (),
    )


def _stage_ends(blocks: Sequence[BlockActivations]) -> list[float]:
    """Return the positions between blocks at which stages end, except for the last stage."""
    stages = [block.name.partition(".blocks.")[0] for block in blocks]
    return [number + 0.5 for number in range(1, len(stages)) if stages[number] != stages[number - 1]]


def _ticks(count: int) -> list[int]:
    step = next(step for step in (1, 2, 4, 6, 10, 20, 50, count) if count / step <= 13)
    return sorted({1, *range(step, count + 1, step)}) if step > 1 else list(range(1, count + 1))
