"""The one reader of checkpoint files: it reads what is asked for and no more, and what fails ends in one sentence."""

from __future__ import annotations

import errno
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from swinv2_train.checkpoint import pieces as module
from swinv2_train.checkpoint.errors import CheckpointError
from swinv2_train.checkpoint.layout import FragmentRecord, rank_file, read_manifest, step_name
from swinv2_train.checkpoint.load import load_fragments
from swinv2_train.checkpoint.pieces import Pieces, overlapping
from tests.checkpoint.ranks import assert_equal, blank_tensors, full_tensors, shards, write
from tests.checkpoint.weights import load_weights


def opened_files(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Collects the safetensors files that are opened."""
    opened: list[Any] = []
    real = Path.open

    def spy(path: Path, *arguments: Any, **options: Any) -> Any:
        file = real(path, *arguments, **options)
        if path.suffix == ".safetensors":
            opened.append(file)
        return file

    monkeypatch.setattr(Path, "open", spy)
    return opened


@pytest.mark.parametrize("ema", [False, True])
@pytest.mark.parametrize("saved_by", [1, 2, 3, 4])
@pytest.mark.parametrize("loaded_by", [1, 2, 3, 4])
def test_a_rank_reads_the_elements_it_owns_and_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, saved_by: int, loaded_by: int, ema: bool
) -> None:
    write(tmp_path, 10, saved_by, ema=ema)
    counts: Counter[str] = Counter()
    real = module.read_exactly

    def counting(file: Any, count: int) -> bytearray:
        counts["bytes"] += count
        return real(file, count)

    monkeypatch.setattr(module, "read_exactly", counting)
    tensors = blank_tensors(full_tensors(ema=ema))
    for rank in range(loaded_by):
        counts.clear()
        own = shards(tensors, rank, loaded_by)
        load_fragments(tmp_path / step_name(10), own)
        assert counts["bytes"] == 4 * (4 if ema else 3) * sum(piece.weight.numel() for piece in own)
    assert_equal(tensors, full_tensors(ema=ema))


def test_a_rank_opens_the_files_that_hold_its_elements_once_and_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, 10, 4)
    opened = opened_files(monkeypatch)
    load_fragments(tmp_path / step_name(10), shards(blank_tensors(full_tensors()), 2, 4))
    expected = [rank_file("model", 2, 4), rank_file("optimizer", 2, 4)]
    assert [str(Path(file.name).relative_to(tmp_path / step_name(10))) for file in opened] == expected


def test_a_bounded_number_of_files_is_open_and_none_afterwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MAX_OPEN", 2)
    write(tmp_path, 10, 4)
    path, expected = tmp_path / step_name(10), full_tensors()["encoder.weight"]["exp_avg"]
    opened, at_a_time = opened_files(monkeypatch), []
    with Pieces(path, read_manifest(path)) as pieces:
        for _ in range(2):  # the second time, the first files were closed
            data = bytearray()
            for portion in pieces.slices("encoder.weight", "exp_avg", 0, 35):
                data += portion
                at_a_time.append(sum(not file.closed for file in opened))
            assert torch.equal(torch.frombuffer(data, dtype=torch.float32), expected)
    assert max(at_a_time) == 2
    assert all(file.closed for file in opened)


def test_a_failing_disk_is_an_error_and_not_a_crash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, 10)

    def fail(*_: object) -> bytearray:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(module, "read_exactly", fail)
    file = tmp_path / step_name(10) / rank_file("model", 0, 2)
    with pytest.raises(CheckpointError, match=rf"{file} cannot be read \(Input/output error\)"):
        load_fragments(tmp_path / step_name(10), shards(blank_tensors(full_tensors()), 0, 1))


def test_another_reader_finds_the_same(tmp_path: Path) -> None:
    write(tmp_path, 10, 3, ema=True)
    for ema, part in ((False, "weight"), (True, "ema")):
        weights = load_weights(tmp_path / step_name(10), ema=ema)
        for name, parts in full_tensors(ema=True).items():
            assert torch.equal(weights[name].flatten(), parts[part])


def test_a_hole_between_the_pieces_is_an_error(tmp_path: Path) -> None:
    write(tmp_path, 10, 4)
    path = tmp_path / step_name(10)
    manifest = read_manifest(path)
    manifest.fragments.remove(next(record for record in manifest.fragments if record.start == 13))
    with (
        Pieces(path, manifest) as pieces,
        pytest.raises(CheckpointError, match=r"has 13 of the 35 elements of encoder\.weight that start at 0"),
    ):
        list(pieces.slices("encoder.weight", "weight", 0, 35))


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
