"""Fixtures that more than one folder of tests uses."""

from __future__ import annotations

import gc
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.nursery import Nursery
from tests.runs import comparable, environment, make_data, make_hostile, run_here, tiny_run


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of small shards."""
    return make_data(tmp_path_factory.mktemp("shards"))


@pytest.fixture
def default_signals() -> Iterator[None]:
    """SIGHUP and SIGINT as in a terminal, for this process and those that it starts.

    Under nohup, in the background of a script, or in a batch job the tests inherit them ignored.
    """
    before = {number: signal.getsignal(number) for number in (signal.SIGHUP, signal.SIGINT)}
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@pytest.fixture(scope="session")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory whose files are named like modules."""
    return make_hostile(tmp_path_factory.mktemp("hostile"))


@pytest.fixture(scope="session")
def finished_run(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of an uninterrupted tiny run of one process with a data worker, in fp32."""
    run_dir = tmp_path_factory.mktemp("runs") / "whole"
    assert run_here(tiny_run(shards, run_dir, "data.num_workers=1")) == 0
    assert len(comparable(run_dir)) == 8 + 3
    return run_dir


@pytest.fixture(scope="session")
def nursery() -> Iterator[Nursery]:
    """Ranks without the seconds that imports take."""
    with Nursery(environment()) as nursery:
        yield nursery


SLOW_FIRST = (
    "distributed/test_launch.py", "distributed/test_faults.py", "distributed/test_hosts.py", "test_readme.py",
    "test_distribution.py", "pipeline/test_real_stages.py", "engine/test_run.py", "cli/test_sweep.py",
    "sweep/test_call.py", "engine/test_bad_numbers.py", "distributed/test_giant.py",
    "distributed/test_classification.py", "segmentation/test_run.py", "detection/test_run.py",
    "engine/test_saving.py",
    "engine/test_recipes.py", "interop/test_onnx.py", "cli/test_wrong_commands.py",
)  # fmt: skip
"""The files that take longest: started last, one of them would have the other workers wait for it."""


def pytest_sessionstart() -> None:
    # The collection makes millions of objects that stay, and the garbage collector would visit them again and again.
    gc.disable()


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


def pytest_unconfigure() -> None:
    gc.unfreeze()  # for the last collection, without which nanobind reports leaks


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def place(item: pytest.Item) -> int:
        return next((place for place, name in enumerate(SLOW_FIRST) if str(item.path).endswith(name)), len(SLOW_FIRST))

    items.sort(key=place)
