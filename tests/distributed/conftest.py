"""Fixtures of the tests over several ranks."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults.nursery import Nursery
from tests.runs import environment


@pytest.fixture(scope="session")
def nursery() -> Iterator[Nursery]:
    """Ranks without the seconds that imports take."""
    with Nursery(environment()) as nursery:
        yield nursery
