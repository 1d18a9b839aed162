"""Folders of small videos for the tests of packing, and a view of what was packed."""

from __future__ import annotations

import functools
from pathlib import Path

from PIL import Image

from swinv2_train.data.pack import PackOptions, PackReport, PackRun, pack
from swinv2_train.data.pack_video_sources import open_videos
from swinv2_train.data.sample import Sample
from swinv2_train.data.samples import VIDEO, VIDEO_FACTS
from swinv2_train.data.shards import ShardSet
from swinv2_train.data.video_packing import VideoPacking
from tests.data.videos import numbered, read_numbers, video

film = functools.cache(video)
"""`video`, made once for all tests; its arguments must be hashable."""


def write_videos(folder: Path) -> Path:
    """Four videos in two subfolders; each shows its frame numbers, from another one on."""
    for number, (name, container) in enumerate(
        (("up/a", "mp4"), ("up/b", "mkv"), ("down/c", "avi"), ("down/d", "mp4"))
    ):
        path = folder / f"{name}.{container}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(film(tuple(range(10 * number, 10 * number + 12)), container))
    return folder


def write_frames(folder: Path, count: int = 12, kind: str = "png", **options: object) -> Path:
    """A folder of frames that show their numbers, with names of different lengths."""
    folder.mkdir(parents=True)
    for number in range(count):
        Image.fromarray(numbered(number)).save(folder / f"frame_{number + 5}.{kind}", **options)
    return folder


def packed(source: Path | str, out: Path, packing: VideoPacking | None = None, **settings: object) -> PackReport:
    """Pack videos in this process; `settings` are those of `PackOptions`, `open_videos`, and `pack`."""
    found = {name: settings.pop(name) for name in ("classes", "class_names") if name in settings}
    run = {name: settings.pop(name) for name in ("eval_share", "how", "split") if name in settings}
    options = PackOptions(video=packing or VideoPacking(), **settings)  # type: ignore[arg-type]
    return pack(open_videos(str(source), out=out, **found), out, options, **{"how": PackRun(), **run})  # type: ignore


def open_filmed(out: Path, pattern: str = "*.tar") -> ShardSet:
    return ShardSet.open(f"{out}/{pattern}", out / "cache", main=VIDEO)


def samples_of(shards: ShardSet) -> dict[str, Sample]:
    """Samples by key, with their videos, facts, and texts."""
    members = (VIDEO, VIDEO_FACTS, "cls", "json")
    return {shards.key(n): Sample(shards.read(n, members)) for n in range(shards.num_samples)}


def shown(sample: Sample) -> list[int]:
    """The numbers that all frames of a sample's video show."""
    return read_numbers(sample.video.frames(range(sample.video.facts.frames)))
