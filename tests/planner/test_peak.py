"""Peaks of GPUs by the names that torch reports."""

from __future__ import annotations

import pytest

from swinv2_train.planner.peak import peak_tflops


@pytest.mark.parametrize(
    ("device", "arithmetic", "expected"),
    [
        ("NVIDIA A100-SXM4-40GB", "bf16", 312),
        ("NVIDIA A100 80GB PCIe", "tf32", 156),
        ("A100-SXM4-80GB", "fp32", 19.5),
        ("NVIDIA A10", "fp16", 125),
        ("NVIDIA H100 80GB HBM3", "bf16", 989),
        ("NVIDIA H100 PCIe", "bf16", 756),
        ("NVIDIA H200", "fp32", 67),
        ("NVIDIA B200", "bf16", 2250),
        ("NVIDIA L40S", "bf16", 362),
        ("NVIDIA GeForce RTX 4090", "bf16", 165.2),
        ("Tesla V100-SXM2-32GB", "fp16", 125),
        ("Tesla V100-PCIE-16GB", "fp16", 112),
    ],
)
def test_the_data_sheet_of_a_known_gpu(device: str, arithmetic: str, expected: float) -> None:
    assert peak_tflops(device, arithmetic) == expected


@pytest.mark.parametrize(
    ("device", "arithmetic"),
    [
        ("NVIDIA A10G", "bf16"),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", "bf16"),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", "bf16"),
        ("NVIDIA H100 NVL", "bf16"),
        ("Tesla V100-SXM2-32GB", "bf16"),
        ("CPU", "fp32"),
    ],
)
def test_no_number_is_invented(device: str, arithmetic: str) -> None:
    assert peak_tflops(device, arithmetic) is None
