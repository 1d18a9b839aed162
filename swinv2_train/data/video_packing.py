"""Options of packing videos. Torch-free, for commands that only check their arguments."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class VideoPacking:
    """Options that decide the bytes of videos in shards."""

    short_side: int | None = None
    """Encode the videos, at most with this shorter side in pixels; None: they are packed as they are."""
    keyframes: int = 30
    """Most frames from one keyframe to the next in videos that are encoded."""
    fps: float = 30.0
    """Frames per second of folders of frames, which do not record it."""
