"""Damage of any kind to any file is found, and the checkpoint before is taken."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from swinv2_train.checkpoint import verify as verify_module
from swinv2_train.checkpoint.disk import sha256
from swinv2_train.checkpoint.errors import CheckpointError
from swinv2_train.checkpoint.layout import MANIFEST, STATE, Manifest, manifest_text, rank_file, read_manifest, step_name
from swinv2_train.checkpoint.verify import newest_valid, verify
from tests.checkpoint.ranks import on_ranks, write

FILES = [*(rank_file(kind, rank, 2) for kind in ("model", "optimizer", "ema") for rank in (0, 1)), STATE]


def flip(path: Path, index: int) -> None:
    data = bytearray(path.read_bytes())
    data[index] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("index", [0, -3])
def test_a_flipped_byte_in_any_file_is_found(tmp_path: Path, file: str, index: int) -> None:
    write(tmp_path, 10, ema=True)
    path = tmp_path / step_name(10)
    flip(path / file, index)
    with pytest.raises(CheckpointError, match=f"{file} has been changed"):
        verify(path)


def test_these_are_all_the_files(tmp_path: Path) -> None:
    write(tmp_path, 10, ema=True)
    path = tmp_path / step_name(10)
    files = {str(file.relative_to(path)) for file in path.rglob("*") if file.is_file()}
    assert files == {*FILES, MANIFEST}


def test_a_flipped_byte_anywhere_in_the_manifest_is_found(tmp_path: Path) -> None:
    write(tmp_path, 10, 1, ema=True, metrics={"eval/loss": 0.25})
    path = tmp_path / step_name(10)
    original = (path / MANIFEST).read_bytes()
    for index in range(len(original)):
        flip(path / MANIFEST, index)
        with pytest.raises(CheckpointError):
            read_manifest(path)
        (path / MANIFEST).write_bytes(original)
    verify(path)


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "a flipped byte": (lambda path: flip(next(path.glob("optimizer/*")), -3), "has been changed"),
    "a missing file": (lambda path: next(path.glob("model/*")).unlink(), "cannot be read"),
    "a truncated file": (lambda path: next(path.glob("model/*")).write_bytes(b"1234"), "has 4 bytes instead of"),
    "no manifest": (lambda path: (path / MANIFEST).unlink(), "manifest.json is missing"),
    "half a manifest": (lambda path: (path / MANIFEST).write_text('{"step": 1'), "manifest.json is broken"),
    "another state": (lambda path: (path / STATE).write_text("{}"), "state.json has 2 bytes"),
}


@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.parametrize("world_size", [1, 2])
def test_damage_is_found_and_the_one_before_is_taken(tmp_path: Path, kind: str, world_size: int) -> None:
    for step in (10, 20):
        write(tmp_path, step)
    damage, reason = DAMAGE[kind]
    damage(tmp_path / step_name(20))
    with pytest.raises(CheckpointError, match=reason):
        verify(tmp_path / step_name(20))
    for found in on_ranks(world_size, lambda ranks: newest_valid(tmp_path, ranks)):
        assert found.path == tmp_path / step_name(10)
        assert len(found.passed_over) == 1
        assert found.passed_over[0].startswith(step_name(20))
        assert reason in found.passed_over[0]
        assert found.damaged == [step_name(20)]


def without_a_fragment(manifest: Manifest) -> Manifest:
    return replace(manifest, fragments=[*manifest.fragments[:1], *manifest.fragments[2:]])


def with_an_overlap(manifest: Manifest) -> Manifest:
    return replace(manifest, fragments=[*manifest.fragments, manifest.fragments[0]])


def with_a_stranger(manifest: Manifest) -> Manifest:
    return replace(manifest, fragments=[*manifest.fragments, replace(manifest.fragments[0], name="odd")])


def without_a_file(manifest: Manifest) -> Manifest:
    return replace(manifest, files=[record for record in manifest.files if record.path != rank_file("ema", 1, 2)])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (without_a_fragment, r"elements|join"),
        (with_an_overlap, r"do not join"),
        (with_a_stranger, "odd has a piece but no shape"),
        (without_a_file, r"ema/rank-00001-of-00002.safetensors is not listed"),
    ],
)
def test_a_manifest_that_does_not_add_up_is_found(
    tmp_path: Path, change: Callable[[Manifest], Manifest], reason: str
) -> None:
    write(tmp_path, 10, ema=True)
    path = tmp_path / step_name(10)
    (path / MANIFEST).write_text(manifest_text(change(read_manifest(path))))
    with pytest.raises(CheckpointError, match=reason):
        verify(path)


def test_nothing_to_resume_from(tmp_path: Path) -> None:
    (found,) = on_ranks(1, lambda ranks: newest_valid(tmp_path / "none", ranks))
    assert found.path is None
    assert found.passed_over == found.damaged == []


@pytest.mark.parametrize(("until", "step"), [(None, 40), (40, 40), (39, 20), (30, 20), (20, 20), (19, 10), (9, None)])
def test_later_steps_can_be_left_aside(tmp_path: Path, until: int | None, step: int | None) -> None:
    for saved in (10, 20, 30, 40):
        write(tmp_path, saved)
    flip(next((tmp_path / step_name(30)).glob("optimizer/*")), -3)
    for found in on_ranks(2, lambda ranks: newest_valid(tmp_path, ranks, until)):
        assert found.path == (tmp_path / step_name(step) if step else None)
        assert found.damaged == ([step_name(30)] if until in (39, 30) else [])


def test_without_a_valid_one_all_are_named(tmp_path: Path) -> None:
    for step in (10, 20):
        write(tmp_path, step)
        (tmp_path / step_name(step) / MANIFEST).unlink()
    for found in on_ranks(2, lambda ranks: newest_valid(tmp_path, ranks)):
        assert found.path is None
        assert found.damaged == [step_name(20), step_name(10)]
        assert len(found.passed_over) == 2


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_the_ranks_share_the_hashing_evenly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, world_size: int) -> None:
    write(tmp_path, 10, world_size, ema=True)
    hashed: list[str] = []
    monkeypatch.setattr(
        verify_module, "sha256", lambda path: hashed.append(path.name + path.parent.name) or sha256(path)
    )
    on_ranks(world_size, lambda ranks: newest_valid(tmp_path, ranks))
    assert len(hashed) == len(set(hashed)) == 3 * world_size + 1
    files = read_manifest(tmp_path / step_name(10)).files
    shares = on_ranks(world_size, lambda ranks: sum(record.size for record in verify_module._share(files, ranks)))
    assert sum(shares) == sum(record.size for record in files)
    assert max(shares) - min(shares) <= max(record.size for record in files)
