"""Model FLOPs utilization: against a hand computation, and absent without a peak."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from swinv2_train.config.compose import from_yaml
from swinv2_train.config.schema import Config, DataConfig, EngineConfig, TrackingConfig
from swinv2_train.config.tasks import TaskConfig
from swinv2_train.engine.utilization import seconds_at_peak, utilization_lines
from swinv2_train.exit_codes import FINISHED
from swinv2_train.planner.flops import forward_macs
from tests.runs import metrics, run_here, tiny_run


def ranks(device: str = "CPU", count: int = 1) -> Any:
    kind = "cpu" if device == "CPU" else "cuda"
    return SimpleNamespace(device=torch.device(kind), device_name=device, world_size=count)


def config(peak: float | None = None, precision: str = "bf16") -> Config:
    """Swin V2-T at 256x256 with window 8: 5.926 GMACs with the head of 1000 classes, says the official counter."""
    return Config(
        data=DataConfig(resolution=256),
        task=TaskConfig(name="own"),
        engine=EngineConfig(precision=precision),
        tracking=TrackingConfig(peak_tflops=peak),
    )


def test_seconds_per_image_are_flops_over_the_peak_of_all_ranks() -> None:
    """Three forward passes, two FLOPs per multiply-accumulate, on 4 ranks of 2 TFLOPS."""
    assert seconds_at_peak(config(2.0), ranks(count=4)) == pytest.approx(6 * (5.926e9 - 768e3) / 8e12, rel=1e-4)


def test_the_shape_of_the_image_counts() -> None:
    wide, tall, square = config(1.0), config(1.0), config(1.0)
    wide.data.resolution, tall.data.resolution = [256, 512], [512, 256]
    whole = seconds_at_peak(square, ranks())
    assert seconds_at_peak(wide, ranks()) == seconds_at_peak(tall, ranks()) == pytest.approx(2 * whole, rel=1e-4)


def test_a_known_gpu_has_its_peak_and_the_key_overrides_it() -> None:
    a100 = ranks("NVIDIA A100-SXM4-40GB", 8)
    by_name = seconds_at_peak(config(), a100)
    assert by_name == seconds_at_peak(config(312.0), a100)
    assert seconds_at_peak(config(156.0), a100) == 2 * by_name
    assert utilization_lines(config(), a100) == ["MFU: 35.55 GFLOPs per image against 312 TFLOPS per rank in bf16"]


@pytest.mark.parametrize(("setting", "peak"), [("highest", 19.5), ("high", 156.0)])
def test_fp32_is_measured_against_what_the_matrix_products_use(setting: str, peak: float) -> None:
    a100 = ranks("NVIDIA A100-SXM4-40GB")
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(setting)
    try:
        assert seconds_at_peak(config(precision="fp32"), a100) == seconds_at_peak(config(peak), a100)
    finally:
        torch.set_float32_matmul_precision(before)


def test_an_unknown_peak_gives_no_number() -> None:
    unknown = ranks("NVIDIA A10G")
    assert seconds_at_peak(config(), unknown) is None
    (line,) = utilization_lines(config(), unknown)
    assert "NVIDIA A10G in bf16" in line
    assert "tracking.peak_tflops" in line
    assert seconds_at_peak(config(), ranks()) is None
    assert utilization_lines(config(), ranks()) == []


def test_a_run_with_frozen_parts_gives_no_number() -> None:
    frozen = config(1.0)
    frozen.optim.freeze = {"stages": 2}
    assert seconds_at_peak(frozen, ranks()) is None
    assert "optim.freeze" in utilization_lines(frozen, ranks())[0]


@pytest.mark.slow
def test_a_run_records_it_only_with_a_known_peak(finished_run: Path, shards: Path, tmp_path: Path) -> None:
    assert not any("mfu" in record for record in metrics(finished_run))
    options = ["tracking.peak_tflops=0.5", "data.num_workers=0", "optim.steps=3", "eval.every_steps=0"]
    assert run_here(tiny_run(shards, tmp_path, *options, "eval.figure_every_steps=0")) == FINISHED
    per_image = [record["mfu"] / record["images_per_second"] for record in metrics(tmp_path)]
    made = from_yaml(tmp_path / "resolved.yaml")
    backbone, decoder = forward_macs(made.model, (64, 64)), 2 * 2 * 128 * 3 * 32**2
    assert per_image == pytest.approx([6 * (backbone + decoder) / 0.5e12] * 3)
    log = (tmp_path / "log.txt").read_text()
    assert "GFLOPs per image against 0.5 TFLOPS per rank in fp32" in log
    assert re.search(r"images/s  MFU \d+\.\d%  data wait", log)
