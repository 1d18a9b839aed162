"""Distributed pretraining of Swin Transformer V2.

The Python API has five names, which `swinv2_train/api/README.md` describes. They are imported on first use, because
torch takes seconds.
"""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from swinv2_train.api.model import load
    from swinv2_train.api.runs import compose, evaluate, train
    from swinv2_train.api.shards import open_shards

__all__ = ["compose", "evaluate", "load", "open_shards", "train"]
_PLACES = {"load": "model", "open_shards": "shards", "compose": "runs", "train": "runs", "evaluate": "runs"}
"""Modules of the names in `swinv2_train.api`."""

# Without a handler Python would print the library's warnings to stderr, once per rank and process; the run logs them.
logging.getLogger(__name__).addHandler(logging.NullHandler())


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.api.{_PLACES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
