"""Checkpoints are found and distinguished: complete, damaged, being written, or none."""

from __future__ import annotations

from pathlib import Path

import pytest

from swinv2_train.checkpoint.errors import CheckpointError
from swinv2_train.checkpoint.survey import best_of, checkpoints_of, directory_of, newest_of, read_state, survey
from swinv2_train.config.errors import ConfigError
from tests.checkpoint.written import write


def test_a_run_a_directory_and_a_checkpoint_are_all_paths(tmp_path: Path) -> None:
    directory = tmp_path / "run" / "checkpoints"
    old, new = write(directory, 10), write(directory, 20)
    for path in (tmp_path / "run", directory):
        assert checkpoints_of(path) == [new, old]
        assert newest_of(path) == new
        assert directory_of(path) == directory
    assert checkpoints_of(old) == [old]
    assert newest_of(old) == old
    renamed = old.rename(directory.parent / "the-best")
    assert checkpoints_of(renamed) == [renamed]
    assert [entry.step for entry in survey(renamed)] == [10]


def test_a_path_without_checkpoints_is_named(tmp_path: Path) -> None:
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "file").write_text("")
    assert checkpoints_of(tmp_path / "run") == []
    for path, reason in (
        (tmp_path / "none", "does not exist"),
        (tmp_path, "is neither a run directory"),
        (tmp_path / "file", "is neither a run directory"),
        (tmp_path / "run", "there is no checkpoint in .*checkpoints"),
    ):
        with pytest.raises(ConfigError, match=reason):
            newest_of(path)


def test_sizes_find_what_is_missing_and_hashes_what_was_changed(tmp_path: Path) -> None:
    checkpoints = [write(tmp_path, step) for step in (40, 30, 20, 10)]
    file = checkpoints[0] / "model" / "rank-00000-of-00004.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    next(checkpoints[1].glob("ema/*")).unlink()
    (checkpoints[2] / "manifest.json").write_text("{")
    assert [entry.state for entry in survey(tmp_path)] == ["complete", "damaged", "damaged", "complete"]
    entries = list(survey(tmp_path, hashes=True))
    assert [entry.state for entry in entries] == ["damaged", "damaged", "damaged", "verified"]
    reasons = [entry.damage or "" for entry in entries]
    assert "has been changed (its hash differs)" in reasons[0]
    assert "cannot be read (No such file" in reasons[1]
    assert "manifest.json is broken" in reasons[2]
    assert entries[2].manifest is None
    assert entries[3].size == sum(path.stat().st_size for path in checkpoints[3].rglob("*") if path.is_file())


def test_the_best_is_undamaged_and_a_number(tmp_path: Path) -> None:
    for step, metric in ((10, 0.4), (20, 0.2), (30, 0.3), (40, float("nan")), (50, 0.1), (60, 0.2)):
        write(tmp_path, step, metrics={"eval/loss": metric})
    next((tmp_path / "step-00000050").glob("model/*")).unlink()
    entries = list(survey(tmp_path))
    assert best_of(entries, "eval/loss", "min") == tmp_path / "step-00000060"
    assert best_of(entries, "eval/loss", "max") == tmp_path / "step-00000010"
    assert best_of(entries, "eval/none", "min") is None


@pytest.mark.parametrize(("text", "reason"), [(None, "cannot be read"), ("{", "is broken"), ("[]", "JSON object")])
def test_a_broken_state_is_named(tmp_path: Path, text: str | None, reason: str) -> None:
    if text is not None:
        (tmp_path / "state.json").write_text(text)
    with pytest.raises(CheckpointError, match=rf"state\.json .*{reason}"):
        read_state(tmp_path)
