"""Model FLOPs utilization (MFU) of a run: the FLOPs of its model per second over the peak of its devices.

Counted are the forward and the backward pass of every image; activations that are recomputed are not (arXiv 2204.02311,
appendix B). Frozen parameters need an unknown part of the backward pass, so a run with them reports no MFU.
"""

from __future__ import annotations

import torch

from swinv2_train.config.schema import Config
from swinv2_train.launch.ranks import Ranks
from swinv2_train.planner.flops import training_flops
from swinv2_train.planner.peak import peak_tflops

TERA = 1e12


def seconds_at_peak(config: Config, ranks: Ranks) -> float | None:
    """Return the seconds per image if all ranks computed at their peak; None if they are not known.

    The MFU is this number times images per second.
    """
    peak = _peak(config, ranks)
    if peak is None or config.optim.freeze:
        return None
    return training_flops(config) / (ranks.world_size * peak * TERA)


def utilization_lines(config: Config, ranks: Ranks) -> list[str]:
    """Return a line for the log about what the MFU is measured against; none on a CPU whose peak is not set."""
    peak, arithmetic = _peak(config, ranks), _arithmetic(config)
    if peak is not None and config.optim.freeze:
        return ["no MFU: the FLOPs of a backward pass with optim.freeze are not counted"]
    if peak is not None:
        flops = training_flops(config) / 1e9
        return [f"MFU: {flops:.4g} GFLOPs per image against {peak:g} TFLOPS per rank in {arithmetic}"]
    if ranks.device.type == "cpu":
        return []
    return [
        f"no MFU: the peak of {ranks.device_name} in {arithmetic} is not known; set tracking.peak_tflops to the TFLOPS "
        "of one rank"
    ]


def _peak(config: Config, ranks: Ranks) -> float | None:
    if config.tracking.peak_tflops is not None:
        return config.tracking.peak_tflops
    return peak_tflops(ranks.device_name, _arithmetic(config)) if ranks.device.type == "cuda" else None


def _arithmetic(config: Config) -> str:
    """Format of the operands of matrix products. The package leaves torch's fp32 setting alone, which is fp32 unless
    the environment or a task sets TF32."""
    if config.engine.precision != "fp32":
        return config.engine.precision
    try:
        return "fp32" if torch.get_float32_matmul_precision() == "highest" else "tf32"
    except RuntimeError:  # set by the key of torch 2.9, after which torch refuses to read it the other way
        return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "fp32"
