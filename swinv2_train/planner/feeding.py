"""Images or clips per second that a GPU trains on, estimated from the FLOPs of a model: the demand on its data."""

from __future__ import annotations

from swinv2_train.config.model import VARIANTS, variant
from swinv2_train.config.schema import Config
from swinv2_train.planner.flops import training_flops
from swinv2_train.planner.peak import peak_tflops

UTILIZATION = 0.35
"""Assumed fraction of the peak in bf16 (MFU). It is an estimate, not a measurement; a run logs its own."""
GPUS = {"A100": "A100-SXM4-40GB", "H100": "H100 80GB HBM3"}
"""GPUs of the estimate, and their names in the table of peaks."""
MODELS = tuple(VARIANTS)
_PATCH = 2
"""Frames per patch of a model of clips."""


def images_per_second(model: str, side: int, gpu: str, frames: int = 0) -> float:
    """Return the images or clips per second of SimMIM pretraining on one GPU at `UTILIZATION` of its peak in bf16.

    Args:
        model: one of `MODELS`, with its default window, and for clips with patches of two frames.
        side: of the input, in pixels.
        gpu: one of `GPUS`.
        frames: of a clip, an odd number rounded up to whole patches; 0: images.
    """
    config = Config(model=variant(model, temporal_patch=_PATCH if frames else 0))
    config.data.resolution, config.data.frames = side, -(-frames // _PATCH) * _PATCH
    peak = peak_tflops(GPUS[gpu], "bf16")
    assert peak is not None
    return UTILIZATION * peak * 1e12 / training_flops(config)
