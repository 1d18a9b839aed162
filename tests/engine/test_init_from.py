"""A run starts from the exact weights of another one, in every layout of the engine, and never asks for them again."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
import torch

from swinv2_train.checkpoint.layout import list_checkpoints, read_manifest
from swinv2_train.config.compose import compose, from_yaml
from swinv2_train.config.overrides import last_of_each
from swinv2_train.config.plan import make_plan
from swinv2_train.engine.deepspeed import Engine
from swinv2_train.engine.init_from import REPORT, start_from
from swinv2_train.errors import RunError
from swinv2_train.exit_codes import FINISHED, WRONG_USE
from swinv2_train.interop.load import meta_model
from swinv2_train.interop.source import open_source
from swinv2_train.launch.ranks import join, leave
from swinv2_train.models import init_weights
from swinv2_train.models.precision import PRECISIONS
from tests.faults.nursery import Nursery
from tests.runs import TINY_MODEL, make_shard, run_here, tiny_run

LAYOUTS = [("fp32", 0), ("fp32", 1), ("bf16", 0), ("bf16", 1), ("bf16", 2)]


def check(source: Path, run_dir: Path, precision: str, stage: int) -> None:
    """Start an engine from a run's weights, and look at all it then holds."""
    config = compose([
        "+experiment=simmim_demo", *TINY_MODEL, f"run.dir={run_dir}", f"init_from={source}",
        f"engine.precision={precision}", f"engine.zero_stage={stage}", "optim.global_batch=4", "optim.ema_decay=0.9",
    ])  # fmt: skip
    run_dir.mkdir(exist_ok=True)
    ranks = join("cpu", 1.0)
    model = meta_model(config, (64, 64)).to(PRECISIONS[precision]).to_empty(device="cpu")
    init_weights(model, torch.Generator().manual_seed(1))
    engine = Engine(model, config, make_plan(config, 1, 100), ranks)
    try:
        lines = start_from(config, engine, ranks)
        with open_source(source) as weights:
            rounded = 0
            for piece in engine.fragments():
                name = piece.name.removeprefix("encoder.")
                expected = weights.elements(name, piece.start, piece.start + piece.weight.numel())
                assert torch.equal(piece.weight, expected), f"{name} has the full precision of the source"
                assert torch.equal(piece.ema, expected)
                assert not piece.exp_avg.any()
                rounded += not torch.equal(expected.bfloat16().float(), expected)
            assert rounded > 10, "the weights of the source are not bf16 numbers"
            bias = weights.tensor("layers.3.blocks.0.mlp.fc1.weight").to(PRECISIONS[precision])
            if stage < 3:
                assert torch.equal(engine.module.encoder.layers[3].blocks[0].mlp.fc1.weight, bias)
        images = torch.randn(1, 3, 64, 64)
        with torch.no_grad():
            assert engine.model(images, torch.zeros(1, 16, 16, dtype=torch.bool)).isfinite().all()
        assert engine.scalars()["adam_steps"] == 0
        assert "loaded" in lines[0]
        assert (run_dir / REPORT).read_text().count(" loaded") > 50
    finally:
        engine.close()
        leave()


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "stage"), LAYOUTS)
def test_the_engine_has_the_weights(finished_run: Path, tmp_path: Path, precision: str, stage: int) -> None:
    check(finished_run, tmp_path / "run", precision, stage)


@pytest.mark.slow
def test_the_engine_has_the_weights_in_stage_3(finished_run: Path, tmp_path: Path, nursery: Nursery) -> None:
    """ZeRO-3 replaces torch's linear function for the rest of the process, so it gets one of its own."""
    arguments = [str(finished_run), str(tmp_path / "run"), "bf16"]
    code, output = nursery.run("tests.engine.test_init_from", arguments, tmp_path)
    assert code == 0, output


def classification(shards: Path, run_dir: Path, *more: str) -> list[str]:
    """The overrides of a tiny classification run."""
    left = [item for item in tiny_run(shards, run_dir) if not item.startswith(("+experiment", "task.", "data.eval"))]
    return last_of_each([
        "task=classification", "task.num_classes=2", "engine=zero1_fp32", *left, f"data.shards={shards}/labels-*.tar",
        "eval.every_steps=0", "eval.figure_every_steps=0", "optim.steps=2", "optim.warmup_steps=0",
        "checkpoint.every_steps=1", "optim.lr=1e-30", "optim.warmup_lr=0",
        "optim.min_lr=0", *more,
    ])  # fmt: skip


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards with a class for each image."""
    directory = tmp_path_factory.mktemp("labelled")
    make_shard(directory / "plain.tar", 14, 3)
    add_labels(directory / "plain.tar", directory / "labels-0.tar")
    return directory


def add_labels(source: Path, target: Path) -> None:
    """A copy of a shard with classes 0 and 1 in turn."""
    import webdataset

    with webdataset.TarWriter(str(target)) as writer:
        for index, sample in enumerate(webdataset.WebDataset(str(source), shardshuffle=False)):
            writer.write({"__key__": sample["__key__"], "jpg": sample["jpg"], "cls": str(index % 2).encode()})


@pytest.mark.slow
def test_a_run_starts_from_another_and_does_without_it_later(
    finished_run: Path, labelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, run_dir = tmp_path / "source", tmp_path / "run"
    shutil.copytree(finished_run, source)
    newest = list_checkpoints(source / "checkpoints")[0]
    broken = next((newest / "model").iterdir())
    damaged = bytearray(broken.read_bytes())
    damaged[-1] ^= 1  # the size stays: only its hash tells
    broken.write_bytes(damaged)
    options = ("model.window=8", "data.resolution=128", "optim.freeze={stages:1}")  # which changes nothing of it
    command = classification(labelled, run_dir, f"init_from={source}", *options)
    assert run_here([*command, "launch.dry_run=true"]) == FINISHED
    assert "init_from      weights from" in capsys.readouterr().out
    assert run_here(last_of_each([*command, "optim.steps=1"])) == FINISHED
    log = (run_dir / "log.txt").read_text()
    assert f"skipped {newest.name}: model/" in log
    assert "2 new (head), 3 dropped (mask_token, decoder)" in log
    resolved = from_yaml(run_dir / "resolved.yaml")
    assert resolved.model.pretrained_window == [4, 4, 4, 2]
    manifest = read_manifest(list_checkpoints(run_dir / "checkpoints")[0])
    assert "backbone.layers.0.downsample.norm.bias" in manifest.frozen
    metadata = manifest.metadata
    assert (metadata["model"]["pretrained_window"], metadata["classes"]) == ([4, 4, 4, 2], None)
    with open_source(source, skip={newest.name: ""}) as before, open_source(run_dir) as after:
        for name in (name for name in after.shapes if not name.startswith("head.")):
            assert torch.equal(after.tensor(name), before.tensor(name)), "such a learning rate changes nothing"

    shutil.rmtree(source)
    assert run_here(command) == FINISHED
    assert "applies only to a new run" in (run_dir / "log.txt").read_text()
    assert [path.name for path in list_checkpoints(run_dir / "checkpoints")] == ["step-00000002", "step-00000001"]
    assert run_here(last_of_each([*command, f"run.dir={tmp_path / 'new'}"])) == WRONG_USE
    assert f"{source} does not exist" in capsys.readouterr().err


@pytest.mark.slow
def test_when_no_checkpoint_is_whole_the_run_ends(finished_run: Path, tmp_path: Path) -> None:
    shutil.copytree(finished_run, tmp_path / "source")
    for checkpoint in list_checkpoints(tmp_path / "source" / "checkpoints"):
        for path in (checkpoint / "model").iterdir():
            path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises((RunError, RuntimeError), match=r"no checkpoint in .* is valid .*its hash differs"):
        check(tmp_path / "source", tmp_path / "run", "fp32", 0)


if __name__ == "__main__":
    check(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], 3)
