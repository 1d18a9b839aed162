from __future__ import annotations

import functools

import pytest
import torch


@pytest.fixture(autouse=True)
def _one_look_for_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """FakeTensorMode asks for a GPU at every operator, and each time torch opens a library of the driver."""
    monkeypatch.setattr(torch.cuda, "is_available", functools.cache(torch.cuda.is_available))
