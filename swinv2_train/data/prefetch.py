"""Reading ahead: background threads that have parts of remote shards fetched before they are read."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

logger = logging.getLogger(__name__)
T = TypeVar("T")


class Prefetcher(Generic[T]):
    """Background threads that fetch what is asked for before it is read.

    Args:
        fetcher: makes the function that fetches one item, once for every thread. It asks its second argument after
            every chunk whether to stop.
        connections: number of threads, so of requests at a time.
    """

    def __init__(self, fetcher: Callable[[], Callable[[T, Callable[[], bool]], None]], connections: int) -> None:
        self._fetcher = fetcher
        self._wanted: deque[T] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._threads = [
            threading.Thread(target=self._work, name=f"prefetch-{number}", daemon=True) for number in range(connections)
        ]
        for thread in self._threads:
            thread.start()

    def want(self, items: Sequence[T]) -> None:
        """Fetch these in order; they replace an earlier request."""
        with self._changed:
            self._wanted = deque(items)
            self._changed.notify_all()

    def close(self) -> None:
        """Stop after the chunks that are under way; a server that hangs is not waited for."""
        with self._changed:
            self._closed = True
            self._wanted.clear()
            self._changed.notify_all()
        deadline = time.monotonic() + 5.0
        for thread in self._threads:
            thread.join(timeout=max(0.0, deadline - time.monotonic()))

    def _work(self) -> None:
        fetch = self._fetcher()
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._wanted or self._closed)
                if self._closed:
                    return
                item = self._wanted.popleft()
            try:
                fetch(item, lambda: self._closed)
            except Exception as error:  # the reader of the shard gets the same error and ends the run
                logger.warning("reading ahead: %s", error)
