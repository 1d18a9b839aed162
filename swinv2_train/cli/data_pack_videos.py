"""Options of `swinv2-data pack --video`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from swinv2_train.cli.values import fps, whole

if TYPE_CHECKING:
    from swinv2_train.data.pack_entries import Source
    from swinv2_train.data.video_packing import VideoPacking

_OF_VIDEOS = ("short_side", "keyframes", "fps")
_OF_IMAGES = (
    "labels", "colors", "ignore", "zero_is_ignore", "coco", "boxes", "voc", "tile", "overlap", "quality", "channels",
    "nodata", "image",
)  # fmt: skip


def add_videos(add: Any) -> None:
    """Add options for videos."""
    add(
        "--video",
        action="store_true",
        help="pack videos: files (mp4, m4v, mov, mkv, webm, avi, and with --short-side any that FFmpeg reads), and "
        "folders of frames (JPEG or PNG, in the order of the numbers in their names)",
    )
    add(
        "--short-side",
        type=whole(2),
        metavar="PIXELS",
        help="encode the videos (H.264 in mp4, without sound), larger ones with this shorter side "
        "(default: pack the files as they are)",
    )
    add(
        "--keyframes",
        type=whole(1),
        metavar="N",
        help="most frames from one keyframe to the next in videos that --short-side encodes; a clip is decoded from "
        "the keyframe before it (default: 30)",
    )
    add("--fps", type=fps, metavar="RATE", help="frames per second of folders of frames (default: 30)")


def video_packing(arguments: argparse.Namespace) -> VideoPacking | None:
    """Return the options of packing videos; None without --video. Raises DataError for options that contradict."""
    from swinv2_train.data.errors import DataError
    from swinv2_train.data.video_packing import VideoPacking

    if not arguments.video:
        for name in _OF_VIDEOS:
            if getattr(arguments, name) is not None:
                raise DataError(f"{_option(name)} is for videos: add --video")
        return None
    if arguments.resize is not None:
        raise DataError("--resize shrinks images: use --short-side PIXELS with --video")
    for name in _OF_IMAGES:
        if getattr(arguments, name) not in (None, False):
            raise DataError(f"{_option(name)} is for images: omit it with --video")
    if arguments.background != "white":
        raise DataError("--background is for images: omit it with --video")
    side = arguments.short_side
    if side is None and arguments.keyframes is not None:
        raise DataError("--keyframes applies to videos that are encoded: add --short-side PIXELS")
    if side is not None and side % 2:
        raise DataError(f"--short-side {side} must be even, because two pixels of a video share their color")
    default = VideoPacking()
    return VideoPacking(side, arguments.keyframes or default.keyframes, arguments.fps or default.fps)


def check_fps(arguments: argparse.Namespace, found: Source) -> None:
    """Raise DataError if a frame rate is set and there is nothing that it applies to."""
    from swinv2_train.data.errors import DataError

    if arguments.fps is not None and not any(entry.frames for entry in found.entries):
        raise DataError(f"--fps {arguments.fps:g} applies to folders of frames, and {arguments.source} has none")


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"
