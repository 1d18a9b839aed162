"""Imports without the garbage collector."""

from __future__ import annotations

import gc
import sys
import types

import pytest

from swinv2_train.imports import uncollected_imports


@pytest.mark.slow
@pytest.mark.parametrize(("count", "frozen"), [(1, False), (200, True)])
def test_what_many_imports_made_is_collected_no_more(count: int, frozen: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    gc.collect()
    before = gc.get_freeze_count()
    with uncollected_imports():
        assert not gc.isenabled()
        for number in range(count):
            monkeypatch.setitem(sys.modules, f"made_{number}", types.ModuleType("made"))
    assert gc.isenabled()
    assert (gc.get_freeze_count() > before) == frozen


def test_a_collector_that_was_off_stays_off() -> None:
    gc.disable()
    try:
        with pytest.raises(ZeroDivisionError), uncollected_imports():
            raise ZeroDivisionError
        assert not gc.isenabled()
    finally:
        gc.enable()
