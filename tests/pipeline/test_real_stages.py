"""Real stages, of one rank each: killed in the middle of the second, the same command completes the chain."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from swinv2_train.launch.status import read_status
from tests.pipeline.conftest import call
from tests.runs import TINY_MODEL, make_labelled_data, metrics, start, until

PIPELINE = """\
# Tiny real stages.
name: real
stages:
  - name: pretrain
    experiment: simmim_demo
    overrides: [task.mask_patch_size=16, optim.steps=4, checkpoint.keep_best=1]
  - name: task
    experiment: classify_demo
    init_from: pretrain
    weights: best
    overrides: [task.num_classes=3, optim.steps=24]
  - name: scratch
    baseline_of: task
    overrides: [optim.steps=3]
"""
EVERY_STAGE = [
    *TINY_MODEL[:-1], "data.num_workers=0", "engine=zero1_fp32", "optim.global_batch=12", "optim.warmup_steps=2",
    "checkpoint.every_steps=100", "eval.every_steps=100", "eval.figure_every_steps=0", "tracking.log_every_steps=1",
    "tracking.tensorboard=false", "launch.device=cpu",
]  # fmt: skip


@pytest.mark.distributed
def test_a_killed_chain_is_completed_by_the_same_command(
    tmp_path: Path, hostile: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a change that the second stage cannot go on with is refused in between, and leaves no trace.

    The working directory has files that are named like modules.
    """
    monkeypatch.chdir(hostile)
    shards = make_labelled_data(tmp_path / "shards")
    (tmp_path / "conf" / "pipeline").mkdir(parents=True)
    (tmp_path / "conf" / "pipeline" / "real.yaml").write_text(PIPELINE)
    chain = tmp_path / "chain"
    arguments = ["pipeline=real", f"dir={chain}", "--config-dir", str(tmp_path / "conf"), *EVERY_STAGE]
    arguments += [f"data.shards={shards}/train-*.tar", f"data.eval_shards={shards}/eval-*.tar"]

    process = start(["swinv2-pipeline", *arguments])
    record = chain / "task" / "metrics.jsonl"
    until(lambda: process.poll() is not None or (record.exists() and '"step": 6,' in record.read_text()), 150)
    process.kill()
    output, _ = process.communicate(timeout=100)  # the stage holds the other end of the pipe
    assert process.returncode == -signal.SIGKILL, output
    status = read_status(chain / "task")
    assert status["status"] == "stopped"
    assert 6 <= status["step"] < 24
    pretrained = {path: path.stat().st_mtime_ns for path in (chain / "pretrain").rglob("*") if path.name != ".lock"}
    begun = json.loads((chain / "pipeline.json").read_text())["stages"]["task"]

    assert call([*arguments, "stages.task.seed=3"]) == 2
    refused = capfd.readouterr()
    assert "seed=3: the run in" in refused.err
    assert "task: could not be run" in refused.out
    assert "--redo task reruns it with all changes" in refused.out
    now = json.loads((chain / "pipeline.json").read_text())["stages"]["task"]
    assert (now["recipe"], now["weights"]) == (begun["recipe"], begun["weights"])

    assert call(arguments) == 0
    completed = capfd.readouterr().out
    assert "pretrain: finished at step 4" in completed
    assert f"checkpoints/step-{status['step']:08d}" in (chain / "task" / "log.txt").read_text()
    assert "with pretraining" in completed.splitlines()[-2]
    assert completed.splitlines()[-1].split()[:2] == ["task", "eval/top1"]
    assert {path: path.stat().st_mtime_ns for path in pretrained} == pretrained
    assert [row["step"] for row in metrics(chain / "task") if "loss" in row] == list(range(1, 25))
    assert "decoder" in (chain / "task" / "init_from.txt").read_text()
    assert not (chain / "scratch" / "init_from.txt").exists()
    names = ("pretrain", "task", "scratch")
    assert {name: read_status(chain / name)["status"] for name in names} == dict.fromkeys(names, "finished")
