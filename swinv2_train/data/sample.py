"""A sample that decodes its members on demand."""

from __future__ import annotations

import io
from collections.abc import Callable, Collection
from functools import cached_property
from typing import Any

import numpy as np
from torch import Tensor

from swinv2_train.data.crop_decode import JpegFrame, aligned, decode_crop
from swinv2_train.data.decode import DecodeOptions, decode
from swinv2_train.data.errors import BrokenSample
from swinv2_train.data.geometry import Crop
from swinv2_train.data.image_header import header_size, orientation, sniff
from swinv2_train.data.label_image import decode_label_map
from swinv2_train.data.objects import MEMBER, Objects
from swinv2_train.data.raw_sample import RawSample
from swinv2_train.data.samples import IMAGE, VIDEO
from swinv2_train.data.video import Video
from swinv2_train.data.video_facts import MEMBER as VIDEO_FACTS
from swinv2_train.data.video_facts import VideoFacts
from swinv2_train.reading import UnreadableError, parse_json


class Sample:
    """Members of one sample, each decoded at most once and only if it is used.

    Members that are missing or damaged break the sample: their first use raises BrokenSample with the member's name.

    Args:
        raw: the members that were read.
        channels: number of channels of the image; None: as it is stored.
        decoding: how images are decoded.
        declared: members that may be used, see `Transform.members`; None: any.
    """

    def __init__(
        self,
        raw: RawSample,
        channels: int | None = None,
        decoding: DecodeOptions | None = None,
        declared: Collection[str] | None = None,
    ) -> None:
        self.raw = raw
        self._channels, self._decoding, self._declared = channels, decoding or DecodeOptions(), declared
        self._decoded: dict[tuple[str, str], Any] = {}
        self.position = 0
        """Position of the sample in the run; in an evaluation, its number."""
        self.batch = 0
        """Number of the global batch in training; 0 in an evaluation. All samples of a step have the same, so a
        transform can draw from it what they share, such as a size."""

    @property
    def key(self) -> str:
        """Name of the sample in its shard."""
        return self.raw.key

    @property
    def scaled(self) -> bool:
        """True if the image is float32 in [0, 1], by `data.scale`."""
        return self._decoding.values is not None

    @property
    def image(self) -> Tensor:
        """(C, H, W) uint8, or uint16 for 16 bit images, or float32 if it is `scaled`; upright."""
        # Not through `_once`: the reasons of broken images stay as they are in the lists of earlier versions.
        place = (IMAGE, IMAGE)
        if place not in self._decoded:
            self._decoded[place] = decode(self.data(IMAGE), self._channels, self._decoding)
        return self._decoded[place]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the upright image, from its header if the format allows: for a crop drawn in advance."""
        if self._frame is not None:
            return self._frame.size
        data = self.data(IMAGE)
        kind = sniff(data)
        found = header_size(data, kind) if kind is not None else None
        if kind is None or found is None:
            return self.image.shape[-2], self.image.shape[-1]
        return found[::-1] if orientation(data, kind) >= 5 else found

    def aligned(self, crop: Crop) -> Crop:
        """Return the crop that `part` can decode: itself, or with scaled decoding moved a little; see
        `crop_decode.aligned`."""
        return aligned(self._frame, crop, self._decoding)

    def part(self, crop: Crop) -> tuple[Tensor, Crop]:
        """Decode no more of the image than a crop needs.

        Args:
            crop: drawn for `size`, and `aligned`.

        Returns:
            (pixels (C, height, width), upright; the crop to be applied to them).
        """
        part = None
        if (IMAGE, IMAGE) not in self._decoded:
            part = decode_crop(self.data(IMAGE), self._frame, crop, self._channels, self._decoding)
        return part or (self.image, crop)

    @cached_property
    def _frame(self) -> JpegFrame | None:
        return JpegFrame.of(self.data(IMAGE))

    @cached_property
    def video(self) -> Video:
        """Video whose frames are decoded by their numbers. Declare `frames.json` in `Transform.members` as well.

        Shards of other programs have no `frames.json`: the video's packets are read instead.
        """
        if self.raw.file is not None:
            return Video.of(self.raw.file, self._decoding.max_pixels)
        self.data(VIDEO)
        if VIDEO_FACTS not in self.raw.members and (self._declared is None or VIDEO_FACTS in self._declared):
            return Video.of(self.data(VIDEO), self._decoding.max_pixels)
        facts = self._once("video facts", VIDEO_FACTS, lambda data: VideoFacts.from_json(parse_json(data)))
        return Video(self.data(VIDEO), facts, self._decoding.max_pixels)

    def data(self, name: str) -> bytes:
        """Return the bytes of a member.

        Raises:
            BrokenSample: if the sample has no such member.
            LookupError: if the transform does not declare it, so that it was not read.
        """
        if self._declared is not None and name not in self._declared:
            raise LookupError(f"member {name} is used but not declared in Transform.members ({sorted(self._declared)})")
        return self.raw.member(name)

    def label_map(self, name: str) -> Tensor:
        """Return a label map, (H, W) uint8 or uint16; see `decode_label_map`."""
        return self._once("label map", name, lambda data: decode_label_map(data, self._decoding.max_pixels))

    def array(self, name: str) -> np.ndarray:
        """Return the array in an npy member. Arrays of Python objects, which are pickles, are rejected."""
        return self._once("array", name, _array)

    def json(self, name: str = "json") -> Any:
        """Return the content of a JSON member."""
        return self._once("json", name, parse_json)

    def objects(self, name: str = MEMBER) -> Objects:
        """Return the boxes, categories, and masks of the sample; see `data/objects.py`."""
        return self._once("objects", name, lambda data: Objects.from_json(parse_json(data)))

    def text(self, name: str = "txt") -> str:
        """Return the content of a UTF-8 text member."""
        return self._once("text", name, lambda data: data.decode())

    def _once(self, kind: str, name: str, decoder: Callable[[bytes], Any]) -> Any:
        if (kind, name) not in self._decoded:
            data = self.data(name)
            try:
                self._decoded[kind, name] = decoder(data)
            except BrokenSample as error:
                raise BrokenSample(f"{name}: {error.reason}") from None
            except (UnreadableError, UnicodeDecodeError) as error:
                raise BrokenSample(f"{name}: {error}") from None
        return self._decoded[kind, name]


def _array(data: bytes) -> np.ndarray:
    try:
        found = np.load(io.BytesIO(data), allow_pickle=False)
    except Exception as error:  # numpy may raise anything on damaged bytes
        raise BrokenSample(f"it is not an array that can be read ({str(error) or type(error).__name__:.100})") from None
    if not isinstance(found, np.ndarray):  # np.load also opens archives (npz)
        raise BrokenSample("it is an archive (npz), not an array (npy)")
    return found
