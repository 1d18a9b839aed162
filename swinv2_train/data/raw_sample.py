"""A sample as it is in its shard: named members, not decoded."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from swinv2_train.data.errors import BrokenSample
from swinv2_train.data.samples import IMAGE, TEXT_EXTENSIONS
from swinv2_train.reading import parse_json


@dataclass(frozen=True)
class RawSample:
    """The members of one sample that were read."""

    key: str
    extension: str
    """Extension of the main member, such as jpg or mp4."""
    members: Mapping[str, bytes] = field(default_factory=dict)
    """Name -> bytes, such as image, seg.png, json; only those that were asked for and exist.

    `image` (in a set of videos `video`) is the main member, whatever its extension.
    """
    kind: str = IMAGE
    """Name of the main member."""
    file: Path | None = None
    """File of a video that is read as it is decoded; then the video is not among the members."""

    def member(self, name: str) -> bytes:
        """Return the bytes of a member. Raises BrokenSample if the sample has none of this name."""
        if name not in self.members:
            raise BrokenSample(f"it has no member {name}")
        return self.members[name]

    @property
    def data(self) -> bytes:
        """Encoded main member: the image or video."""
        return self.member(self.kind)

    @property
    def texts(self) -> dict[str, bytes]:
        """Members cls, txt, and json."""
        return {name: self.members[name] for name in TEXT_EXTENSIONS if name in self.members}

    @property
    def label(self) -> int | None:
        """Class number in `cls`, if there is one."""
        with contextlib.suppress(ValueError):
            return int(self.members.get("cls", b""))
        return None

    @property
    def metadata(self) -> dict[str, Any]:
        """Object in `json`, empty if there is none."""
        with contextlib.suppress(ValueError):
            content = parse_json(self.members.get("json", b""))
            return content if isinstance(content, dict) else {"json": content}
        return {}
