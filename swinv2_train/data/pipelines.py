"""The shards of this package in pipelines of webdataset."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swinv2_train.data.remote import ShardCache
from swinv2_train.data.remote_file import is_remote
from swinv2_train.data.shard import manifests_of, remote_file
from swinv2_train.data.sources import Manifest, expand, manifest_place

if TYPE_CHECKING:
    import webdataset


def open_webdataset(
    spec: Any, cache_dir: str | Path = "~/.cache/swinv2_train/shards", cache_gib: float = 50.0, **options: Any
) -> webdataset.WebDataset:
    """Return a `webdataset.WebDataset` over the shards that `spec` names, for pipelines of your own.

    Samples come in the order of the shards, each a dict of all its members as bytes. Remote shards are read through the
    same bounded cache as in training, with its retries and checks.

    Args:
        spec: as `data.shards`: paths, directories, patterns, URLs, or a list of these.
        cache_dir, cache_gib: place and size of the cache.
        options: for `WebDataset`, such as `shardshuffle=100` or `nodesplitter=webdataset.split_by_node`.

    Raises:
        DataError: if a path does not exist or a pattern names no shard.
    """
    import webdataset
    from webdataset.cache import StreamingOpen
    from webdataset.handlers import reraise_exception

    cache = ShardCache(Path(cache_dir), int(cache_gib * 2**30))
    urls = expand(spec, cache)
    dataset = webdataset.WebDataset(urls, **{"shardshuffle": False, **options})
    opener = _Opener(cache, manifests_of(urls, cache), options.get("handler", reraise_exception))
    # webdataset opens URLs with curl and cuts local paths at `#` and `?`, so its stage that opens is replaced.
    dataset.pipeline = [opener if isinstance(stage, StreamingOpen) else stage for stage in dataset.pipeline]
    return dataset


class _Opener:
    """Stage of a pipeline: shards by path or URL -> open files. Sent to workers."""

    def __init__(
        self,
        cache: ShardCache,
        manifests: dict[str | None, Manifest | None],
        handler: Callable[[Exception], bool],
    ) -> None:
        self._cache, self._manifests, self._handler = cache, manifests, handler

    def __call__(self, shards: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        for shard in shards:
            url = shard["url"]
            try:
                file = os.fdopen(self._open(url), "rb")
            except Exception as error:  # as webdataset's own stage: the handler decides
                if self._handler(error):
                    continue
                return
            with file:
                yield {"url": url, "stream": file}

    def _open(self, url: str) -> int:
        if not is_remote(url):
            return os.open(url, os.O_RDONLY)
        return self._cache.open(remote_file(url, self._manifests.get(manifest_place(url)), self._cache))
