"""Facts of a video that make clips frame-exact: when each frame is shown, and which of them are keyframes.

A packed sample has them in its member `frames.json`. Frame numbers count the frames in the order in which they are
shown, from 0; frame rates do not matter.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from swinv2_train.data.errors import BrokenSample
from swinv2_train.data.integer_runs import IntegerRuns
from swinv2_train.reading import finite_number, is_count

MEMBER = "frames.json"
"""Member with the facts of a packed video."""
_ROTATIONS = {1: 0, 2: 0, 3: 180, 4: 180, 5: 90, 6: 90, 7: 270, 8: 270}


@dataclass(frozen=True)
class VideoFacts:
    """Facts of one video, from the packets of its file; see `video.probe`."""

    pts: IntegerRuns
    """Presentation time of each frame, ascending, in units of `time_base`."""
    keyframes: IntegerRuns
    """Numbers of the frames at which decoding can start; 0 is one."""
    time_base: Fraction
    """Seconds."""
    width: int
    """Pixels of the upright frame, as for `height`; pixels that are not square stay as they are stored."""
    height: int
    seconds: float
    """Duration, with that of the last frame."""
    codec: str
    """FFmpeg's name, such as h264."""
    container: str
    """FFmpeg's name of the file format, such as mp4 or matroska."""
    orientation: int = 1
    """Turn and mirroring that make stored frames upright, as EXIF numbers them."""
    counted: bool = False
    """True if the file has no usable times: frames are decoded from the first one and counted."""

    @property
    def frames(self) -> int:
        """Number of frames."""
        return len(self.pts)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the upright frame."""
        return self.height, self.width

    @property
    def rotation(self) -> int:
        """Degrees by which stored frames are turned clockwise: 0, 90, 180, or 270."""
        return _ROTATIONS[self.orientation]

    @property
    def fps(self) -> float:
        """Mean number of frames per second; 0 if the duration is."""
        return self.frames / self.seconds if self.seconds else 0.0

    @property
    def times(self) -> np.ndarray:
        """(frames,) float64: seconds from the first frame to each."""
        numbers = self.pts.numbers
        return (numbers - numbers[0]) * float(self.time_base)

    @property
    def last_seconds(self) -> float:
        """Duration of the last frame."""
        return max(0.0, self.seconds - float(self.times[-1]))

    def keyframe(self, number: int) -> int:
        """Return the last keyframe that is not after a frame."""
        found = self.keyframes.numbers
        return int(found[max(int(np.searchsorted(found, number, side="right")) - 1, 0)])

    def to_json(self) -> dict[str, Any]:
        """Return plain values; `from_json` restores the same facts."""
        return {
            "frames": self.frames,
            "seconds": self.seconds,
            "width": self.width,
            "height": self.height,
            "orientation": self.orientation,
            "codec": self.codec,
            "container": self.container,
            "time_base": [self.time_base.numerator, self.time_base.denominator],
            "pts": self.pts.to_json(),
            "keyframes": self.keyframes.to_json(),
            "counted": self.counted,
        }

    @classmethod
    def from_json(cls, content: Any) -> VideoFacts:
        """Read the content of a member `frames.json`.

        Raises:
            BrokenSample: with the first entry that is missing or has another form.
        """
        if not isinstance(content, dict):
            raise BrokenSample("it is not a JSON object")
        pts, keyframes = (IntegerRuns.from_json(content.get(name)) for name in ("pts", "keyframes"))
        if pts is None or not len(pts) or content.get("frames") != len(pts):
            raise BrokenSample("its pts are not the times of its frames")
        if keyframes is None or not len(keyframes) or keyframes.numbers[0] != 0 or keyframes.numbers[-1] >= len(pts):
            raise BrokenSample("its keyframes are not numbers of its frames, from 0")
        for name in ("width", "height"):
            if not is_count(content.get(name)) or not content[name]:
                raise BrokenSample(f"its {name} is {content.get(name)!r:.20}")
        base = content.get("time_base")
        if not isinstance(base, list) or len(base) != 2 or not all(is_count(one) and one for one in base):
            raise BrokenSample(f"its time_base is {base!r:.40}, not two positive integers")
        seconds = finite_number(content.get("seconds"))
        if seconds is None or seconds < 0:
            raise BrokenSample(f"its seconds are {content.get('seconds')!r:.20}")
        turn, counted = content.get("orientation"), content.get("counted")
        if not is_count(turn) or turn not in _ROTATIONS or not isinstance(counted, bool):
            raise BrokenSample("its orientation is not a number from 1 to 8, or counted is not true or false")
        codec, container = content.get("codec"), content.get("container")
        if not isinstance(codec, str) or not isinstance(container, str):
            raise BrokenSample("its codec or container is not a text")
        return cls(
            pts=pts,
            keyframes=keyframes,
            time_base=Fraction(*base),
            width=content["width"],
            height=content["height"],
            seconds=seconds,
            codec=codec,
            container=container,
            orientation=turn,
            counted=counted,
        )
