"""Checkpoints that are removed, and those that never are."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from swinv2_train.checkpoint.layout import MANIFEST, step_name
from swinv2_train.checkpoint.retain import prune, surplus
from swinv2_train.config.schema import CheckpointConfig
from tests.checkpoint.ranks import write

NAN, INF = float("nan"), float("inf")


def steps(paths: list[Path]) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in paths)


def left(directory: Path) -> list[int]:
    return steps(list(directory.glob("*")))


def break_one(path: Path, damage: str) -> None:
    file = next(path.glob("model/*"))
    if damage == "manifest":
        (path / MANIFEST).unlink()
    elif damage == "file":
        file.unlink()
    else:
        file.write_bytes(b"1234")


def test_the_newest_and_every_kth_stay(tmp_path: Path) -> None:
    for step in range(10, 80, 10):
        write(tmp_path, step, 1)
    (tmp_path / ".saving-step-00000090").mkdir()
    policy = CheckpointConfig(keep_last=2, keep_every_steps=30)
    assert steps(surplus(tmp_path, policy)) == [10, 20, 40, 50]
    assert sorted(prune(tmp_path, policy)) == [step_name(step) for step in (10, 20, 40, 50)]
    assert left(tmp_path) == [30, 60, 70]


@pytest.mark.parametrize(
    ("mode", "values", "kept"),
    [
        ("min", {10: 0.3, 20: 0.1, 30: 0.2, 40: 0.4}, [20, 30, 50]),
        ("max", {10: 0.3, 20: 0.1, 30: 0.2, 40: 0.4}, [10, 40, 50]),
        ("min", {10: NAN, 20: 0.1, 30: -INF, 40: 0.4}, [20, 40, 50]),
        ("max", {10: NAN, 20: 0.1, 30: INF, 40: 0.4}, [20, 40, 50]),
        ("min", {10: 0.3}, [10, 50]),
        ("min", {10: 0.3, 20: 0.3, 30: 0.3}, [20, 30, 50]),
        ("min", {}, [50]),
    ],
)
@pytest.mark.parametrize("given", [None, "min", "max"])
def test_the_best_stay_whatever_an_older_config_says(
    tmp_path: Path, mode: str, values: dict[int, float], kept: list[int], given: str | None
) -> None:
    name = {"min": "eval/ema_loss", "max": "eval/top1"}[mode]
    for step in (10, 20, 30, 40, 50):
        metrics = {name: values[step]} if step in values else {"eval/other": 0.0}
        write(tmp_path, step, 1, metrics=metrics)
    prune(tmp_path, CheckpointConfig(keep_last=1, keep_best=2, best_metric=name, best_mode=given))
    assert left(tmp_path) == kept


def test_a_broken_manifest_does_not_compete(tmp_path: Path) -> None:
    for step in (10, 20, 30):
        write(tmp_path, step, 1, metrics={"eval/loss": float(step)})
    (tmp_path / step_name(10) / MANIFEST).write_text("{}")
    prune(tmp_path, CheckpointConfig(keep_last=1, keep_best=1))
    assert left(tmp_path) == [20, 30]


@pytest.mark.parametrize("damage", ["manifest", "file", "length"])
def test_what_is_broken_is_not_the_best(tmp_path: Path, damage: str) -> None:
    for step in (10, 20, 30, 40):
        write(tmp_path, step, 1, metrics={"eval/loss": float(step)})
    break_one(tmp_path / step_name(10), damage)
    prune(tmp_path, CheckpointConfig(keep_last=1, keep_best=1))
    assert left(tmp_path) == [20, 40]


def test_what_is_known_to_be_damaged_does_not_count_and_stays(tmp_path: Path) -> None:
    for step in (10, 20, 25, 30):
        write(tmp_path, step, 1, metrics={"eval/loss": 1.0 / step, "eval/step": 1.0 / step})
    damaged = [step_name(30), "something else"]
    assert steps(surplus(tmp_path, CheckpointConfig(keep_last=2), damaged=damaged)) == [10]
    assert steps(surplus(tmp_path, CheckpointConfig(keep_last=1, keep_best=1), damaged=damaged)) == [10, 20]
    policy = CheckpointConfig(keep_last=1, keep_best=1, best_metric="eval/step", best_mode="max")
    assert prune(tmp_path, policy, [step_name(20)], damaged) == []
    assert prune(tmp_path, CheckpointConfig(keep_last=2), (), damaged) == [step_name(10)]
    assert left(tmp_path) == [20, 25, 30]


def test_the_protected_stay(tmp_path: Path) -> None:
    for step in (10, 20, 30):
        write(tmp_path, step, 1)
    prune(tmp_path, CheckpointConfig(keep_last=1), {step_name(10), "something else"})
    assert left(tmp_path) == [10, 30]


@pytest.mark.parametrize("keep_last", [0, 1])
def test_the_newest_always_stays(tmp_path: Path, keep_last: int) -> None:
    for step in (10, 20):
        write(tmp_path, step, 1)
    prune(tmp_path, CheckpointConfig(keep_last=keep_last))
    assert left(tmp_path) == [20]


@pytest.mark.parametrize("damage", ["manifest", "file", "length"])
def test_a_broken_newest_is_no_reason_to_remove_a_whole_one(tmp_path: Path, damage: str) -> None:
    for step in (10, 20, 30, 40):
        write(tmp_path, step, 1)
    break_one(tmp_path / step_name(40), damage)
    prune(tmp_path, CheckpointConfig(keep_last=2))
    assert left(tmp_path) == [20, 30, 40]


def test_what_cannot_be_removed_does_not_keep_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in (10, 20, 30):
        write(tmp_path, step, 1)
    real = shutil.rmtree

    def rmtree(path: Path, **options: bool) -> None:
        if path.name.endswith(step_name(20)):
            raise OSError(39, "Directory not empty")
        real(path, **options)

    monkeypatch.setattr(shutil, "rmtree", rmtree)
    with pytest.raises(OSError, match="Directory not empty"):
        prune(tmp_path, CheckpointConfig(keep_last=1))
    assert [path.name for path in sorted(tmp_path.iterdir())] == [f".saving-removed-{step_name(20)}", step_name(30)]
    monkeypatch.undo()
    prune(tmp_path, CheckpointConfig(keep_last=1))
    assert left(tmp_path) == [30]
