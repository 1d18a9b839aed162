"""One video made ready for a shard: probed, decoded once, and if wanted encoded again."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path

from swinv2_train.data.card_videos import VideoCounts
from swinv2_train.data.errors import BrokenSample
from swinv2_train.data.image_files import extension
from swinv2_train.data.labels import known_labels
from swinv2_train.data.pack_entries import Entry, Source
from swinv2_train.data.pack_members import StoredFile
from swinv2_train.data.pack_writer import Packed, PackOptions
from swinv2_train.data.raw_sample import RawSample
from swinv2_train.data.samples import TEXT_EXTENSIONS, VIDEO
from swinv2_train.data.video import check_frames, probe
from swinv2_train.data.video_facts import MEMBER, VideoFacts
from swinv2_train.data.video_statistics import frame_facts
from swinv2_train.data.video_writing import encode, join_frames

_EXTENSIONS = {"mp4": ("mp4", "m4v", "mov"), "matroska": ("mkv", "webm"), "avi": ("avi",)}
"""Extensions of the members with a container format. A file keeps its own if it is one of them."""


class PrepareVideos:
    """Runs in the worker processes: probe, decode, and encode.

    Args:
        scratch: folder for files that are made on the way into a shard.
    """

    def __init__(self, source: Source, options: PackOptions, scratch: Path) -> None:
        self._source, self._options, self._scratch = replace(source, entries=[], refused=(), notes=()), options, scratch
        assert options.video is not None
        self._video = options.video

    def __call__(self, entry: Entry) -> Packed:
        made: list[Path] = []
        try:
            return self._packed(entry, made)
        except (OSError, BrokenSample) as error:
            for path in made:
                path.unlink(missing_ok=True)
            reason = error.reason if isinstance(error, BrokenSample) else error.strerror or str(error)
            return Packed(entry, broken=reason)

    def _packed(self, entry: Entry, made: list[Path]) -> Packed:
        stored, own, texts = self._stored(entry, made)
        limit = self._options.max_pixels
        facts = probe(stored.path, limit)
        if facts.frames < 2:
            raise BrokenSample("it has a single frame")
        if self._video.short_side is None:
            suffix = _suffix(facts, own)
            check_frames(stored.path, facts, limit)
        else:
            stored, facts = self._encoded(entry, stored, facts, made)
            suffix = "mp4"
        image = frame_facts(stored.path, facts, suffix, limit)
        numbers, problem = known_labels(RawSample(entry.key, suffix, texts, VIDEO))
        record = json.dumps(facts.to_json(), separators=(",", ":")).encode()
        members = {suffix: stored, MEMBER: record, **texts}
        return Packed(entry, members, image, numbers, label_problem=problem, video=VideoCounts.of(facts))

    def _stored(self, entry: Entry, made: list[Path]) -> tuple[StoredFile, str, dict[str, bytes]]:
        """Return the file of a video, its extension, and its text members.

        The frames of a folder, and a video in a shard, get a temporary file, so that no video waits in memory.
        """
        if self._source.shards is not None:
            assert entry.index is not None
            raw = self._source.shards.read(entry.index, (VIDEO, *TEXT_EXTENSIONS))
            place = self._new_file(entry, "copy", made)
            place.write_bytes(raw.data)
            return StoredFile.of(place, temporary=True), raw.extension.rpartition(".")[2], raw.texts
        texts = self._source.texts(entry)
        if entry.frames:
            place = self._new_file(entry, "mov", made)
            join_frames(Path(entry.path), place, self._video.fps, self._options.max_pixels)
            return StoredFile.of(place, temporary=True), "mov", texts
        return StoredFile.of(Path(entry.path)), extension(entry.path), texts

    def _encoded(
        self, entry: Entry, stored: StoredFile, facts: VideoFacts, made: list[Path]
    ) -> tuple[StoredFile, VideoFacts]:
        """Encode a video, and return the new file and its facts."""
        place, limit = self._new_file(entry, "mp4", made), self._options.max_pixels
        assert self._video.short_side is not None
        sizes = {"short_side": self._video.short_side, "keyframes": self._video.keyframes}
        encode(stored.path, facts, place, max_pixels=limit, **sizes)
        if stored.temporary:
            stored.path.unlink()
        found = probe(place, limit)
        if found.frames != facts.frames:
            raise BrokenSample(f"it has {facts.frames:,} frames, and {found.frames:,} after encoding")
        # MP4 stores durations in the order of decoding: at a variable rate, that of the last frame is another one's.
        return StoredFile.of(place, temporary=True), replace(found, seconds=facts.seconds)

    def _new_file(self, entry: Entry, suffix: str, made: list[Path]) -> Path:
        place = self._scratch / f"{hashlib.sha256(os.fsencode(entry.key)).hexdigest()[:32]}.{suffix}"
        made.append(place)
        return place


def _suffix(facts: VideoFacts, own: str) -> str:
    """Return the extension of the member that contains a video: its own one, if that fits its content."""
    names = _EXTENSIONS.get(facts.container)
    if names is None:
        raise BrokenSample(f"its format {facts.container} cannot be read at random: add --short-side to encode it")
    return own if own in names else names[0]
