"""Peak throughput of GPUs by name, for the model FLOPs utilization (MFU) in the log."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Peak:
    """TFLOPS of one GPU for dense matrix products with fp32 accumulation; None if it has no units for the format."""

    bf16: float | None
    fp16: float
    tf32: float | None
    fp32: float


PEAKS = {
    r"A10": Peak(125, 125, 62.5, 31.2),
    r"A100[- ].*": Peak(312, 312, 156, 19.5),
    r"B200": Peak(2250, 2250, 1125, 75),
    r"H100 PCIe": Peak(756, 756, 378, 51),
    r"H100 80GB HBM3": Peak(989, 989, 494.5, 67),  # SXM
    r"H200": Peak(989, 989, 494.5, 67),
    r"L4": Peak(121, 121, 60, 30.3),
    r"L40S": Peak(362, 362, 183, 91.6),
    r"GeForce RTX 4090": Peak(165.2, 165.2, 82.6, 82.6),
    r"T4": Peak(None, 65, None, 8.1),
    r"V100-PCIE-.*": Peak(None, 112, None, 14),
    r"V100-SXM2-.*": Peak(None, 125, None, 15.7),
}
"""By the name that torch reports, without the brand. Sources: NVIDIA's data sheets (the numbers without sparsity, which
are half of those with it), and for the RTX 4090 the Ada architecture whitepaper, appendix A."""


def peak_tflops(device: str, arithmetic: str) -> float | None:
    """Return the peak of a GPU in TFLOPS; None if it is unknown.

    A partition of a GPU (MIG) is unknown, because its name does not specify its number of multiprocessors.

    Args:
        device: name that torch reports, such as `NVIDIA A100-SXM4-40GB`.
        arithmetic: format of the operands: bf16, fp16, tf32, or fp32.
    """
    name = re.sub(r"^(NVIDIA|Tesla) ", "", device)
    found = (peak for pattern, peak in PEAKS.items() if re.fullmatch(pattern, name) and "MIG" not in name)
    return getattr(next(found, None), arithmetic, None)
