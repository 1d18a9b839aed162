"""Any number of ranks reads a checkpoint of any other, and each reads only what it owns."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

from swinv2_train.checkpoint import load as load_module
from swinv2_train.checkpoint.errors import CheckpointError
from swinv2_train.checkpoint.fragment import Fragment
from swinv2_train.checkpoint.layout import FragmentRecord, rank_file, read_manifest, step_name
from swinv2_train.checkpoint.load import check_parameters, load_fragments, load_weights, overlapping
from swinv2_train.checkpoint.survey import read_state
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


def test_whole_weights_average_and_state(tmp_path: Path) -> None:
    write(tmp_path, 10, 3, ema=True)
    path, expected = tmp_path / step_name(10), full_tensors(ema=True)
    for ema, part in ((False, "weight"), (True, "ema")):
        weights = load_weights(path, ema=ema)
        assert {name: tuple(tensor.shape) for name, tensor in weights.items()} == SHAPES
        assert all(torch.equal(tensor.flatten(), expected[name][part]) for name, tensor in weights.items())
    assert read_state(path) == {"train": {"step": 10}}


def test_an_average_that_is_not_there_is_refused(tmp_path: Path) -> None:
    write(tmp_path, 10)
    with pytest.raises(CheckpointError, match="has no moving average of the weights"):
        load_weights(tmp_path / step_name(10), ema=True)


class Counting:
    """An open safetensors file that counts the elements taken out of it."""

    def __init__(self, inner: Any, counts: Counter[str]) -> None:
        self._inner, self._counts = inner, counts

    def __enter__(self) -> Counting:
        self._inner.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._inner.__exit__(*error)

    def get_slice(self, key: str) -> Counting:
        return Counting(self._inner.get_slice(key), self._counts)

    def __getitem__(self, part: slice) -> torch.Tensor:
        tensor = self._inner[part]
        self._counts["elements"] += tensor.numel()
        return tensor


@pytest.mark.parametrize("ema", [False, True])
@pytest.mark.parametrize("saved_by", [1, 2, 3, 4])
@pytest.mark.parametrize("loaded_by", [1, 2, 3, 4])
def test_a_rank_reads_the_elements_it_owns_and_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, saved_by: int, loaded_by: int, ema: bool
) -> None:
    write(tmp_path, 10, saved_by, ema=ema)
    counts: Counter[str] = Counter()
    monkeypatch.setattr(
        load_module, "safe_open", lambda *args, **options: Counting(safe_open(*args, **options), counts)
    )
    tensors = blank_tensors(full_tensors(ema=ema))
    for rank in range(loaded_by):
        counts.clear()
        own = shards(tensors, rank, loaded_by)
        load_fragments(tmp_path / step_name(10), own)
        assert counts["elements"] == (4 if ema else 3) * sum(piece.weight.numel() for piece in own)


def test_a_rank_opens_the_files_that_hold_its_elements_and_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, 10, 4)
    opened: list[str] = []

    def spy(path: Path, **options: str) -> Any:
        opened.append(str(path.relative_to(tmp_path / step_name(10))))
        return safe_open(path, **options)

    monkeypatch.setattr(load_module, "safe_open", spy)
    load_fragments(tmp_path / step_name(10), shards(blank_tensors(full_tensors()), 2, 4))
    assert opened == [rank_file("model", 2, 4), rank_file("optimizer", 2, 4)]


class CountingList(list):
    """A list that counts how many of its items were looked at."""

    looks = 0

    def __getitem__(self, index: Any) -> Any:
        self.looks += 1
        return super().__getitem__(index)


def test_the_search_for_a_piece_does_not_grow_with_the_number_of_ranks() -> None:
    records = CountingList(FragmentRecord("weight", 10 * rank, 10, rank) for rank in range(4096))
    for start in (0, 20475, 40950):
        records.looks = 0
        assert [record.rank for record, _, _ in overlapping(records, start, start + 10)] == sorted(
            {start // 10, (start + 9) // 10}
        )
        assert records.looks <= 12 + 4


@given(st.lists(st.integers(0, 5), min_size=1, max_size=8), st.data())
def test_the_pieces_found_are_exactly_the_run_asked_for(counts: list[int], data: st.DataObject) -> None:
    starts = [sum(counts[:index]) for index in range(len(counts))]
    records = [FragmentRecord("weight", start, count, 0) for start, count in zip(starts, counts, strict=True)]
    start = data.draw(st.integers(0, sum(counts)))
    stop = data.draw(st.integers(start, sum(counts)))
    found = list(overlapping(records, start, stop))
    assert [index for _, low, high in found for index in range(low, high)] == list(range(start, stop))
    assert all(record.start <= low < high <= record.start + record.count for record, low, high in found)


def test_an_element_that_is_not_there_is_an_error_and_not_left_as_it_was(tmp_path: Path) -> None:
    write(tmp_path, 10)
    for name, start in (("encoder.bias", 2), ("unknown", 0)):
        fragment = Fragment(name, (9,), start, torch.zeros(5), torch.zeros(5), torch.zeros(5))
        with pytest.raises(CheckpointError, match=rf"has \d of the 5 elements of {name} from {start} on"):
            load_fragments(tmp_path / step_name(10), [fragment])


@pytest.mark.parametrize("content", [None, b"1234"])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, content: bytes | None) -> None:
    write(tmp_path, 10)
    file = tmp_path / step_name(10) / rank_file("optimizer", 1, 2)
    file.unlink()
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"{file} cannot be read"):
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
