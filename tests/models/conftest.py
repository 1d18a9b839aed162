from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True)
def _seed() -> None:
    """Random tensors of a test are the same at every run."""
    torch.manual_seed(0)
