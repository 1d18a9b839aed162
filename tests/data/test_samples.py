"""Members of a tar that are read, and the count of those that are not."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pytest

from swinv2_train.data.index import ShardIndex, build_index
from swinv2_train.data.samples import REASONS, LeftOut, Scope
from tests.data.samples import write_tar

LINKS = {"hard": tarfile.LNKTYPE, "soft": tarfile.SYMTYPE, "pipe": tarfile.FIFOTYPE, "folder": tarfile.DIRTYPE}


def index_of(path: Path) -> ShardIndex:
    with path.open("rb") as file:
        return build_index(path.name, file.fileno())


@pytest.mark.parametrize(
    ("names", "keys", "left_out"),
    [
        ("a.jpg a.cls b.jpg b.cls", "a b", {}),
        ("a.jpg b.jpg a.cls b.cls", "a b", {"apart": (2, "a.cls")}),
        ("a.cls b.cls a.jpg b.jpg", "a b", {"apart": (2, "a.cls")}),
        ("a.jpg b.cls c.txt c.json", "a", {"no image": (3, "b.cls")}),
        ("img_0.25.jpg img_0.50.jpg img_0.75.jpg", "img_0", {"shared key": (2, "img_0.50.jpg")}),
        ("a.v1.jpg a.v1.cls", "a", {"dotted label": (1, "a.v1.cls")}),
        ("a.v1.jpg a.v1.json", "a", {"dotted label": (1, "a.v1.json")}),
        ("a.jpg a.jpg.cls", "a", {"dotted label": (1, "a.jpg.cls")}),
        ("a.tif a.png", "a", {"shared key": (1, "a.tif")}),
        ("a.jpg a.cls a.jpg a.cls", "a", {"repeated name": (2, "a.jpg")}),
        ("a.jpg a.JPG", "a", {"repeated name": (1, "a.jpg")}),
        ("a.jpg b.jpg a.jpg", "a b a", {"repeated key": (1, "a.jpg")}),
        ("._a.jpg a.jpg ._a.cls a.cls .DS_Store", "a", {"hidden": (3, "._a.jpg")}),
        ("./._a.jpg ./a.jpg ./a.cls", "./a", {"hidden": (1, "./._a.jpg")}),
        ("./._x x/._a.jpg x/a.jpg x/._a.cls x/a.cls __MACOSX/._a.jpg", "x/a", {"hidden": (4, "./._x")}),
        ("README a.jpg", "a", {"no extension": (1, "README")}),
        ("a.jpg hard.jpg soft.jpg pipe.jpg", "a", {"link": (2, "hard.jpg"), "special": (1, "pipe.jpg")}),
        ("folder a.jpg", "a", {}),
        ("a.jpg a.seg.png b.jpg b.seg.png", "a b", {"other type:seg.png": (2, "a.seg.png")}),
        ("a.jpg a.npy a.depth.npy", "a", {"other type:npy": (2, "a.npy")}),
        ("a.jpg a.meta.json", "a", {"other type:json": (1, "a.meta.json")}),
        ("a.jfif b.BMP c.gif d.jpe e.avif f.jp2", "a b c d e f", {}),
        ("a.heic b.jpg", "b", {"no image": (1, "a.heic")}),
        ("v1.0/a.jpg v1.0/a.cls", "v1.0/a", {}),
    ],
)
def test_members_that_are_not_read_are_counted(
    tmp_path: Path, names: str, keys: str, left_out: dict[str, tuple[int, str]]
) -> None:
    path = tmp_path / "s.tar"
    with tarfile.open(path, "w") as tar:
        for name in names.split():
            info = tarfile.TarInfo(name)
            info.type = LINKS.get(name.partition(".")[0], tarfile.REGTYPE)
            info.size = 3 if info.isreg() else 0
            info.linkname = "a.jpg"
            tar.addfile(info, io.BytesIO(b"abc"))
    index = index_of(path)
    assert index.keys == keys.split()
    assert index.left_out is not None
    assert index.left_out.counts == left_out
    assert index.left_out.lost == any(not kind.startswith("other type") for kind in left_out)
    lines = index.left_out.lines()
    assert len(lines) == len(left_out)
    assert all(f"(first: {first})" in "".join(lines) for _, first in left_out.values())
    assert LeftOut.from_json(index.left_out.to_json()) == index.left_out


def test_of_repeated_members_the_last_is_read(tmp_path: Path) -> None:
    """As tar itself does, so that `tar -r` replaces a member."""
    path = write_tar(tmp_path / "s.tar", [("a.jpg", b"old"), ("a.jpg", b"newer")])
    offset, size = index_of(path).members(0)["jpg"]
    assert path.read_bytes()[offset : offset + size] == b"newer"


def test_a_format_of_a_later_version_does_not_replace_the_image_that_was_read() -> None:
    assert Scope().main_extension(("gif", "jpg")) == "jpg"
    assert Scope().main_extension(("bmp", "seg.png")) == "bmp"
    assert Scope().main_extension(("jpg", "png")) == "jpg"


@pytest.mark.parametrize("content", [None, {}, [["nonsense", 1, "a"]], [["link", "1", "a"]], [["link", 1]], [3], "x"])
def test_counts_of_other_versions_are_unknown(content: object) -> None:
    assert LeftOut.from_json(content) is None
    assert all(REASONS)


def test_a_tar_that_ends_inside_a_hidden_member_keeps_the_sample_before(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "s.tar", [("a.jpg", b"abc"), ("._b.jpg", bytes(2000))])
    os.truncate(path, 1024 + 512 + 100)
    index = index_of(path)
    assert index.keys == ["a"]
    assert index.truncated
