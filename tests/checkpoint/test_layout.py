"""Manifests whose hash is right and whose numbers cannot be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from swinv2_train.checkpoint.errors import CheckpointError
from swinv2_train.checkpoint.layout import MANIFEST, _digest, read_manifest, step_name
from swinv2_train.checkpoint.tensor_file import read_header
from tests.checkpoint.ranks import write

IMPOSSIBLE: list[tuple[tuple[Any, ...], Any]] = [
    *((("step",), value) for value in (-1, "10", None, 1.5, True, 10**30)),
    *((("world_size",), value) for value in (-1, "2", 10**30, [])),
    *((("fragments", 0, key), value) for key in ("start", "count", "rank") for value in (-1, "0", 10**30, 0.5)),
    (("fragments", 0, "rank"), 99),
    (("fragments", 0, "name"), 5),
    (("fragments", 0), 5),
    (("fragments",), 5),
    *((("files", 0, "size"), value) for value in (-1, "9", 10**30)),
    *((("files", 0, "path"), value) for value in ("/etc/passwd", "../../other", 5)),
    (("shapes",), []),
    (("shapes", "encoder.weight"), [-1, 3]),
    (("shapes", "encoder.weight"), 5),
    (("geometry",), []),
    (("metrics",), [1]),
]


@pytest.mark.parametrize(("place", "value"), IMPOSSIBLE, ids=[f"{place}={value}"[:60] for place, value in IMPOSSIBLE])
def test_impossible_numbers_are_one_sentence(tmp_path: Path, place: tuple[Any, ...], value: Any) -> None:
    write(tmp_path, 10)
    path = tmp_path / step_name(10)
    values = json.loads((path / MANIFEST).read_text())
    node = values
    for key in place[:-1]:
        node = node[key]
    assert place[-1] in node or isinstance(place[-1], int)
    node[place[-1]] = value
    values["sha256"] = _digest({key: value for key, value in values.items() if key != "sha256"})
    (path / MANIFEST).write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match=r"manifest\.json is broken"):
        read_manifest(path)


@pytest.mark.parametrize("content", [b"[" * 100_000, b"\xff\xfe", b"[]", b"5", b"", b'{"format_version": 2}'])
def test_what_is_not_a_manifest_is_one_sentence(tmp_path: Path, content: bytes) -> None:
    (tmp_path / MANIFEST).write_bytes(content)
    with pytest.raises(CheckpointError, match=r"manifest\.json (is broken|has been changed)"):
        read_manifest(tmp_path)
    (tmp_path / MANIFEST).unlink()
    (tmp_path / MANIFEST).mkdir()
    with pytest.raises(CheckpointError, match=r"manifest\.json is broken \(cannot be read"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        b"", b"1234567", b"\xff" * 8, (90_000_000).to_bytes(8, "little") + b"{}",
        (100_000).to_bytes(8, "little") + b"[" * 100_000, (2).to_bytes(8, "little") + b"[]",
        (3).to_bytes(8, "little") + b"\xff{}",
    ],
)  # fmt: skip
def test_what_is_not_a_tensor_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file").write_bytes(content)
    with (tmp_path / "file").open("rb", buffering=0) as file, pytest.raises(ValueError, match=r"it |its |not "):
        read_header(file)
