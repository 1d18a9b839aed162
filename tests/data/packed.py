"""Helpers of the tests of packing: a folder of images, small shards, and a view of what was written."""

from __future__ import annotations

from pathlib import Path

import pytest

from swinv2_train.data.pack import PackOptions
from swinv2_train.data.shards import ShardSet
from tests.data.samples import write_folder

SMALL = PackOptions(max_count=5)


def tars(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.glob("*.tar"))}


def open_set(out: Path, pattern: str = "*.tar") -> ShardSet:
    return ShardSet.open(f"{out}/{pattern}", out / "cache")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "src", 23)
