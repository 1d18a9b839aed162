"""A checkpoint is all or nothing, and any number of ranks can read it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from swinv2_train.checkpoint import save as save_module
from swinv2_train.checkpoint.errors import CheckpointError
from swinv2_train.checkpoint.layout import list_checkpoints, read_manifest, step_name
from swinv2_train.checkpoint.load import check_parameters, load_fragments, load_state, load_weights
from swinv2_train.checkpoint.retain import prune, surplus
from swinv2_train.checkpoint.save import save
from swinv2_train.checkpoint.verify import newest_valid, verify
from tests.checkpoint.ranks import SHAPES, ThreadRanks, full_tensors, on_ranks, shards


def write(directory: Path, step: int, world_size: int = 2, seed: int = 0) -> list[object]:
    tensors = full_tensors(seed)

    def work(ranks: ThreadRanks) -> Path:
        pieces = shards(tensors, ranks.rank, ranks.world_size)
        state = {"train": {"step": step}}
        return save(directory, step, fragments=pieces, state=state, geometry={"model": {}}, ranks=ranks)

    return on_ranks(world_size, work)


@pytest.mark.parametrize("saved_by", [1, 2, 3])
@pytest.mark.parametrize("loaded_by", [1, 2, 4, 60])
def test_any_number_of_ranks_reads_any(tmp_path: Path, saved_by: int, loaded_by: int) -> None:
    write(tmp_path, 10, saved_by)
    expected = full_tensors()
    blank = {
        name: {kind: torch.full_like(flat, -1) for kind, flat in kinds.items()} for name, kinds in expected.items()
    }
    for rank in range(loaded_by):
        load_fragments(tmp_path / step_name(10), shards(blank, rank, loaded_by))
    for name, kinds in expected.items():
        for kind, flat in kinds.items():
            assert torch.equal(blank[name][kind], flat), (name, kind)


def test_whole_weights_and_state(tmp_path: Path) -> None:
    write(tmp_path, 10, 3)
    path = tmp_path / step_name(10)
    weights = load_weights(path)
    assert {name: tuple(tensor.shape) for name, tensor in weights.items()} == SHAPES
    assert all(torch.equal(tensor.flatten(), full_tensors()[name]["weight"]) for name, tensor in weights.items())
    assert load_state(path) == {"train": {"step": 10}}


def test_a_checkpoint_verifies_and_leaves_nothing_else(tmp_path: Path) -> None:
    write(tmp_path, 10)
    manifest = verify(tmp_path / step_name(10))
    assert manifest.world_size == 2
    assert {"torch", "deepspeed", "swinv2-train"} == manifest.versions.keys()
    assert [path.name for path in tmp_path.iterdir()] == [step_name(10)]


def _flip_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


DAMAGE = {
    "a flipped byte": (lambda path: _flip_a_byte(next(path.glob("optimizer/*"))), "has been changed"),
    "a missing file": (lambda path: next(path.glob("model/*")).unlink(), "cannot be read"),
    "a truncated file": (lambda path: next(path.glob("model/*")).write_bytes(b"1234"), "has 4 bytes instead of"),
    "no manifest": (lambda path: (path / "manifest.json").unlink(), "manifest.json is missing"),
    "half a manifest": (lambda path: (path / "manifest.json").write_text('{"step": 1'), "manifest.json is broken"),
    "another state": (lambda path: (path / "state.json").write_text("{}"), "state.json has 2 bytes"),
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


def test_a_gap_in_a_parameter_is_found(tmp_path: Path) -> None:
    write(tmp_path, 10)
    path = tmp_path / step_name(10) / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["fragments"][1]
    path.write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match=r"elements|join"):
        verify(tmp_path / step_name(10))


def test_nothing_to_resume_from(tmp_path: Path) -> None:
    (found,) = on_ranks(1, lambda ranks: newest_valid(tmp_path / "none", ranks))
    assert found.path is None
    assert found.passed_over == []


@pytest.mark.parametrize("failing_rank", [0, 1])
def test_a_failed_write_fails_everywhere_and_breaks_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing_rank: int
) -> None:
    write(tmp_path, 10)
    real = save_module.save_file

    def disk_full(tensors: object, path: Path) -> None:
        if f"rank-{failing_rank:05d}" in path.name:
            raise OSError(28, "No space left on device")
        real(tensors, path)

    monkeypatch.setattr(save_module, "save_file", disk_full)
    for outcome in write(tmp_path, 20):
        assert isinstance(outcome, CheckpointError)
        assert str(outcome) == f"rank {failing_rank}: No space left on device"
    monkeypatch.undo()
    assert [path.name for path in list_checkpoints(tmp_path)] == [step_name(10)]
    verify(tmp_path / step_name(10))
    write(tmp_path, 20)
    verify(tmp_path / step_name(20))


def test_the_same_step_can_be_saved_again(tmp_path: Path) -> None:
    write(tmp_path, 10, seed=0)
    write(tmp_path, 10, seed=1)
    verify(tmp_path / step_name(10))
    assert torch.equal(
        load_weights(tmp_path / step_name(10))["encoder.bias"], full_tensors(1)["encoder.bias"]["weight"]
    )


def test_the_fragments_of_another_model_are_refused(tmp_path: Path) -> None:
    write(tmp_path, 10)
    manifest = read_manifest(tmp_path / step_name(10))
    check_parameters(manifest, SHAPES)
    for shapes, reason in (
        ({**SHAPES, "extra": (1,)}, "lacks parameter extra"),
        ({"encoder.bias": (5,)}, "unknown parameter decoder.weight and 1 more"),
        ({**SHAPES, "encoder.bias": (6,)}, "another shape for parameter encoder.bias"),
    ):
        with pytest.raises(CheckpointError, match=reason):
            check_parameters(manifest, shapes)


def test_retention_keeps_the_newest_and_every_kth(tmp_path: Path) -> None:
    for step in range(10, 80, 10):
        write(tmp_path, step, 1)
    (tmp_path / ".saving-step-00000090").mkdir()
    doomed = surplus(tmp_path, keep_last=2, keep_every_steps=30)
    assert sorted(path.name for path in doomed) == [step_name(step) for step in (10, 20, 40, 50)]
    prune(tmp_path, keep_last=2, keep_every_steps=30)
    assert sorted(path.name for path in tmp_path.iterdir()) == [step_name(step) for step in (30, 60, 70)]
