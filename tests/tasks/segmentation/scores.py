"""Scores and labels of an entire image at once, put together from strips."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from swinv2_train.tasks.segmentation.inference import Inference, TensorSource, label_strips, score_strips


def predict_scores(
    model: nn.Module, image: Tensor, inference: Inference, size: tuple[int, int] | None = None
) -> Tensor:
    """(1, C, h, w) normalized -> (1, K, H, W)."""
    return torch.cat([part for _, part in score_strips(model, TensorSource(image[0]), inference, size)], dim=1)[None]


def predict_labels(
    model: nn.Module, image: Tensor, inference: Inference, size: tuple[int, int] | None = None
) -> np.ndarray:
    """(1, C, h, w) normalized -> (H, W)."""
    return np.concatenate([part for _, part in label_strips(model, TensorSource(image[0]), inference, size)])
