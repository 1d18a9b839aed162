"""Any number of ranks reads a checkpoint of any other, and each reads only what it owns."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from swinv2_train.checkpoint.errors import CheckpointError
from swinv2_train.checkpoint.fragment import Fragment
from swinv2_train.checkpoint.layout import rank_file, read_manifest, step_name
from swinv2_train.checkpoint.load import check_parameters, load_fragments
from tests.checkpoint.ranks import SHAPES, assert_equal, blank_tensors, full_tensors, shards, write


@pytest.mark.parametrize("ema", [False, True])
@pytest.mark.parametrize("saved_by", [1, 2, 3])
@pytest.mark.parametrize("loaded_by", [1, 2, 4, 60])
def test_any_number_of_ranks_reads_any(tmp_path: Path, saved_by: int, loaded_by: int, ema: bool) -> None:
    write(tmp_path, 10, saved_by, ema=ema)
    expected = full_tensors(ema=ema)
    tensors = blank_tensors(expected)
    for rank in range(loaded_by):
        load_fragments(tmp_path / step_name(10), shards(tensors, rank, loaded_by))
    assert_equal(tensors, expected)


@pytest.mark.parametrize("loaded_by", [1, 3])
def test_an_average_that_was_not_saved_starts_from_the_loaded_weights(tmp_path: Path, loaded_by: int) -> None:
    write(tmp_path, 10)
    tensors = blank_tensors(full_tensors(ema=True))
    for rank in range(loaded_by):
        load_fragments(tmp_path / step_name(10), shards(tensors, rank, loaded_by))
    assert_equal(tensors, {name: {**parts, "ema": parts["weight"]} for name, parts in full_tensors().items()})


def test_an_average_that_nobody_wants_is_left_alone(tmp_path: Path) -> None:
    write(tmp_path, 10, ema=True)
    expected = full_tensors(ema=True)
    tensors = blank_tensors(full_tensors())
    load_fragments(tmp_path / step_name(10), shards(tensors, 0, 1))
    assert_equal(
        tensors, {name: {**parts, "ema": None} and dict(list(parts.items())[:3]) for name, parts in expected.items()}
    )


def test_an_element_that_is_not_there_is_an_error_and_not_left_as_it_was(tmp_path: Path) -> None:
    write(tmp_path, 10)
    for name, start in (("encoder.bias", 2), ("unknown", 0)):
        fragment = Fragment(name, (9,), start, torch.zeros(5), torch.zeros(5), torch.zeros(5))
        with pytest.raises(CheckpointError, match=rf"has \d of the 5 elements of {name} that start at {start}"):
            load_fragments(tmp_path / step_name(10), [fragment])


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, r"cannot be read \(No such file or directory\)"),
        (b"1234", r"is broken \(it is cut off before its header\)"),
        (b"\2\0\0\0\0\0\0\0[]", "is broken"),
        (b"\2\0\0\0\0\0\0\0{}", "lacks 'exp_avg/encoder.weight@"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, content: bytes | None, reason: str) -> None:
    write(tmp_path, 10)
    file = tmp_path / step_name(10) / rank_file("optimizer", 1, 2)
    file.unlink()
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"{file} {reason}"):
        load_fragments(tmp_path / step_name(10), shards(blank_tensors(full_tensors()), 0, 1))


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
