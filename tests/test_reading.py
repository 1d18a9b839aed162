"""Files that may hold anything: one kind of error, whatever is wrong with them."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from swinv2_train.launch.status import read_status, write_status
from swinv2_train.reading import UnreadableError, finite_number, from_object, is_count, put_aside, read_json, read_text


@dataclass
class Example:
    """One field of each kind that is kept in files."""

    name: str
    count: int = 0
    value: float | None = None
    flags: list[bool] = field(default_factory=list)
    by_name: dict[str, int] = field(default_factory=dict)
    anything: Any = None


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff", b"{", b"[" * 100_000, b'{"a":' * 100_000, b"1" * 5000, b"\0" * 9, b"nul"],
)
def test_what_is_not_json_is_one_kind_of_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(UnreadableError) as caught:
        read_json(tmp_path / "file")
    assert len(str(caught.value)) < 200
    assert "\n" not in str(caught.value)


def test_a_folder_is_unreadable_and_an_absent_file_is_absent(tmp_path: Path) -> None:
    with pytest.raises(UnreadableError, match="cannot be read"):
        read_text(tmp_path)
    with pytest.raises(FileNotFoundError):
        read_text(tmp_path / "none")


def test_objects_become_dataclasses_and_wrong_types_do_not() -> None:
    values = {"name": "a", "count": 3, "value": 1, "flags": [True], "by_name": {"x": 1}, "anything": [1], "other": 2}
    assert from_object(Example, values) == Example("a", 3, 1, [True], {"x": 1}, [1])
    for key, wrong in [
        ("name", None), ("name", 1), ("count", True), ("count", 1.5), ("count", 10**30), ("count", "1"), ("value", "1"),
        ("value", float("nan")), ("value", float("inf")), ("value", 10**400), ("flags", [1]), ("flags", {}),
        ("by_name", {"x": "y"}), ("by_name", []),
    ]:  # fmt: skip
        with pytest.raises(UnreadableError, match=f"{key} is "):
            from_object(Example, values | {key: wrong})
    for nothing in ({}, [], None, 1, "name"):
        with pytest.raises(UnreadableError):
            from_object(Example, nothing)


def test_numbers_that_cannot_be_are_none() -> None:
    assert [finite_number(v) for v in (1, 0.5, True, "1", None, 10**400, float("nan"), float("-inf"))] == [
        1.0, 0.5, None, None, None, None, None, None,
    ]  # fmt: skip
    assert [is_count(v) for v in (0, 5, -1, True, 1.0, "1", 2**60)] == [True, True, False, False, False, False, False]


def test_nothing_that_was_put_aside_is_overwritten(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / "a.json").write_text(str(number))
        put_aside(tmp_path / "a.json")
    assert [(tmp_path / f"a.json.unreadable{end}").read_text() for end in ("", "-2", "-3")] == ["0", "1", "2"]


@pytest.mark.parametrize(
    "content",
    [b"\xff", b"[]", b"{}", b'{"status": 5}', b'{"status": "other"}', b'{"step": 3}', b"["],
)
def test_a_damaged_status_is_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "status.json").write_bytes(content)
    assert read_status(tmp_path) == {}
    write_status(tmp_path, "running", 4)
    assert read_status(tmp_path) == {"status": "running", "step": 4}


@pytest.mark.parametrize("step", [-1, "5", None, 10**30, 2.5, True, [1]])
def test_an_impossible_step_of_a_status_counts_as_none(tmp_path: Path, step: object) -> None:
    (tmp_path / "status.json").write_text(json.dumps({"status": "stopped", "step": step}))
    assert read_status(tmp_path) == {"status": "stopped", "step": 0}
