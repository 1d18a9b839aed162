"""Whole runs on a GPU: every precision steps, resumes bit for bit, and the loss scaler survives."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from swinv2_train.checkpoint.fragment import Fragment
from swinv2_train.checkpoint.saver import HostCopy
from swinv2_train.checkpoint.survey import read_state
from swinv2_train.exit_codes import FAILED, FINISHED
from swinv2_train.planner.peak import peak_tflops
from swinv2_train.tasks.simmim import SimMIM
from swinv2_train.tasks.task import Losses
from tests.runs import comparable, losses, metrics, run_here, tiny_run
from tests.segmented import make_segmented_data, tiny_segmentation

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]


@pytest.mark.parametrize(
    ("precision", "accumulate"), [("bf16", "null"), ("bf16", "fp32"), ("fp16", "null"), ("fp32", "null")]
)
def test_a_run_on_a_gpu_resumes_bit_for_bit(shards: Path, tmp_path: Path, precision: str, accumulate: str) -> None:
    options = [
        "launch.device=cuda", "launch.nproc_per_node=1", f"engine.precision={precision}", "optim.schedule=constant",
        f"engine.grad_accum_dtype={accumulate}", "engine.micro_batch=6", "optim.warmup_steps=0",
        "checkpoint.every_steps=3",
    ]  # fmt: skip
    assert run_here(tiny_run(shards, tmp_path / "whole", *options, "optim.steps=6")) == FINISHED
    assert run_here(tiny_run(shards, tmp_path / "parts", *options, "optim.steps=3")) == FINISHED
    assert run_here(tiny_run(shards, tmp_path / "parts", *options, "optim.steps=6")) == FINISHED
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    steps = [[row for row in comparable(tmp_path / name) if "lr" in row] for name in ("parts", "whole")]
    assert steps[0] == steps[1]
    state = read_state(tmp_path / "parts" / "checkpoints" / "step-00000006")
    assert ("loss_scaler" in state["optimizer"]) == (precision == "fp16")


def test_a_segmentation_run_resumes_bit_for_bit_on_a_gpu(tmp_path: Path) -> None:
    """With the layers of a decoder, whose kernels for resizing and pooling are not deterministic on a GPU."""
    shards = make_segmented_data(tmp_path / "segmented")
    options = ["launch.device=cuda", "launch.nproc_per_node=1", "engine=zero1_bf16", "optim.warmup_steps=0"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert run_here(tiny_segmentation(shards, whole, *options)) == FINISHED
    shutil.copytree(whole, parts)
    shutil.rmtree(parts / "checkpoints" / "step-00000004")
    (parts / "status.json").unlink()
    assert run_here(tiny_segmentation(shards, parts, *options)) == FINISHED
    assert comparable(parts) == comparable(whole)


def test_one_gpu_follows_the_cpu(shards: Path, tmp_path: Path, finished_run: Path) -> None:
    options = ["launch.device=cuda", "launch.nproc_per_node=1"]
    assert run_here(tiny_run(shards, tmp_path / "run", *options)) == FINISHED
    assert losses(tmp_path / "run") == pytest.approx(losses(finished_run), rel=1e-3)
    assert json.loads((tmp_path / "run" / "status.json").read_text())["status"] == "finished"
    peak = peak_tflops(torch.cuda.get_device_name(), "fp32")
    steps = [row for row in metrics(tmp_path / "run") if "lr" in row]
    assert all(0 < row["mfu"] < 1 if peak else "mfu" not in row for row in steps)


def test_a_copy_for_a_save_is_pinned_exact_and_complete() -> None:
    """The state may change as soon as the copy is made."""
    parts = {part: torch.randn(1 << 20, device="cuda") for part in ("weight", "exp_avg", "exp_avg_sq", "ema")}
    fragment, expected = Fragment("layer", (1 << 20,), 0, **parts), {k: v.cpu() for k, v in parts.items()}
    (copied,) = HostCopy().take([fragment])
    for tensor in parts.values():
        tensor.zero_()
    torch.cuda.synchronize()
    for part, tensor in expected.items():
        assert getattr(copied, part).is_pinned()
        assert torch.equal(getattr(copied, part), tensor)


def test_fp16_at_the_smallest_loss_scale_ends_in_a_sentence(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = SimMIM.loss
    monkeypatch.setattr(SimMIM, "loss", lambda *args: Losses.single(real(*args).terms["loss"] * 1e30))
    options = ["launch.device=cuda", "launch.nproc_per_node=1", "engine.precision=fp16"]
    assert run_here(tiny_run(shards, tmp_path / "run", *options, "engine.fp16_initial_scale_power=1")) == FAILED
    assert "gradients overflow in fp16 even at the smallest loss scale" in capsys.readouterr().err


def test_the_average_resumes_bit_for_bit_on_a_gpu(shards: Path, tmp_path: Path) -> None:
    options = [
        "launch.device=cuda", "launch.nproc_per_node=1", "optim.ema_decay=0.9", "optim.schedule=constant",
        "optim.warmup_steps=0", "checkpoint.every_steps=3",
    ]  # fmt: skip
    assert run_here(tiny_run(shards, tmp_path / "whole", *options, "optim.steps=6")) == FINISHED
    assert run_here(tiny_run(shards, tmp_path / "parts", *options, "optim.steps=3")) == FINISHED
    assert run_here(tiny_run(shards, tmp_path / "parts", *options, "optim.steps=6")) == FINISHED
    assert [row for row in comparable(tmp_path / "parts") if row["step"] > 3] == [
        row for row in comparable(tmp_path / "whole") if row["step"] > 3
    ]
