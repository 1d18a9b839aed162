"""Reading ahead: background threads that have parts of remote shards fetched before they are read."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Generic, TypeVar

logger = logging.getLogger(__name__)
T = TypeVar("T")


class Prefetcher(Generic[T]):
    """Background threads that fetch what is asked for before it is read.

    Args:
        fetcher: opens the function that fetches one item, once for every thread, and closes its files in the end. The
            function asks its second argument after every chunk whether to stop.
        connections: number of threads, so of requests at a time.
    """

    def __init__(
        self, fetcher: Callable[[], AbstractContextManager[Callable[[T, Callable[[], bool]], None]]], connections: int
    ) -> None:
        self._fetcher = fetcher
        self._list: Callable[[], Sequence[T]] | None = None
        self._wanted: deque[T] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._threads = [
            threading.Thread(target=self._work, name=f"prefetch-{number}", daemon=True) for number in range(connections)
        ]
        for thread in self._threads:
            thread.start()

    def want(self, items: Callable[[], Sequence[T]]) -> None:
        """Fetch the items that a function lists, in order; they replace an earlier request.

        One of the threads calls it, because a list of many items takes a while.
        """
        with self._changed:
            self._list = items
            self._wanted.clear()
            self._changed.notify_all()

    def close(self) -> None:
        """Stop after the chunks that are under way; a server that hangs is not waited for."""
        with self._changed:
            self._closed = True
            self._list = None
            self._wanted.clear()
            self._changed.notify_all()
        deadline = time.monotonic() + 5.0
        for thread in self._threads:
            thread.join(timeout=max(0.0, deadline - time.monotonic()))

    def _work(self) -> None:
        with self._fetcher() as fetch:
            while self._next():
                self._fetch_first(fetch)

    def _next(self) -> bool:
        """Wait until there is something to fetch; return False if there never will be."""
        with self._changed:
            self._changed.wait_for(lambda: self._wanted or self._list or self._closed)
            listing, self._list = self._list, None
        if listing is not None:
            try:
                items = listing()
            except Exception as error:
                logger.warning("reading ahead: %s", error)
                items = []
            with self._changed:
                if self._list is None and not self._closed:  # else there is a newer request
                    self._wanted = deque(items)
                    self._changed.notify_all()
        return not self._closed

    def _fetch_first(self, fetch: Callable[[T, Callable[[], bool]], None]) -> None:
        with self._changed:
            item = self._wanted.popleft() if self._wanted else None
        if item is not None:
            try:
                fetch(item, lambda: self._closed)
            except Exception as error:  # the reader of the shard gets the same error and ends the run
                logger.warning("reading ahead: %s", error)
