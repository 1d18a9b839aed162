from __future__ import annotations

from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from PIL import Image

from swinv2_train.data.card_label_maps import LabelMapFacts
from swinv2_train.data.contact_sheet import contact_sheet
from swinv2_train.data.errors import DataError
from swinv2_train.data.inspect import inspect
from swinv2_train.data.label_pairs import LabelMaps
from swinv2_train.data.label_rules import LabelRules
from swinv2_train.data.overlays import LabelOverlay
from swinv2_train.data.pack import PackOptions, pack
from swinv2_train.data.pack_sources import open_source
from swinv2_train.data.shards import ShardSet
from swinv2_train.lettering import fitted, font
from tests.data.label_maps import NAMES, labels, png, write_pairs
from tests.data.samples import jpeg, pixels, write_folder, write_shards, write_tar


@pytest.mark.parametrize("workers", [0, 2])
def test_foreign_shards_are_checked_whole(tmp_path: Path, workers: int) -> None:
    paths = write_shards(tmp_path / "d", [20, 9], broken=[4, 25])
    with open(paths[1], "r+b") as file:
        file.truncate(Path(paths[1]).stat().st_size - 12000)
    shards = ShardSet.open(str(tmp_path / "d"), tmp_path / "cache")
    seen: list[tuple[int, int]] = []
    found = inspect(shards, workers=workers, progress=lambda done, total: seen.append((done, total)))
    assert [name for name, _ in found.broken] == ["part-000000.tar/img00004", "part-000001.tar/img00025"]
    assert [shard for shard, _ in found.truncated] == [paths[1]]
    assert found.card.num_samples == shards.num_samples - 2
    assert found.card.broken == 2
    assert seen == [(n + 1, shards.num_samples) for n in range(shards.num_samples)]


def test_the_card_counted_again_is_the_card_of_the_packer(tmp_path: Path) -> None:
    pack(str(write_folder(tmp_path / "src", 12)), tmp_path / "out", PackOptions(max_count=5), classes=True)
    shards = ShardSet.open(str(tmp_path / "out"), tmp_path / "cache")
    assert shards.card is not None
    ours, theirs = inspect(shards).card.to_json(), shards.card.to_json()
    for key in ("num_samples", "bytes", "formats", "channels", "bits", "short_sides"):
        assert ours[key] == theirs[key]
    assert ours["classes"]["counts"] == theirs["classes"]["counts"] == {"0": 8, "1": 4}
    assert ours["statistics"]["3"]["mean"] == pytest.approx(theirs["statistics"]["3"]["mean"])


def test_images_that_are_in_two_splits_are_named(tmp_path: Path) -> None:
    write_tar(tmp_path / "d" / "train-000000.tar", [("a.jpg", jpeg(0)), ("b.jpg", jpeg(1)), ("c.jpg", jpeg(0))])
    write_tar(tmp_path / "d" / "train-000001.tar", [("d.jpg", jpeg(2)), ("e.jpg", jpeg(1)), ("x.jpg", b"broken")])
    write_tar(tmp_path / "d" / "eval-000000.tar", [("f.jpg", jpeg(2)), ("g.jpg", jpeg(3)), ("y.jpg", b"broken")])
    trained = inspect(ShardSet.open(f"{tmp_path}/d/train-*.tar", tmp_path / "cache"))
    assert (trained.copies, trained.across) == (2, [])
    both = inspect(ShardSet.open(f"{tmp_path}/d/*.tar", tmp_path / "cache"))
    assert (both.copies, both.across) == (3, [("eval-000000.tar/f", "train-000001.tar/d")])
    both.broken.clear()
    assert not both.complete
    both.across.clear()
    assert both.complete


def test_a_contact_sheet_shows_the_samples(tmp_path: Path) -> None:
    red = np.zeros((40, 40, 3), np.uint8)
    red[..., 0] = 200
    members = [
        ("red.png", imagecodecs.png_encode(red)),
        ("wide.png", imagecodecs.png_encode(pixels(1, 30, 60, 3, np.uint16))),
        ("bands.tif", imagecodecs.png_encode(pixels(1, 30, 60, 1))),
        ("broken.jpg", b"\xff\xd8\xff"),
        ("größe/ελ.jpg", jpeg(1)),
    ]
    shards = ShardSet.open(str(write_tar(tmp_path / "s.tar", members)), tmp_path / "cache")
    path = tmp_path / "new" / "sheet.png"
    assert contact_sheet(shards, path, num_samples=48) == 5
    sheet = np.array(Image.open(path))
    assert sheet.shape == (204, 848, 3)
    assert sheet[8 + 80, 8 + 80].tolist() == [200, 0, 0]
    frame = sheet[8, 8 + 3 * 168 + 80].tolist()
    assert frame == [255, 0, 0]  # the broken one is framed, not skipped
    assert contact_sheet(shards, path, num_samples=2) == 2
    with pytest.raises(DataError, match=r"sheet\.nosuchformat: the name must end in"):
        contact_sheet(shards, tmp_path / "sheet.nosuchformat", num_samples=2)


def test_the_font_of_names_has_the_letters_of_most_alphabets() -> None:
    letters = font(11)
    box = letters.getmask("\U0010fffd").getbbox(), letters.getlength("\U0010fffd")
    for sign in "aß日éłαжא…":
        shape = letters.getmask(sign).getbbox(), letters.getlength(sign)
        assert (shape == box) == (sign == "日"), sign
    assert fitted("größe/élan", letters, 200) == "größe/élan"
    for keep_end in (False, True):
        short = fitted("größe/" * 20, letters, 80, keep_end=keep_end)
        assert letters.getlength(short) <= 80
        assert short.strip("…") in "größe/" * 20
        assert short.startswith("…") == keep_end


def test_label_maps_of_others_are_checked_and_drawn(tmp_path: Path) -> None:
    """By the name of their member: each must be there, be readable, and have the size of its image."""
    members = [
        (f"{n}.{kind}", data) for n in range(4) for kind, data in (("jpg", jpeg(n)), ("mask.png", png(labels(n))))
    ]
    members[3] = ("1.mask.png", png(labels(0)[:20]))
    members[5] = ("2.mask.png", png(pixels(0)))
    shards = ShardSet.open(str(write_tar(tmp_path / "s.tar", [*members[:6], members[6]])), tmp_path / "cache")
    found = inspect(shards, labels="mask.png")
    assert [(name[-1], reason) for name, reason in found.label_problems] == [
        ("1", "mask.png is 32 x 20, and the image is 32 x 24"),
        ("2", found.label_problems[1][1]),
        ("3", "it has no label map mask.png"),
    ]
    assert found.label_problems[1][1].startswith("mask.png: png: it is RGB")
    assert not found.complete
    assert (found.choices, found.left_out.counts) == ([], {})
    assert found.labels_row() == "1 of 4 samples have a label map"
    assert found.card.label_maps is not None
    assert found.card.label_maps.pixels == LabelMapFacts.of(labels(0), 255).pixels
    assert inspect(shards).card.label_maps is None
    colors = {0: (200, 0, 0), 1: (0, 200, 0), 2: (0, 0, 200)}
    paint = (
        np.vectorize(lambda k: colors[k][0]),
        np.vectorize(lambda k: colors[k][1]),
        np.vectorize(lambda k: colors[k][2]),
    )
    overlay = LabelOverlay(
        "mask.png", 255, lambda array: np.dstack([one(array) for one in paint]).astype(np.uint8), ["sea"]
    )
    contact_sheet(shards, tmp_path / "plain.png", num_samples=4)
    contact_sheet(shards, tmp_path / "drawn.png", num_samples=4, overlays=[overlay])
    plain, drawn = (np.array(Image.open(tmp_path / f"{name}.png")).astype(int) for name in ("plain", "drawn"))
    assert overlay.drawn == {0, 1, 2}
    assert drawn.shape[0] > plain.shape[0]
    top, left = 8 + 20 + 6 * 5, 8 + 12 * 5  # the square of class 1, shrunk with the image, which is centered in height
    corner = drawn[8 + 20 + 5 * 20, 8 + 2] - plain[8 + 20 + 5 * 20, 8 + 2] * 0.45
    assert np.abs(corner - 0.55 * np.array(colors[0])).max() < 2
    square = drawn[top, left] - plain[top, left] * 0.45
    assert np.abs(square - 0.55 * np.array(colors[1])).max() < 2


def test_pixels_without_a_class_are_not_an_error(tmp_path: Path) -> None:
    marked = labels(0).copy()
    marked[:3] = 255
    members = [("0.jpg", jpeg(0)), ("0.mask.png", png(marked))]
    found = inspect(ShardSet.open(str(write_tar(tmp_path / "s.tar", members)), tmp_path / "cache"), labels="mask.png")
    assert found.label_problems == []
    assert found.card.label_maps is not None
    assert found.card.label_maps.ignored == marked[:3].size


@pytest.mark.parametrize(("dtype", "assumed"), [(np.uint8, 255), (np.uint16, 65535)])
def test_the_value_without_a_class_of_label_maps_of_others_is_named_or_assumed(
    tmp_path: Path, dtype: type, assumed: int
) -> None:
    stored = labels(0).astype(dtype)
    stored[0, :7], stored[1, :5], stored[2, :3] = 255, np.iinfo(dtype).max, 9
    members = [("0.jpg", jpeg(0)), ("1.jpg", jpeg(1)), ("1.mask.png", png(stored))]
    shards = ShardSet.open(str(write_tar(tmp_path / "s.tar", members)), tmp_path / "cache")
    for given, expected in ((None, assumed), (9, 9), (255, 255)):
        found = inspect(shards, labels="mask.png", ignore=given)
        facts = found.card.label_maps
        assert facts is not None
        assert found.label_maps is not None
        assert (facts.ignore, facts.ignored) == (expected, int((stored == expected).sum()))
        bits = np.dtype(dtype).itemsize * 8
        text = f"assumed for label maps of {bits} bits; --ignore VALUE sets another"
        assert found.label_maps.assumed == (text if given is None else "")
    with pytest.raises(DataError, match=r"--ignore 9 is for label maps: add --labels MEMBER"):
        inspect(shards, ignore=9)


def test_packed_label_maps_are_compared_with_the_card(tmp_path: Path) -> None:
    """Of two sets that were packed with other lists of classes, the card of the other does not hide a wrong value."""
    images, maps = write_pairs(tmp_path, 3)
    rules = LabelRules(NAMES, 255)
    source = open_source(str(images), classes=False, seed=0, labels=LabelMaps(str(maps), rules))
    pack(source, tmp_path / "out", PackOptions())
    shards = ShardSet.open(str(tmp_path / "out"), tmp_path / "cache")
    assert shards.card is not None
    assert inspect(shards).complete
    shards.card.class_names = ["sea", "land"]
    found = inspect(shards)
    assert len(found.label_problems) == 3
    assert "seg.png has values that are not classes: 2 (" in found.label_problems[0][1]
    with pytest.raises(DataError, match=r"--labels mask.png: the label maps of these shards are their members seg.png"):
        inspect(shards, labels="mask.png")
    with pytest.raises(DataError, match=r"--ignore 7: in the label maps of these shards 255 means no class"):
        inspect(shards, ignore=7)
