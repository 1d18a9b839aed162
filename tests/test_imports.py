"""Imports of large packages: without the garbage collector, and with few requests to the file system."""

from __future__ import annotations

import gc
import os
import sys
import types
from pathlib import Path

import pytest

from swinv2_train.imports import lean_imports


@pytest.mark.slow
@pytest.mark.parametrize(("count", "frozen"), [(1, False), (200, True)])
def test_what_many_imports_made_is_collected_no_more(count: int, frozen: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    gc.collect()
    before = gc.get_freeze_count()
    with lean_imports():
        assert not gc.isenabled()
        for number in range(count):
            monkeypatch.setitem(sys.modules, f"made_{number}", types.ModuleType("made"))
    assert gc.isenabled()
    assert (gc.get_freeze_count() > before) == frozen


def test_a_collector_that_was_off_stays_off() -> None:
    gc.disable()
    try:
        with pytest.raises(ZeroDivisionError), lean_imports():
            raise ZeroDivisionError
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_paths_resolve_as_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "file").touch()
    (tmp_path / "link").symlink_to("a/b")
    (tmp_path / "a" / "b" / "up").symlink_to("../..")
    (tmp_path / "a" / "b" / "other").symlink_to("file")
    monkeypatch.chdir(tmp_path)
    names = (
        "a/b/file",
        "link/file",
        "link/up/a/b/other",
        "a/b/other",
        "link/..",
        "link/../link/none",
        "none/none",
        "link",
    )
    paths = [str(tmp_path / name) for name in names] + [f"{tmp_path}//a/./b/file", "link/file", "/", "", b"link/file"]
    realpath = os.path.realpath
    expected = [realpath(path) for path in paths]
    with lean_imports():
        assert [os.path.realpath(path) for path in paths] == expected
        with pytest.raises(FileNotFoundError):
            os.path.realpath(tmp_path / "none", strict=True)
        assert os.path.realpath(tmp_path / "link") == str(tmp_path / "a" / "b")
    assert os.path.realpath is realpath


def test_each_directory_is_resolved_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = tmp_path / "a" / "b" / "c"
    directory.mkdir(parents=True)
    asked: list[str] = []
    lstat = os.lstat
    monkeypatch.setattr(os, "lstat", lambda path, **options: asked.append(os.fspath(path)) or lstat(path, **options))
    with lean_imports():
        for number in range(50):
            os.path.realpath(f"{directory}/{number}.py")
    assert asked.count(str(tmp_path / "a")) == 1
    assert len(asked) < 50 + 2 * len(directory.parts)
