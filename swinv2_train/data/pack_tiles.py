"""Entries of tiles: each large image of a source becomes as many entries as it has tiles."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from swinv2_train.data.errors import BrokenSample
from swinv2_train.data.pack_entries import Entry, Source
from swinv2_train.data.pack_writer import PackOptions
from swinv2_train.data.scene import scene_size


def tiled(
    source: Source, entries: Sequence[Entry], options: PackOptions, progress: Callable[[int, int], None]
) -> list[Entry]:
    """Return the entries of the tiles of images, in the order of the images; of each, row by row.

    Images up to the size of a tile keep their entry. So do those that cannot be read, which packing reports. The key of
    a tile has its place in pixels: `scene_y01792_x00896`.
    """
    if options.tile is None:
        return list(entries)
    found = []
    for number, entry in enumerate(entries, 1):
        found += _tiles(source, entry, options)
        progress(number, len(entries))
    return found


def _tiles(source: Source, entry: Entry, options: PackOptions) -> list[Entry]:
    assert options.tile is not None
    try:
        height, width = scene_size(source.content(entry), options.max_pixels)
    except (OSError, BrokenSample):
        return [entry]
    if max(height, width) <= options.tile.side:
        return [entry]
    return [
        replace(entry, key=f"{entry.key}_y{box[0]:05d}_x{box[1]:05d}", tile=box, scene=(height, width))
        for box in options.tile.boxes(height, width)
    ]
