"""Runs with two frozen stages, stopped and resumed on another number of ranks."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from swinv2_train.checkpoint.layout import read_manifest
from swinv2_train.checkpoint.verify import verify
from tests.checkpoint.weights import load_weights
from tests.faults.job import FaultyRun
from tests.faults.nursery import Nursery
from tests.runs import make_labelled_data, tiny_classification, tiny_run


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides_of", "engine", "ranks"),
    [(tiny_classification, "zero3_bf16", (2, 1)), (tiny_run, "zero1_fp32", (1, 2))],
)
def test_frozen_stages_stay_as_they_are(
    overrides_of: Callable[..., list[str]], engine: str, ranks: tuple[int, int], nursery: Nursery, tmp_path: Path
) -> None:
    data, supervised = make_labelled_data(tmp_path / "shards"), overrides_of is tiny_classification
    stage, precision = engine.removeprefix("zero").split("_")
    options = [
        "optim.freeze={stages:2}", "optim.lr_scales={backbone:0.1}", "optim.ema_decay=0.9", "model.checkpointing=1",
        f"engine.zero_stage={stage}", f"engine.precision={precision}", "data.num_workers=0", "checkpoint.every_steps=2",
        "checkpoint.keep_last=9", "eval.every_steps=8",
    ]  # fmt: skip
    run = FaultyRun(tmp_path / "run", overrides_of(data, tmp_path / "run", *options), nursery)
    job = run.start(ranks[0])
    job.wait_for_step(3)
    job.signal(signal.SIGTERM)
    assert job.wait() == 75, job.output
    job = run.start(ranks[1])
    assert job.wait() == 0, job.output
    first, last = run.checkpoints()[0], run.checkpoints()[-1]
    assert read_manifest(first).world_size == ranks[0]
    manifest = verify(last)
    assert (manifest.step, manifest.world_size) == (8, ranks[1])
    before, after = load_weights(first), load_weights(last)
    moved = {name for name in after if not torch.equal(before[name], after[name])}
    assert manifest.frozen
    assert not moved & set(manifest.frozen)
    assert len(moved) > len(after) // 3
    assert "parameters train; frozen: " + ("backbone" if supervised else "encoder") + ".patch_embed" in run.log
