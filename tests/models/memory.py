"""Counts the bytes of live tensors, operation by operation, and the bytes that autograd keeps."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Bytes of the storages made inside and still alive (`live`), their maximum so far (`peak`), and output shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.shapes: set[tuple[torch.dtype, tuple[int, ...]]] = set()
        self._seen: dict[int, weakref.finalize] = {}

    def __torch_dispatch__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        known = {leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self.shapes.add((leaf.dtype, tuple(leaf.shape)))
                self._add(leaf.untyped_storage(), known)
        return result

    def _add(self, storage: torch.UntypedStorage, known: set[int]) -> None:
        key = storage._cdata
        if key in known or key in self._seen:
            return
        size = storage.nbytes()
        self.live += size
        self.peak = max(self.peak, self.live)
        self._seen[key] = weakref.finalize(storage, self._drop, key, size)

    def _drop(self, key: int, size: int) -> None:
        self.live -= size
        del self._seen[key]


@contextmanager
def saved_by_autograd() -> Iterator[dict[int, tuple[int, tuple[int, ...]]]]:
    """Storages saved for backward inside the context: address -> (bytes, shape of the first tensor seen on it)."""
    saved: dict[int, tuple[int, tuple[int, ...]]] = {}
    kept = []  # an address is only unique while its storage lives

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept.append(storage)
        saved.setdefault(storage.data_ptr(), (storage.nbytes(), tuple(tensor.shape)))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield saved
