"""The walk through folders: links, hidden and system folders, other files, and what cannot be read."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from swinv2_train.data.image_files import IMAGE_EXTENSIONS, scan_folder
from swinv2_train.data.pack import pack
from swinv2_train.data.pack_sources import open_source
from swinv2_train.data.pack_writer import PackOptions
from swinv2_train.interop.images import find_images
from tests.data.samples import encoded, pixels


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")


def found(root: Path) -> list[str]:
    """Relative paths; the walks of packing and of prediction must agree."""
    names = [os.path.relpath(path, root) for path in scan_folder(root).images]
    assert names == sorted(names)
    assert names == [os.path.relpath(path, root) for path in find_images([str(root)]).files]
    packed = open_source(str(root), classes=False, seed=0)
    assert names == sorted(os.path.relpath(entry.path, root) for entry in packed.entries)
    return names


def test_all_formats_are_found_in_any_case(tmp_path: Path) -> None:
    names = [f"{number}.{name}" for number, name in enumerate(IMAGE_EXTENSIONS)]
    touch(tmp_path, *names, "a.JPG", "b.JFif", "c.v1.Gif", "jpg", ".hidden.jpg", "._d.jpg")
    assert found(tmp_path) == sorted([*names, "a.JPG", "b.JFif", "c.v1.Gif"])
    assert scan_folder(tmp_path).unread == {"": 1}


def test_system_folders_are_ignored(tmp_path: Path) -> None:
    ignored = ["@eaDir", ".thumbnails", "__MACOSX", "#recycle", "$RECYCLE.BIN", "lost+found", ".git"]
    touch(tmp_path, "cat/a.jpg", "cat/@eaDir/a.jpg/SYNO.jpg", *(f"{name}/b.jpg" for name in ignored))
    touch(tmp_path, "cat/Thumbs.db", ".DS_Store", "desktop.ini")
    assert found(tmp_path) == ["cat/a.jpg"]
    assert open_source(str(tmp_path), classes=True, seed=0).class_names == ["cat"]
    scan = scan_folder(tmp_path)
    assert (scan.unread, scan.lost, scan.subfolders) == ({}, False, ["cat"])


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    root, pool = tmp_path / "root", tmp_path / "pool"
    touch(pool, "seal/s.jpg", "loose.jpg")
    touch(root, "cat/a.jpg", "cat/deep/b.jpg")
    (root / "seal").symlink_to(pool / "seal")
    (root / "kitten").symlink_to(root / "cat")
    (root / "cat" / "c.jpg").symlink_to(pool / "loose.jpg")
    (root / "cat" / "up").symlink_to(root)
    (root / "cat" / "deep" / "self").symlink_to(".")
    (root / "cat" / "loop.jpg").symlink_to("loop.jpg")
    (pool / "seal" / "back").symlink_to(pool)
    expected = ["cat/a.jpg", "cat/c.jpg", "cat/deep/b.jpg", "cat/loop.jpg"]
    expected += [name.replace("cat", "kitten") for name in expected] + ["seal/back/loose.jpg", "seal/s.jpg"]
    assert found(root) == expected
    assert open_source(str(root), classes=True, seed=0).class_names == ["cat", "kitten", "seal"]


def test_other_files_are_counted_by_suffix(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "b.txt", "c.TXT", "sub/d.heic", "README")
    scan = scan_folder(tmp_path)
    assert scan.unread == {"txt": 2, "heic": 1, "": 1}
    assert scan.notes() == [f"{tmp_path}: files that are not read as images: 1 .heic, 2 .txt, 1 without a suffix"]
    assert scan.lost
    (tmp_path / "sub" / "d.heic").unlink()
    assert not scan_folder(tmp_path).lost  # notes and lists next to images are usual
    os.mkfifo(tmp_path / "pipe.jpg")
    scan = scan_folder(tmp_path)
    assert scan.lost
    assert scan.images == [f"{tmp_path}/a.jpg"]
    assert "1 names of images are not regular files" in scan.notes()[-1]


def test_folders_that_cannot_be_listed_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "a.jpg", "secret/b.jpg")
    listed = os.scandir

    def refuse(path: str) -> object:
        if os.path.basename(path) == "secret":
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", refuse)
    images = find_images([str(tmp_path)])
    assert images.lost
    assert images.notes == [f"{tmp_path}/secret cannot be read (Permission denied)"]
    assert [path.name for path in images.files] == ["a.jpg"]
    with pytest.raises(ValueError, match=r"secret cannot be read \(Permission denied\): change its permissions"):
        open_source(str(tmp_path), classes=True, seed=0)


def test_the_folder_for_the_results_is_not_searched(tmp_path: Path) -> None:
    touch(tmp_path, "cat/a.jpg", "out/sheet.png", "out/train-000000.tar")
    scan = scan_folder(tmp_path, skip=[tmp_path / "out"])
    assert (scan.images, scan.unread, scan.subfolders) == ([f"{tmp_path}/cat/a.jpg"], {}, ["cat"])


def test_a_folder_of_nothing_names_what_it_has(tmp_path: Path) -> None:
    touch(tmp_path, "a.heic", "b.heic")
    with pytest.raises(ValueError, match=r"holds no image.*2 \.heic"):
        find_images([str(tmp_path)])
    with pytest.raises(ValueError, match=r"holds no images.*2 \.heic"):
        open_source(str(tmp_path), classes=False, seed=0)


def test_images_next_to_packed_shards_are_named(tmp_path: Path) -> None:
    touch(tmp_path, "out/a.png", "out/new.png")
    (tmp_path / "out" / "a.png").write_bytes(encoded(pixels(0)))
    pack(str(tmp_path / "out"), tmp_path / "out", PackOptions())
    source = open_source(str(tmp_path / "out"), classes=False, seed=0)
    assert len(source.entries) == 1
    assert source.lost
    assert "its shards are packed, and not its 2 image files, such as" in source.notes[-1]
    for image in ("a.png", "new.png"):
        (tmp_path / "out" / image).unlink()
    assert not open_source(str(tmp_path / "out"), classes=False, seed=0).lost


def test_shards_may_go_between_their_images(tmp_path: Path) -> None:
    """Also the second time, when they are there."""
    touch(tmp_path, "cat/a.jpg")
    for _ in range(2):
        source = open_source(str(tmp_path), classes=True, seed=0, out=tmp_path)
        assert [entry.key for entry in source.entries] == ["cat/a"]
        assert (source.notes, source.lost) == ((), False)
        touch(tmp_path, "train-000000.tar", "train-000000.tar.index.jsonl", "train.dataset.json")
