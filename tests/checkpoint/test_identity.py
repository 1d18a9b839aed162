"""Checkpoints of other runs and renamed ones are told apart, whoever chooses a checkpoint."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from swinv2_train.checkpoint.errors import CheckpointError
from swinv2_train.checkpoint.identity import Identity, identity, moved_name, run_metadata, same_run, strangers
from swinv2_train.checkpoint.layout import Manifest, read_manifest, step_name
from swinv2_train.checkpoint.retain import prune, surplus
from swinv2_train.checkpoint.survey import best_of, newest_of, survey
from swinv2_train.checkpoint.verify import newest_valid, verify
from swinv2_train.config.compose import compose, to_yaml
from swinv2_train.config.schema import CheckpointConfig, Config
from tests.checkpoint.ranks import loaded, on_ranks, write

NAMES = ["0", "1", "2", "3"]
CONTENT = ["bytes:512 packed:aa", "bytes:1024 packed:bb"]


@pytest.fixture(scope="module")
def config() -> Config:
    return compose(["task=classification", "task.num_classes=4"])


def saved(config: Config) -> dict[str, Any]:
    """The metadata of a checkpoint, as a manifest holds it."""
    return run_metadata(config, "9 samples in 2 shards (x)", NAMES, content=CONTENT)


def own(config: Config, **changes: Any) -> Identity:
    values = {"shards": "9 samples in 2 shards (x)", "content": CONTENT, "class_names": NAMES}
    return identity(config, **{**values, **changes})


def drop(section: str, key: str | None = None) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        (content if key is None else content[section]).pop(section if key is None else key)

    return change


@pytest.mark.parametrize(
    "change",
    [
        lambda content: None,
        drop("order", "data.content"),
        drop("classes"),
        drop("data", "mean"),
        drop("model", "norm_placement"),
        drop("task", "label_smoothing"),
        lambda content: content.update(classes=None),
        lambda content: content["order"].update({"data.content": ["bytes:512", "bytes:1024"]}),
        lambda content: content["order"].update({"data.content": ["version-u:1", "version-u:2"]}),
        lambda content: content["order"].update({"data.content": ["bytes:512"]}),
        lambda content: content["model"].update(a_field_of_a_later_version=1),
    ],
)
def test_checkpoints_of_earlier_versions_and_equal_ones_are_of_the_run(
    config: Config, change: Callable[[dict[str, Any]], None]
) -> None:
    content = copy.deepcopy(saved(config))
    change(content)
    assert own(config).differences(content) == []


def test_clips_are_part_of_a_run_and_change_nothing_about_runs_of_images(config: Config) -> None:
    content = saved(config)
    assert content["model"].pop("temporal_patch") == 0, "checkpoints of earlier versions do not record it"
    assert not [key for part in ("model", "data") for key in content[part] if "temporal" in key or "frame" in key]
    other = copy.deepcopy(config)
    other.model.temporal_window, other.data.frame_stride = 16, 4
    assert own(other).differences(content) == []
    clips = copy.deepcopy(config)
    clips.model.temporal_patch, clips.data.frames = 2, 8
    assert saved(clips)["data"]["frame_stride"] == 2
    assert str(own(clips).refusal(content)) == "model.temporal_patch=0, but this run has 2"
    assert str(own(config).refusal(saved(clips))) == "model.temporal_patch=2, but this run has 0"
    for section, key, value in (("model", "temporal_window", 4), ("data", "frames", 16), ("data", "frame_stride", 3)):
        changed = copy.deepcopy(clips)
        setattr(getattr(changed, section), key, value)
        assert str(own(changed).refusal(saved(clips))).startswith(f"{section}.{key}=")


@pytest.mark.parametrize(
    ("changes", "text", "accepted"),
    [
        ({"class_names": ["1", "2", "3", "zero"]}, "class 0 was '0' and is '1' in the data", False),
        ({"class_names": ["0", "2", "1", "3"]}, "class 1 was '1' and is '2' in the data", False),
        ({"class_names": ["0", "1", "2", "three"]}, "class 3 was '3' and is 'three' in the data", True),
        ({"class_names": ["1", "2"]}, "class 0 was '0' and is '1' in the data", False),
        ({"shards": "9 samples in 2 shards (y)"}, "data.shards=9 samples in 2 shards (x), but this run has", True),
        ({"content": [CONTENT[0], "bytes:1024 packed:cc"]}, "shard 1 of data.shards was replaced", True),
        ({"content": ["bytes:513 packed:aa", CONTENT[1]]}, "shard 0 of data.shards was replaced", True),
    ],
)
def test_other_data_are_refused_or_accepted_by_name(
    config: Config, changes: dict[str, Any], text: str, accepted: bool
) -> None:
    content = saved(config)
    found = own(config, **changes).refusal(content)
    assert found is not None
    assert text in str(found)
    config = copy.deepcopy(config)
    config.resume.allow = ["data"]
    lenient = own(config, **changes)
    assert (lenient.refusal(content) is None) == accepted
    assert [str(one) for one in lenient.differences(content)] == [str(found)], "it is reported all the same"


def test_a_hash_decides_over_the_packers_fingerprint(config: Config) -> None:
    content = saved(config)
    content["order"]["data.content"] = ["bytes:512 sha256:11 packed:aa", "bytes:1024"]
    assert own(config, content=["bytes:512 sha256:11 packed:other", "bytes:1024"]).refusal(content) is None
    assert own(config, content=["bytes:512 sha256:22 packed:aa", "bytes:1024"]).refusal(content)


@pytest.mark.parametrize("override", ["seed=1", "optim.global_batch=6", "model.window=7", "data.resolution=96"])
def test_another_run_is_not_accepted_as_other_data(config: Config, override: str) -> None:
    other = compose(["task=classification", "task.num_classes=4", "resume.allow=[data]", override])
    found = own(other).refusal(saved(config))
    assert found is not None
    assert f"{override.partition('=')[0]}=" in str(found)
    assert not same_run(saved(config), saved(other))


def test_moved_names() -> None:
    assert moved_name(["a", "b"], ["b", "a"]) == "b"
    assert moved_name(["a", "b"], ["a", "c"]) is None
    assert moved_name(["a", "b"], ["x", "a"]) == "a"
    assert moved_name([], ["a"]) is None


def of_seed(seed: int) -> dict[str, Any]:
    return {"model": {}, "order": {"seed": seed}}


def foreign(manifest: Manifest) -> str | None:
    seed = manifest.metadata.get("order", {}).get("seed", 0)
    return f"it is of seed {seed}" if seed else None


def make(directory: Path, checkpoints: dict[int, int]) -> None:
    """Write a checkpoint of a seed at each step; a step above 100 is one of a hundredth of it that was renamed."""
    for step, seed in checkpoints.items():
        real = step // 100 if step > 100 else step
        write(directory, real, 1, metadata=of_seed(seed), metrics={"eval/loss": float(real)})
        if step > 100:
            (directory / step_name(real)).rename(directory / step_name(step))


@pytest.mark.parametrize(
    ("checkpoints", "damaged", "until", "chosen", "skipped"),
    [
        ({4: 0, 8: 0}, (), None, 8, 0),
        ({4: 1, 8: 0}, (8,), None, None, 2),
        ({2: 0, 4: 1, 8: 0}, (8,), None, 2, 2),
        ({4: 0, 8: 1}, (), None, 4, 1),
        ({8: 0, 900: 0}, (), None, 8, 1),
        ({8: 0, 900: 1}, (), None, 8, 1),
        ({800: 0}, (), None, None, 1),
        ({4: 0, 6: 1, 8: 0}, (), 7, 4, 1),
        ({4: 0, 500: 0}, (), 499, 4, 0),
        ({4: 0, 500: 0}, (), 500, 4, 1),
    ],
)
def test_the_newest_of_the_run_is_chosen_and_every_other_named(
    tmp_path: Path,
    checkpoints: dict[int, int],
    damaged: tuple[int, ...],
    until: int | None,
    chosen: int | None,
    skipped: int,
) -> None:
    make(tmp_path, checkpoints)
    for step in damaged:
        file = next((tmp_path / step_name(step) / "model").iterdir())
        file.write_bytes(file.read_bytes()[:-1] + b"?")
    for found in on_ranks(2, lambda ranks: newest_valid(tmp_path, ranks, until, foreign)):
        assert found.path == (tmp_path / step_name(chosen) if chosen else None)
        assert len(found.passed_over) == len(found.damaged) == skipped


def test_a_renamed_checkpoint_is_named_with_its_step(tmp_path: Path) -> None:
    make(tmp_path, {500: 0})
    with pytest.raises(CheckpointError, match=f"saved at step 5 and has been renamed; its name must be {step_name(5)}"):
        verify(tmp_path / step_name(500))
    (tmp_path / step_name(500)).rename(tmp_path / "best")
    assert verify(tmp_path / "best").step == 5, "any other name says nothing of a step"


def test_retention_neither_counts_nor_removes_what_is_not_of_the_run(tmp_path: Path) -> None:
    make(tmp_path, {1: 1, 2: 0, 3: 0, 4: 1, 5: 0, 6: 1, 900: 0})
    policy = CheckpointConfig(keep_last=2)
    assert [path.name for path in surplus(tmp_path, policy, metadata=of_seed(0))] == [step_name(2)]
    best = CheckpointConfig(keep_last=1, keep_best=1)  # the lowest eval/loss is that of another run
    assert [path.name for path in surplus(tmp_path, best, metadata=of_seed(0))] == [step_name(3)]
    prune(tmp_path, policy, metadata=of_seed(0))
    assert sorted(path.name for path in tmp_path.iterdir()) == [step_name(step) for step in (1, 3, 4, 5, 6, 900)]


@pytest.mark.parametrize("step", [8, 800])
def test_saving_does_not_replace_a_checkpoint_of_another_run(tmp_path: Path, step: int) -> None:
    make(tmp_path, {step: 1 if step == 8 else 0})
    before = (tmp_path / step_name(step) / "manifest.json").read_bytes()
    (result,) = write(tmp_path, step, 1, seed=3, metadata=of_seed(0))
    assert result.kept_as == tmp_path / f"{step_name(step)}.other-1"
    assert (result.kept_as / "manifest.json").read_bytes() == before
    loaded(tmp_path / step_name(step))
    (result,) = write(tmp_path, step, 1, seed=4, metadata=of_seed(0))
    assert result.kept_as is None, "its own is replaced"


@pytest.fixture
def run(tmp_path: Path, config: Config) -> Path:
    """A run with checkpoints of its own (2, 4), one of another seed (8), and one that was renamed to 900."""
    directory = tmp_path / "checkpoints"
    other = compose(["task=classification", "task.num_classes=4", "seed=1"])
    for step, of in ((2, config), (4, config), (8, other), (9, config)):
        write(directory, step, 1, metadata=saved(of), metrics={"eval/loss": 1 / step})
    (directory / step_name(9)).rename(directory / step_name(900))
    (tmp_path / "resolved.yaml").write_text(to_yaml(config))
    return tmp_path


@pytest.mark.slow
def test_those_who_look_at_a_run_skip_strangers(run: Path) -> None:
    reasons = strangers(run / "checkpoints")
    assert reasons.keys() == {step_name(8), step_name(900)}
    assert "seed=1, but this run has 0" in reasons[step_name(8)]
    assert newest_of(run).name == step_name(4)
    entries = list(survey(run, hashes=True))
    assert [entry.state for entry in entries] == ["damaged", "foreign", "verified", "verified"]
    assert best_of(entries, "eval/loss", "min") == run / "checkpoints" / step_name(4)
    assert newest_of(run / "checkpoints" / step_name(8)).name == step_name(8), "what is named is taken"
    (run / "resolved.yaml").write_text("{")
    assert strangers(run / "checkpoints").keys() == {step_name(900)}, "without a config only names can tell"


def test_a_directory_of_one_run_needs_no_config(
    tmp_path: Path, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("swinv2_train.checkpoint.identity.from_yaml", None)  # would fail if it was called
    for step in (1, 2):
        write(tmp_path, step, 1, metadata=saved(config))
    assert strangers(tmp_path) == {}
    assert read_manifest(tmp_path / step_name(2)).metadata["classes"] == NAMES
