"""Runs of every detector on a GPU: they evaluate, draw, and resume."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from swinv2_train.exit_codes import FINISHED
from tests.checkpoint.weights import load_weights
from tests.detected import DETECTORS, make_detected_data, tiny_detection
from tests.runs import losses, metrics, run_here

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]
LAST = "step-00000004"
ON_GPU = ("launch.device=cuda", "launch.nproc_per_node=1")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_detected_data(tmp_path_factory.mktemp("detected"))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", DETECTORS)
def test_a_detection_run_resumes_on_a_gpu(shards: Path, tmp_path: Path, kind: str, precision: str) -> None:
    """It ends like its twin to the bit, because every gradient is a sum in a fixed order, but for torch's fused
    attention. HTC has that in the block of global attention, so its weights are equal within rounding."""
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    options = [*DETECTORS[kind], "model.attention=sequential", f"engine.precision={precision}", *ON_GPU]
    repeats = "task.global_attention=true" not in options
    assert run_here(tiny_detection(shards, whole, *options)) == FINISHED
    assert run_here(tiny_detection(shards, resumed, *options, f"resume.source={whole}", "resume=step:2")) == FINISHED
    assert losses(resumed)[:3] == losses(whole)[:3]
    assert losses(resumed)[3] == (losses(whole)[3] if repeats else pytest.approx(losses(whole)[3], rel=1e-2))
    ours, twin = (load_weights(path / "checkpoints" / LAST) for path in (resumed, whole))
    assert ours.keys() == twin.keys()
    for name, weight in twin.items():
        if repeats:
            assert torch.equal(ours[name], weight), name
        else:
            torch.testing.assert_close(ours[name], weight, rtol=1e-2, atol=1e-3)
    assert [row["step"] for row in metrics(whole) if "eval/box_ap" in row] == [2, 4]
    assert (whole / "figures" / f"detection-{LAST}.png").is_file()
