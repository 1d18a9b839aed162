"""Rows that wait for their use come back unchanged from memory and from the file, which does not grow without end."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
import torch

from swinv2_train.tasks.segmentation import row_store
from swinv2_train.tasks.segmentation.row_store import RowStore


@pytest.mark.parametrize("limit", [0, 4 * 3 * 2 * 5, 1 << 20])
def test_rows_come_back_from_memory_and_file(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_store, "MEMORY_BYTES", limit)
    whole = torch.randn(2, 9, 5)  # (K, rows, columns), of which rows are views
    rows = whole.transpose(0, 1)
    with RowStore() as store:
        kept = [store.keep(rows[first : first + 3]) for first in (0, 3, 6)]
        expected = rows.clone()
        whole.zero_()
        for number, block in enumerate(kept):
            for first, last in ((0, 3), (1, 2), (2, 3)):
                torch.testing.assert_close(store.read(block, first, last), expected[3 * number :][first:last])
        assert [block.block is not None for block in kept] == [limit > 0, limit > 120, limit > 120]


def test_a_full_disk_is_reported_with_its_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_store, "MEMORY_BYTES", 0)
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda buffering: Path("/dev/full").open("wb", buffering))  # noqa: SIM115
    with RowStore() as store, pytest.raises(OSError, match="No space left on device") as caught:
        store.keep(torch.ones(4, 2, 5))
    assert caught.value.filename == tempfile.gettempdir()


def test_released_space_is_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_store, "MEMORY_BYTES", 0)
    with RowStore() as store:
        kept = store.keep(torch.ones(4, 2, 5))
        for number in range(50):  # sizes that differ by a row, as those of evenly spaced windows do
            following = store.keep(torch.full((3 + number % 2, 2, 5), float(number)))
            store.release(kept)
            kept = following
            assert (store.read(kept, 0, 3) == number).all()
        assert store._file is not None
        assert store._file.seek(0, 2) <= 3 * 4 * 2 * 5 * 4
        file = store._file
    assert file.closed
