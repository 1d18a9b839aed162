"""Grouping of the members of a tar into samples, as in `webdataset`, and counts of what is not read.

A sample is a run of neighboring members whose names agree up to the first dot of the base name.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from swinv2_train.config.image_formats import FIRST_EXTENSIONS
from swinv2_train.data.image_files import ARRAY_EXTENSIONS, image_extensions, is_array
from swinv2_train.data.objects import MEMBER as OBJECTS
from swinv2_train.data.tar import Member
from swinv2_train.data.video_facts import MEMBER as VIDEO_FACTS

IMAGE, VIDEO = "image", "video"
TEXT_EXTENSIONS = ("cls", "txt", "json")
VIDEO_EXTENSIONS = ("mp4", "m4v", "mov", "mkv", "webm", "avi")
_PICKLES = ("pkl", "pickle", "pyd", "pt", "pth", "joblib")
"""Formats that can execute code when they are read. They are never indexed, so no transform can ask for them."""
_NAME = re.compile(r"^((?:.*/|)[^.]+)[.]([^/]*)$", re.DOTALL)  # webdataset's split into key and extension
_OTHER_TYPE = "other type"
REASONS = {
    "apart": "the other members of its key are elsewhere in the tar, so it is not part of the sample; sort the members "
    "(tar --sort=name)",
    "no image": "its key has no image",
    "no video": "its key has no video",
    "shared key": "another image of the same key is read; a key ends at the first dot of a file name, so rename files "
    "such as img_0.25.jpg",
    "dotted label": "its name has a dot before the extension, so it is not read as a label; a key ends at the first "
    "dot",
    "repeated name": "a later member of the sample has the same name and extension",
    "repeated key": "an earlier sample has the same key (both are read)",
    "link": "links are not followed; pack the files themselves (tar --dereference --hard-dereference)",
    "special": "it is not a regular file",
    "hidden": "hidden files, such as the ._ files of macOS, are not read",
    "no extension": "the name has no extension",
    _OTHER_TYPE: "members of this type are not read",
}
"""Why members are not read, by kind."""


@dataclass
class LeftOut:
    """Members of one or several tars that are not read: counts and the first name, by kind (see `REASONS`)."""

    counts: dict[str, tuple[int, str]] = field(default_factory=dict)

    def add(self, kind: str, name: str, count: int = 1) -> None:
        before, first = self.counts.get(kind, (0, name))
        self.counts[kind] = (before + count, first)

    def remove(self, member: str) -> None:
        """Forget the members of a type, such as seg.png, that a task or command reads after all."""
        self.counts.pop(f"{_OTHER_TYPE}:{member}", None)

    def other_members(self) -> list[str]:
        """Return the last extensions of the members that are not read because of their type."""
        return [kind.partition(":")[2] for kind in self.counts if kind.startswith(f"{_OTHER_TYPE}:")]

    def merge(self, other: LeftOut, where: str) -> None:
        """Add the counts of another tar; `where` is prepended to the names in it."""
        for kind, (count, first) in other.counts.items():
            self.add(kind, f"{where}/{first}", count)

    @property
    def lost(self) -> bool:
        """True if anything is missing that a reader of the tar may expect."""
        return any(not kind.startswith(_OTHER_TYPE) for kind in self.counts)

    def lines(self, *, lost_only: bool = False) -> list[str]:
        """Return a line for each kind, with its count, reason and first name."""
        lines = []
        for kind in sorted(self.counts, key=lambda kind: (list(REASONS).index(kind.partition(":")[0]), kind)):
            name, _, extension = kind.partition(":")
            if lost_only and name == _OTHER_TYPE:
                continue
            count, first = self.counts[kind]
            what = f"{count:,} member{'s' if count > 1 else ''}{f' .{extension}' if extension else ''}"
            lines.append(f"{what}: {REASONS[name]} (first: {first})")
        return lines

    @property
    def images(self) -> bool:
        """True if any of the members is an image."""
        return any(kind == "shared key" or is_image(kind.partition(":")[2]) for kind in self.counts)

    def to_json(self) -> list[list[object]]:
        return [[kind, count, first] for kind, (count, first) in self.counts.items()]

    @classmethod
    def from_json(cls, content: object) -> LeftOut | None:
        """Return the counts that `to_json` wrote; None for anything else, such as an index of an earlier version."""
        if not isinstance(content, list):
            return None
        found = cls()
        for item in content:
            match item:
                case [str(kind), int(count), str(first)] if kind.partition(":")[0] in REASONS:
                    found.counts[kind] = (count, first)
                case _:
                    return None
        return found


@dataclass(frozen=True)
class Scope:
    """Content of an index: which keys of a tar are samples, and which of their members it has."""

    main: str = IMAGE
    """A key is a sample if it has a member of this kind: image or video."""
    all_members: bool = False
    """False: only images and plain texts, as in every index that earlier versions wrote."""

    @property
    def extensions(self) -> tuple[str, ...]:
        """Extensions of the main members."""
        return VIDEO_EXTENSIONS if self.main == VIDEO else image_extensions()

    def contains(self, extension: str) -> bool:
        """Return whether members with this extension, such as seg.png, are indexed."""
        if self.all_members:
            return _last(extension) not in _PICKLES
        return is_image(extension) or extension in TEXT_EXTENSIONS

    def is_main(self, extension: str) -> bool:
        """Return whether members with this extension can be the main member of a sample."""
        return _last(extension) in self.extensions

    def mains(self, extensions: Sequence[str]) -> list[str]:
        """Return those of the extensions in a tar that are of main members: of images, or without any, of arrays."""
        found = [extension for extension in extensions if self.is_main(extension)]
        return found if found or self.main != IMAGE else [one for one in extensions if is_array(one)]

    @lru_cache(maxsize=256)  # noqa: B019 (there are few scopes, and all samples of a shard have the same extensions)
    def main_extension(self, extensions: tuple[str, ...]) -> str | None:
        """Return the extension of a sample's main member: a plain `jpg` before a dotted `seg.png`; None without one.

        Of several images, the first is chosen, after the formats that earlier versions read. An array of NumPy is the
        image of a sample without any.
        """
        return min(self.mains(extensions), key=self._rank, default=None)

    def _rank(self, extension: str) -> tuple[int, bool]:
        return extension.count("."), self.main == IMAGE and _last(extension) not in FIRST_EXTENSIONS


@dataclass
class MemberGroup:
    """Members of one key."""

    key: str
    members: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Extension -> (offset, size) of the members that are indexed."""
    arrays: dict[str, tuple[int, int]] = field(default_factory=dict)
    """The same of arrays of NumPy, which are indexed if the tar has no images."""
    names: dict[str, str] = field(default_factory=dict)
    """Extension -> name, of all members."""


def is_image(extension: str) -> bool:
    """Return whether members with this extension, such as png or left.png, are read as images."""
    return _last(extension) in image_extensions()


class SampleGroups:
    """Samples of one tar, collected member by member with `add`; `finish` returns those with a main member."""

    def __init__(self, scope: Scope) -> None:
        self.left_out = LeftOut()
        self._scope = scope
        self._samples: list[MemberGroup] = []

    def add(self, member: Member) -> None:
        """Take the next member of the tar."""
        base = member.name.rpartition("/")[2]
        # webdataset gives `x/._a.jpg` the key `x/`; macOS never stores an image there.
        match = None if base.startswith("._") else _NAME.match(member.name)
        if not member.regular:
            if member.kind != b"5" and not member.name.endswith("/"):  # folders hold nothing themselves
                self.left_out.add("link" if member.kind in (b"1", b"2") else "special", member.name)
            return
        if match is None:
            self.left_out.add("hidden" if base.startswith(".") else "no extension", member.name)
            return
        key, extension = match[1], match[2].lower()
        if not self._samples or self._samples[-1].key != key:
            self._samples.append(MemberGroup(key))
        sample = self._samples[-1]
        if extension in sample.names:
            self.left_out.add("repeated name", sample.names[extension])
        sample.names[extension] = member.name
        if self._scope.contains(extension):
            sample.members[extension] = (member.offset, member.size)
        elif self._scope.main == IMAGE and is_array(extension):
            sample.arrays[extension] = (member.offset, member.size)

    def drop_last(self, name: str) -> None:
        """Forget the sample that member `name` belongs to: the tar ends inside this member."""
        match = _NAME.match(name)
        if match is not None and self._samples and self._samples[-1].key == match[1]:
            self._samples.pop()

    def have(self, main: str) -> bool:
        """Return whether any sample has a member that is read as an image, or as a video."""
        scope = Scope(main)
        return any(scope.is_main(extension) for sample in self._samples for extension in sample.names)

    def finish(self) -> list[MemberGroup]:
        """Return the samples with a main member, in order, and complete `left_out`."""
        scope, main = self._scope, self._scope.extensions
        names = itertools.chain.from_iterable(sample.members for sample in self._samples)
        if scope.main == IMAGE and not any(map(scope.is_main, names)):
            main = ARRAY_EXTENSIONS
            for sample in self._samples:
                sample.members.update(sample.arrays)
        chosen_of = [self._chosen(sample, main) for sample in self._samples]
        complete = {sample.key for sample, chosen in zip(self._samples, chosen_of, strict=True) if chosen is not None}
        seen: set[str] = set()
        kept = []
        for sample, chosen in zip(self._samples, chosen_of, strict=True):
            if chosen is None:
                for name in sample.names.values():
                    self.left_out.add("apart" if sample.key in complete else f"no {scope.main}", name)
                continue
            if sample.key in seen:
                self.left_out.add("repeated key", sample.names[chosen])
            seen.add(sample.key)
            for kind, extension in _unread(sample, chosen, main):
                self.left_out.add(kind, sample.names[extension])
            kept.append(sample)
        return kept

    def _chosen(self, sample: MemberGroup, main: Sequence[str]) -> str | None:
        """Return the extension of the main member of a sample; None if it has none of those that the tar has."""
        return self._scope.main_extension(tuple(sorted(one for one in sample.members if _last(one) in main)))


def _unread(sample: MemberGroup, chosen: str, main: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield (kind, extension) of the members of a sample that are read only if a transform asks for them, or never.

    Args:
        main: extensions of main members.
    """
    for extension in sample.names:
        prefix, _, last = extension.rpartition(".")
        if extension == chosen or extension in TEXT_EXTENSIONS:
            continue
        if extension in main or (last in main and "." in chosen):
            yield "shared key", extension
        elif last == "cls" or (last in TEXT_EXTENSIONS and prefix == chosen.rpartition(".")[0]):
            yield "dotted label", extension
        else:  # such as seg.png next to jpg
            known = extension in (OBJECTS, VIDEO_FACTS) or (
                last in image_extensions() and not any(character.isdecimal() for character in prefix)
            )
            yield f"{_OTHER_TYPE}:{extension if known else last}", extension


def _last(extension: str) -> str:
    return extension.rpartition(".")[2]


def choice_lines(several: Mapping[tuple[str, ...], int], chosen: str | None, scope: Scope) -> list[str]:
    """Return a line for each set of images that samples have, with the one that is read and how to read another."""
    lines = []
    for extensions, count in sorted(several.items()):
        read = chosen or scope.main_extension(tuple(extensions))
        others = [extension for extension in extensions if extension != read]
        what = f"{count:,} sample{'s' if count > 1 else ''} with several {scope.main}s ({', '.join(extensions)})"
        another = f"; to read another: data.image={others[0]}" if scope.main == IMAGE else ""
        lines.append(f"{what}: {read} is read{another}")
    return lines
