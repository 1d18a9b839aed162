"""A used directory is continued only with the data and classes it was started with, as the command says it."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from swinv2_train.checkpoint.identity import EARLIER
from swinv2_train.checkpoint.layout import Manifest, list_checkpoints, manifest_text, read_manifest, step_name
from swinv2_train.cli.checks import batch_doubts
from swinv2_train.config.compose import compose
from swinv2_train.config.errors import ConfigError
from swinv2_train.data.pack import PackOptions, pack
from swinv2_train.data.shards import ShardSet
from swinv2_train.engine.identity import check_same_run, class_warnings, run_identity, saved_metadata
from swinv2_train.engine.init_from import preview
from swinv2_train.exit_codes import FINISHED, WRONG_USE
from tests.data.http_server import FlakyServer
from tests.runs import make_images, run_here, tiny_classification

OPTIONS = (
    "task.num_classes=0", "data.eval_shards=''", "optim.steps=2", "checkpoint.every_steps=1", "eval.every_steps=0",
    "eval.figure_every_steps=0", "optim.warmup_steps=0",
)  # fmt: skip


def packed(directory: Path, names: list[str], *, seed: int = 0) -> Path:
    """Shards of six images for each class, with two of them held out."""
    for number, name in enumerate(names):
        make_images(directory / "images" / name, 6, seed + number)
    pack(str(directory / "images"), directory, PackOptions(), classes=True)
    return directory


def command(shards: Path, run_dir: Path, *more: str) -> list[str]:
    return tiny_classification(shards, run_dir, *OPTIONS, *more)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packed(tmp_path_factory.mktemp("data"), ["0", "1", "2"])


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("trained") / "run"
    assert run_here(command(data, run_dir)) == FINISHED
    return run_dir


@pytest.mark.slow
def test_what_the_run_was_started_with_is_recorded(data: Path, trained: Path) -> None:
    metadata = read_manifest(list_checkpoints(trained / "checkpoints")[0]).metadata
    assert metadata["classes"] == ["0", "1", "2"]
    (content,) = metadata["order"]["data.content"]
    assert content.split()[0] == f"bytes:{(data / 'train-000000.tar').stat().st_size}"
    assert run_here(command(data, trained)) == FINISHED, "the same data"
    assert run_here(command(data, trained, "launch.dry_run=true")) == FINISHED
    assert run_here(command(data, trained, "launch.dry_run=true", "resume=never")) == WRONG_USE


@pytest.mark.slow
@pytest.mark.parametrize(
    ("names", "seed", "sentence", "code"),
    [
        (["1", "2", "zero"], 0, "class 0 was '0' and is '1' in the data", WRONG_USE),
        (["0", "1", "two"], 0, "class 2 was '2' and is 'two' in the data", FINISHED),
        (["0", "1", "2"], 50, "shard 0 of data.shards was replaced", FINISHED),
    ],
)
def test_data_that_were_packed_again_are_refused_or_accepted(
    trained: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    names: list[str],
    seed: int,
    sentence: str,
    code: int,
) -> None:
    other, run_dir = packed(tmp_path / "data", names, seed=seed), tmp_path / "run"
    shutil.copytree(trained, run_dir)
    assert run_here(command(other, run_dir)) == WRONG_USE
    message = capsys.readouterr().err
    assert run_here(command(other, run_dir, "launch.dry_run=true")) == WRONG_USE
    assert capsys.readouterr().err == message
    assert sentence in message
    assert message.count("\n") == 1
    assert ("resume.allow=[data]" in message) == (code == FINISHED)
    assert ("--class-names" in message) == (code == WRONG_USE)
    assert run_here(command(other, run_dir, "resume.allow=[data]", "optim.steps=3")) == code
    if code == FINISHED:
        assert f"continuing with different data (resume.allow=[data]): {sentence}" in capsys.readouterr().out
        assert run_here(command(other, run_dir, "optim.steps=3")) == FINISHED, "it is the data of the run now"


@pytest.mark.parametrize(
    ("task", "key", "before", "now", "words"),
    [
        (
            "detection",
            "masks",
            True,
            False,
            "has objects without a mask, and the run in .* with a mask for every object; ",
        ),
        ("detection", "num_classes", 1, 2, "has 2 classes, and the run in .* was started with 1 class; "),
        (
            "segmentation",
            "ignore_index",
            255,
            0,
            "has 0 for pixels without a class, and .* with 255 for pixels without",
        ),
    ],
)
def test_data_are_described_by_what_they_have(
    data: Path, tmp_path: Path, task: str, key: str, before: Any, now: Any, words: str
) -> None:
    config = compose([f"task={task}", "data.resolution=256", "task.num_classes=2"])
    shards = ShardSet.open(str(data))
    manifests = []
    for value in (before, now):
        setattr(config.task, key, value)
        manifests.append(run_identity(config, shards, [key]))
    saved, own = manifests
    path = tmp_path / "checkpoints" / step_name(1)
    path.mkdir(parents=True)
    (path / "manifest.json").write_text(manifest_text(Manifest(1, 1, dict(saved.metadata), {}, [], [])))
    with pytest.raises(
        ConfigError, match=rf"data.shards=18 samples in 1 shard .*: {words}.*\(task.{key} follows from them"
    ):
        check_same_run(tmp_path, own)
    with pytest.raises(ConfigError, match=rf"^task.{key}=.*; set it back"):
        check_same_run(tmp_path, replace(own, from_data={}))


@pytest.mark.slow
def test_a_run_of_an_earlier_version_goes_on(data: Path, trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "run")
    for path in list_checkpoints(tmp_path / "run" / "checkpoints"):
        manifest = read_manifest(path)
        del manifest.metadata["order"]["data.content"]
        (path / "manifest.json").write_text(manifest_text(manifest))
    resolved = tmp_path / "run" / "resolved.yaml"
    text = resolved.read_text()
    earlier = re.sub(r"^resume:\n(  .*\n)+", "resume: auto\n", text, flags=re.MULTILINE)
    assert earlier != text
    resolved.write_text(earlier)
    assert run_here(command(data, tmp_path / "run", "optim.steps=3")) == FINISHED
    newest = read_manifest(list_checkpoints(tmp_path / "run" / "checkpoints")[0])
    assert newest.metadata["order"]["data.content"], "and records the content from now on"


@pytest.mark.slow
def test_a_run_of_an_earlier_version_goes_on_in_its_order(data: Path, tmp_path: Path) -> None:
    """Its config and its checkpoints do not name it."""
    keys = ("order", "lanes", "block_samples")
    whole, run_dir = tmp_path / "whole", tmp_path / "stopped"
    assert run_here(command(data, whole, "optim.steps=4", "checkpoint.keep_last=4", "data.order=groups")) == FINISHED
    shutil.copytree(whole, run_dir)
    for path in list_checkpoints(run_dir / "checkpoints"):
        if path.name > step_name(2):
            shutil.rmtree(path)
            continue
        manifest = read_manifest(path)
        for key in keys:
            del manifest.metadata["order"][f"data.{key}"]
        (path / "manifest.json").write_text(manifest_text(manifest))
    resolved = run_dir / "resolved.yaml"
    lines = [line for line in resolved.read_text().splitlines() if line.strip().partition(":")[0] not in keys]
    resolved.write_text("\n".join(lines) + "\n")
    assert run_here(command(data, run_dir, "optim.steps=4")) == FINISHED
    assert "order: groups" in resolved.read_text()
    weights = [list_checkpoints(directory / "checkpoints")[0] / "model" for directory in (whole, run_dir)]
    for file in weights[0].iterdir():
        assert file.read_bytes() == (weights[1] / file.name).read_bytes()
    assert run_here(command(data, run_dir, "optim.steps=5", "data.order=lanes")) == WRONG_USE


def damage(path: Path) -> None:
    file = next((path / "model").iterdir())
    file.write_bytes(file.read_bytes()[:-1] + b"?")


def other_seed(path: Path) -> None:
    manifest = read_manifest(path)
    manifest.metadata["order"]["seed"] = 7
    (path / "manifest.json").write_text(manifest_text(manifest))


def rename(path: Path) -> None:
    path.rename(path.with_name(step_name(9)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("newest", "older", "code", "sentence"),
    [
        (damage, other_seed, 1, "step-00000001: it belongs to another run (seed=7, but this run has 0)"),
        (other_seed, None, 0, "skipped step-00000002: it belongs to another run (seed=7, but this run has 0)"),
        (other_seed, other_seed, 2, "seed=0: the run in"),
        (
            lambda path: path.rename(path.with_name(step_name(9))),
            None,
            0,
            "it was saved at step 2 and has been renamed",
        ),
    ],
)
def test_what_is_loaded_is_what_was_checked(
    data: Path,
    trained: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    newest: Callable[[Path], None],
    older: Callable[[Path], None] | None,
    code: int,
    sentence: str,
) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(trained, run_dir)
    if older:
        older(run_dir / "checkpoints" / step_name(1))
    newest(run_dir / "checkpoints" / step_name(2))
    assert run_here(command(data, run_dir)) == code
    output = capsys.readouterr()
    assert sentence in (output.err if code else output.out)
    if not code:
        assert f"resuming from {run_dir / 'checkpoints' / step_name(1)}" in output.out


def test_the_classes_are_completed_from_a_checkpoint_of_this_run(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "run")
    other_seed(tmp_path / "run" / "checkpoints" / step_name(2))
    config = compose(command(Path("/nowhere"), tmp_path / "run"))
    found = saved_metadata(tmp_path / "run", config)
    assert found is not None
    assert found["order"]["seed"] == 0
    config.seed = 3
    assert saved_metadata(tmp_path / "run", config)["order"]["seed"] == 7, "the newest, for its error"
    assert saved_metadata(tmp_path / "none", config) is None


@pytest.mark.slow
def test_a_changed_version_on_a_server_is_noticed(tmp_path: Path) -> None:
    data = packed(tmp_path / "data", ["a", "b"])
    for name in ("train.dataset.json", "train-000000.tar.index.jsonl"):
        (data / name).unlink()
    server = FlakyServer(data)
    config = compose(command(data, tmp_path / "run", "task.num_classes=2"))

    def seen() -> list[str]:
        shards = ShardSet.open(f"{server.url}/train-000000.tar", tmp_path / "cache", retries=0)
        (shard,) = shards.shards
        assert replace(shard, url=f"{shard.url}?signature=2").content == shard.content, "of the URL without its query"
        return run_identity(config, shards).metadata["order"]["data.content"]

    def differs(before: list[str], now: list[str]) -> bool:
        own = run_identity(config, ShardSet.open(f"{server.url}/train-000000.tar", tmp_path / "cache", retries=0))
        saved = json.loads(json.dumps(own.metadata))
        saved["order"]["data.content"], own.metadata["order"]["data.content"] = before, now
        return own.refusal(saved) is not None

    try:
        first = seen()
        assert "version-" in first[0]
        tar = data / "train-000000.tar"
        content = bytearray(tar.read_bytes())
        content[-1] ^= 1  # in the padding after the end: the same size, names and samples
        tar.write_bytes(content)
        second = seen()
        assert differs(first, second)
        assert not differs(first, first)
        local = run_identity(config, ShardSet.open(str(tar), tmp_path / "cache")).metadata["order"]["data.content"]
        assert not differs(first, local), "a local copy has no version, only its size"
    finally:
        server.close()


@pytest.mark.slow
def test_one_side_without_names_warns(data: Path, trained: Path) -> None:
    own = run_identity(compose(command(data, trained, "task.num_classes=3")), ShardSet.open(str(data)))
    assert class_warnings({"classes": ["0", "1", "2"]}, own) == []
    assert class_warnings(None, own) == [], "a new run has nothing to compare with"
    assert "data.shards names its classes and the checkpoint does not" in class_warnings({"classes": None}, own)[0]
    pretraining = run_identity(compose(["+experiment=simmim_demo", f"data.shards={data}"]), ShardSet.open(str(data)))
    assert class_warnings({"classes": None}, pretraining) == []


@pytest.mark.parametrize(
    ("names", "more", "sentence"),
    [
        (["2", "1", "0"], (), "3 of 3 rows by class name"),
        (["0", "1", "new"], (), "2 of 3 rows by class name; 1 new, zeros (new)"),
        (None, (), "names its classes and data.shards does not: row n of the head is used for class n, unchecked"),
        (None, ("init.label_map=numbers",), "3 of 3 rows by the label map"),
    ],
)
def test_a_dry_run_tells_what_happens_to_the_head(
    trained: Path, tmp_path: Path, names: list[str] | None, more: tuple[str, ...], sentence: str
) -> None:
    config = compose(command(Path("/nowhere"), tmp_path / "run", "task.num_classes=3", f"init_from={trained}", *more))
    config.model.pretrained_window = [4, 4, 4, 2]
    lines = preview(config, names)
    assert any(sentence in line for line in lines)


def test_a_dry_run_says_that_its_plan_is_not_that_of_a_run_with_another_batch_before() -> None:
    config = compose(["+experiment=simmim_demo", "optim.epochs=3", "optim.steps=null", "optim.global_batch=8"])
    (line,) = batch_doubts(config, {"order": {"optim.global_batch": 4}})
    assert "those of a new run with optim.global_batch=8" in line
    assert batch_doubts(config, {"order": {"optim.global_batch": 8}, EARLIER: {"optim.global_batch": [4]}}) == [line]
    for saved in (None, {}, {"order": {"optim.global_batch": 8}}):
        assert batch_doubts(config, saved) == []
    config.optim.epochs, config.optim.steps, config.optim.warmup_steps = None, 5, 0
    assert batch_doubts(config, {"order": {"optim.global_batch": 4}}) == []
