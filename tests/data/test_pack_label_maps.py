"""Label maps are packed with their images: in one form, once, and what cannot be used is named."""

from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import replace
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from swinv2_train.cli.data_display import inspection_lines
from swinv2_train.data.card import Card
from swinv2_train.data.card_label_maps import LabelMapFacts
from swinv2_train.data.errors import DataError
from swinv2_train.data.inspect import inspect
from swinv2_train.data.label_image import decode_label_map
from swinv2_train.data.label_pairs import LabelMaps
from swinv2_train.data.label_rules import LabelRules, read_rules
from swinv2_train.data.pack import PackOptions, PackReport, pack
from swinv2_train.data.pack_sources import open_source
from swinv2_train.data.shards import ShardSet
from swinv2_train.data.tiling import Tiling
from tests.data.label_maps import NAMES, labels, png, tiff, write_pairs
from tests.data.packed import SMALL, open_set, tars
from tests.data.samples import encoded, pixels, write_tar
from tests.data.test_label_smoothing import digits, ordered, resized

RULES = LabelRules(NAMES, 255)


def packed(
    images: Path | str,
    maps: Path | str,
    out: Path,
    options: PackOptions = SMALL,
    rules: LabelRules = RULES,
    **how: object,
) -> PackReport:
    source = open_source(str(images), classes=False, seed=options.seed, out=out, labels=LabelMaps(str(maps), rules))
    return pack(source, out, options, **how)  # type: ignore[arg-type]


def maps_of(shards: ShardSet) -> dict[str, np.ndarray]:
    samples = [shards.read(index, ("seg.png",)) for index in range(shards.num_samples)]
    return {sample.key: decode_label_map(sample.members["seg.png"]).numpy() for sample in samples}


def test_a_folder_of_label_maps_is_packed_in_one_form(tmp_path: Path) -> None:
    """Gray and palette PNG and TIFF, of 8 and 16 bits: all become gray PNGs of 8 bits, and the card counts them."""
    images, maps = write_pairs(tmp_path)
    stored = {number: labels(number) for number in range(6)}
    stored[2][0, :5] = 255
    for number, data in {
        1: png(stored[1], "P"),
        2: png(stored[2].astype(np.uint16)),
        3: tiff(stored[3], compression="zlib"),
        4: tiff(stored[4].astype(np.uint16)),
    }.items():
        (maps / "a" / f"{number}.png").unlink()
        (maps / "a" / f"{number}.{'tif' if number > 2 else 'png'}").write_bytes(data)
    report = packed(images, maps, tmp_path / "out")
    assert (report.complete, report.broken, report.warnings, report.unlabeled) == (True, [], [], 0)
    shards = open_set(tmp_path / "out")
    found = maps_of(shards)
    assert {key: array.tolist() for key, array in found.items()} == {f"a/{n}": stored[n].tolist() for n in range(6)}
    first = shards.read(0, ("image", "seg.png", "json")).members
    assert list(first) == ["image", "seg.png"]
    assert first["seg.png"][24:26] == b"\x08\0"  # 8 bits, gray
    everything = np.concatenate([array.ravel() for array in stored.values()])
    for card in (report.cards["train"], shards.card, inspect(shards).card):
        assert card is not None
        facts = card.label_maps
        assert facts is not None
        assert (facts.ignore, facts.ignored, card.num_classes, card.class_names) == (255, 5, 3, list(NAMES))
        assert facts.pixels == {k: int((everything == k).sum()) for k in range(3)}
        assert facts.images == {k: sum((array == k).any() for array in stored.values()) for k in range(3)}
        assert not card.class_counts
    again = Card.from_json(json.loads(json.dumps(shards.card.to_json())))  # type: ignore[union-attr]
    assert again == shards.card
    rows = dict(again.rows())
    assert rows["class 1, land"].endswith("% of the labeled pixels, in 6 samples")
    assert "label_maps" not in Card().to_json()


def test_shards_are_resumed_and_follow_changed_label_maps(tmp_path: Path) -> None:
    images, maps = write_pairs(tmp_path, 12)
    report = packed(images, maps, tmp_path / "one", eval_share=0.3)
    packed(images, maps, tmp_path / "two", eval_share=0.3)
    assert tars(tmp_path / "one") == tars(tmp_path / "two")
    (tmp_path / "two" / "train-000001.tar").unlink()
    resumed = packed(images, maps, tmp_path / "two", eval_share=0.3)
    assert (resumed.num_reused, resumed.num_shards) == (report.num_shards - 1, report.num_shards)
    assert tars(tmp_path / "one") == tars(tmp_path / "two")
    assert resumed.cards["train"].label_maps == report.cards["train"].label_maps
    changed = labels(0)
    changed[:2] = 2
    (maps / "a" / "0.png").write_bytes(png(changed))  # a label map that changed is packed again
    after = packed(images, maps, tmp_path / "two", eval_share=0.3)
    assert after.num_reused < after.num_shards
    assert maps_of(open_set(tmp_path / "two"))["a/0"].tolist() == changed.tolist()


@pytest.mark.parametrize("tile", [None, Tiling(16)])
def test_a_command_that_packs_nothing_leaves_earlier_shards(tmp_path: Path, tile: Tiling | None) -> None:
    """A wrong list of classes rejects every label map: the shards, their manifest, and their samples stay."""
    images, maps = write_pairs(tmp_path, 4)
    options = replace(SMALL, tile=tile)
    first = packed(images, maps, tmp_path / "out", options, eval_share=0.4)
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    with pytest.raises(DataError, match="none of the"):
        packed(images, maps, tmp_path / "out", options, rules=LabelRules(("only",), 254), eval_share=0.4)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before | {
        "broken.jsonl": (tmp_path / "out" / "broken.jsonl").read_bytes()
    }
    again = packed(images, maps, tmp_path / "out", options, eval_share=0.4)
    assert again.num_reused == first.num_shards


def test_copies_of_an_image_stay_on_one_side(tmp_path: Path) -> None:
    images, maps = write_pairs(tmp_path, 10)
    for number in range(5, 10):
        (images / "a" / f"{number}.png").write_bytes((images / "a" / f"{number - 5}.png").read_bytes())
    report = packed(images, maps, tmp_path / "out", eval_share=0.4)
    sides = [set(maps_of(open_set(tmp_path / "out", f"{split}-*.tar"))) for split in report.cards]
    assert all({f"a/{n}", f"a/{n + 5}"} <= sides[0] or {f"a/{n}", f"a/{n + 5}"} <= sides[1] for n in range(5))


def test_maps_shrink_with_their_images_to_values_that_they_have(tmp_path: Path) -> None:
    images, maps = write_pairs(tmp_path, 3)
    packed(images, maps, tmp_path / "out", replace(SMALL, resize=16))
    shards = open_set(tmp_path / "out")
    assert {array.shape for array in maps_of(shards).values()} == {(12, 16)}
    assert inspect(shards).complete
    assert {int(value) for array in maps_of(shards).values() for value in array.ravel()} == {0, 1, 2}


def test_shards_are_packed_again_with_their_label_maps(tmp_path: Path) -> None:
    images, maps = write_pairs(tmp_path)
    first = packed(images, maps, tmp_path / "out")
    again = pack(str(tmp_path / "out"), tmp_path / "again", PackOptions(max_count=4))
    assert again.complete
    assert again.notes == []
    before, after = open_set(tmp_path / "out"), open_set(tmp_path / "again")
    assert {k: v.tolist() for k, v in maps_of(before).items()} == {k: v.tolist() for k, v in maps_of(after).items()}
    assert again.cards["train"].label_maps == first.cards["train"].label_maps
    assert after.card is not None
    assert after.card.class_names == list(NAMES)
    with pytest.raises(DataError, match="packed already, with 255 for pixels without a class: omit --labels"):
        packed(tmp_path / "out", "seg.png", tmp_path / "twice", rules=LabelRules(NAMES, 255, zero_is_ignore=True))


def test_shards_of_others_are_packed_by_the_name_of_the_member(tmp_path: Path) -> None:
    members = [
        (f"{n}.{extension}", data)
        for n in range(3)
        for extension, data in (("jpg", encoded(pixels(n, 24, 32))), ("mask.png", png(labels(n) + 1)))
    ]
    tar = write_tar(tmp_path / "foreign.tar", members)
    report = packed(tar, "mask.png", tmp_path / "out", rules=LabelRules(NAMES, None, zero_is_ignore=True))
    assert report.complete
    assert maps_of(open_set(tmp_path / "out"))["2"].tolist() == labels(2).tolist()
    with pytest.raises(DataError, match=r"none of the 3 images .* first: .*/0: .* it has no member seg.png"):
        packed(tar, "seg.png", tmp_path / "none")


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_lists_name_images_and_label_maps(tmp_path: Path, kind: str) -> None:
    _images, _maps = write_pairs(tmp_path, 4)
    rows = [(f"images/a/{n}.png", f"labels/a/{n}.png") for n in (0, 1)]
    rows += [("images/a/2.png", ""), ("images/a/3.png", "labels/none.png")]
    path = tmp_path / f"list.{kind}"
    with path.open("w", newline="") as file:
        if kind == "csv":
            csv.writer(file).writerows([("image", "mask"), *rows])
        else:
            file.writelines(json.dumps({"image": a, "mask": b or None}) + "\n" for a, b in rows)
    report = packed(path, "mask", tmp_path / "out")
    assert set(maps_of(open_set(tmp_path / "out"))) == {"images/a/0", "images/a/1"}
    reasons = {Path(line["path"]).name: line["reason"] for line in report.broken}
    assert reasons["2.png"].startswith("it has no label map (line ")
    assert "none.png: the file does not exist (line " in reasons["3.png"]
    assert not report.complete
    with pytest.raises(DataError, match=r"--labels seg" if kind == "csv" else "none of its 4 images has a label map"):
        packed(path, "seg", tmp_path / "other")


def turned(array: np.ndarray, orientation: int) -> bytes:
    made = Image.Exif()
    made[0x0112] = orientation
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "JPEG", exif=made)
    return buffer.getvalue()


@pytest.mark.parametrize("tile", [None, Tiling(20)])
def test_maps_of_rotated_photographs_follow_the_image(tmp_path: Path, tile: Tiling | None) -> None:
    """A map in the orientation of the stored pixels is turned as they are; one that is upright stays."""
    images, maps = write_pairs(tmp_path, 3)
    stored = labels(3, 24, 32)
    upright = np.ascontiguousarray(np.rot90(stored, -1))
    for number, array in enumerate((stored, upright, stored)):
        (images / "a" / f"{number}.png").write_bytes(turned(pixels(0, 24, 32), 6))
        (maps / "a" / f"{number}.png").write_bytes(png(array))
    (images / "a" / "2.png").write_bytes(tiff(pixels(0, 24, 32)[..., 0], extratags=[(274, "H", 1, 6, True)]))
    assert packed(images, maps, tmp_path / "out", replace(SMALL, tile=tile)).complete
    found = maps_of(open_set(tmp_path / "out"))
    if tile is None:
        assert all(found[f"a/{n}"].tolist() == upright.tolist() for n in range(3))
    else:
        corners = {f"a/{n}_y{top:05d}_x{left:05d}": (top, left) for n in range(3) for top in (0, 12) for left in (0, 4)}
        assert found.keys() == corners.keys()
        for key, (top, left) in corners.items():
            assert found[key].tolist() == upright[top : top + 20, left : left + 20].tolist()


GOOD = labels(0)
COLOR = np.dstack([GOOD * 100] * 3)
SMOOTH = np.arange(24 * 32).reshape(24, 32).astype(np.uint8)
BAD: dict[str, tuple[bytes, str]] = {
    "a value outside": (
        png(GOOD + 1),
        r"value 3 \([\d,]+ pixels\) not among the classes 0 to 2; if 0 means no class",
    ),
    "another ignored value": (png(np.where(GOOD == 1, 254, GOOD).astype(np.uint8)), r"value 254 \("),
    "negative as unsigned": (png(np.where(GOOD == 1, np.uint16(65535), GOOD.astype(np.uint16))), r"value 65535 \("),
    "smoothed": (png(SMOOTH), "it has 252 values that are not classes .* nearest neighbor"),
    "another size": (png(GOOD[:20]), "it is 32 x 20, and the image is 32 x 24: both must have the same size"),
    "rotated": (png(np.ascontiguousarray(GOOD.T)), "it is 24 x 32, and the image is 32 x 24"),
    "color": (png(COLOR), "png: it is RGB and a label map has one index per pixel: .*--colors TABLE"),
    "color with alpha": (png(np.dstack([COLOR, COLOR[..., :1]])), "it is RGBA"),
    "gray with alpha": (png(COLOR[..., :2]), "it is gray with alpha"),
    "color TIFF": (tiff(COLOR, photometric="rgb"), "tiff: it is RGB with 3 values per pixel"),
    "JPEG": (encoded(COLOR[..., :1]), "jpeg: a label map must be PNG or TIFF"),
    "JPEG in a TIFF": (tiff(np.pad(GOOD, 8), compression="jpeg"), r"lossy \(JPEG\)"),
    "floats": (tiff(GOOD.astype(np.float32)), "its samples are float32: convert to 8 or 16 bit unsigned integers"),
    "signed": (tiff(GOOD.astype(np.int16)), "its samples are int16"),
    "several pages": (tiff(np.stack([GOOD] * 3)), "it has 3 pages, and a label map has one"),
    "inverted": (tiff(GOOD, photometric="miniswhite"), r"inverted \(MINISWHITE\)"),
    "cut off": (png(GOOD)[:-20], "png: it ends"),
    "damaged": (png(GOOD).replace(b"IDATx", b"IDATy"), "the checksum of a chunk IDAT is wrong"),
    "empty": (b"", "it is empty"),
    "text": (b"0 0 1 1", "it is neither PNG nor TIFF"),
}


@pytest.fixture(scope="module")
def bad_report(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, str], dict[str, str]]:
    """One packing of all bad label maps next to a good one: the reason, and the name of the label map, by image."""
    root = tmp_path_factory.mktemp("bad")
    images, maps = write_pairs(root, 1)
    files = {}
    for number, (case, (data, _)) in enumerate(BAD.items(), 1):
        files[case] = f"{maps}/a/bad{number}.png"
        Path(files[case]).write_bytes(data)
        (images / "a" / f"bad{number}.png").write_bytes(png(pixels(number, 24, 32)))
    report = packed(images, maps, root / "out")
    assert report.cards["train"].num_samples == 1
    reasons = {line["path"]: line["reason"] for line in report.broken}
    return {case: reasons[file.replace("labels", "images")] for case, file in files.items()}, files


@pytest.mark.parametrize("case", BAD)
def test_bad_label_maps_are_one_sentence_that_names_the_file(
    bad_report: tuple[dict[str, str], dict[str, str]], case: str
) -> None:
    reason, file = (part[case] for part in bad_report)
    start = f"its label map {file}: "
    assert reason.startswith(start)
    assert "\n" not in reason
    assert re.search(BAD[case][1], reason.removeprefix(start)), reason


def test_colors_are_read_by_a_table(tmp_path: Path) -> None:
    """RGB, opaque RGBA, palettes, and TIFF; indices and transparent pixels are refused."""
    images, maps = write_pairs(tmp_path, 6)
    colors = np.array([[0, 0, 128], [40, 7, 128], [80, 14, 128]], np.uint8)  # those of the palette
    painted = colors[GOOD]
    opaque = np.dstack([painted, np.full(GOOD.shape, 255, np.uint8)])
    clear = opaque.copy()
    clear[0, 0, 3] = 0
    files = [png(painted), png(opaque), png(GOOD, "P"), tiff(painted, photometric="rgb"), png(GOOD), png(clear)]
    for number, data in enumerate(files):
        (maps / "a" / f"{number}.png").write_bytes(data)
    (tmp_path / "colors.csv").write_text(
        "r,g,b,class\n" + "".join(f"{r},{g},{b},{name}\n" for (r, g, b), name in zip(colors, NAMES, strict=True))
    )
    rules = read_rules(None, tmp_path / "colors.csv", None, zero_is_ignore=False)
    report = packed(images, maps, tmp_path / "out", rules=rules)
    assert {key: array.tolist() for key, array in maps_of(open_set(tmp_path / "out")).items()} == {
        f"a/{n}": GOOD.tolist() for n in range(4)
    }
    reasons = {Path(line["path"]).name: line["reason"] for line in report.broken}
    assert "it is gray or has 8 bits per channel, and --colors is for palettes and RGB" in reasons["4.png"]
    assert "it is transparent in parts" in reasons["5.png"]


def test_maps_that_look_interpolated_are_packed_with_a_warning(tmp_path: Path) -> None:
    """Whole or in tiles too small to show it, when the shards are found finished, and by inspecting them."""
    images, maps = write_pairs(tmp_path, 0)
    smooth = np.minimum(resized(digits()[:, :120], 1.5, Image.Resampling.BILINEAR), 10)
    files = {"0.png": png(smooth), "1.tif": tiff(smooth, rowsperstrip=16), "2.png": png(np.ascontiguousarray(smooth.T))}
    files["3.png"] = png(digits())
    for name, data in files.items():
        array = digits() if name == "3.png" else smooth
        photograph = turned(pixels(0, *array.shape), 6 if name == "2.png" else 1)
        (images / name).with_suffix(".jpg").write_bytes(photograph)
        (maps / name).write_bytes(data)
    rules = LabelRules(tuple(f"c{number}" for number in range(11)))
    expected = r"3 label maps look as if they were resized with interpolation \((.*)\): .* nearest neighbor, or ignore"
    for tile in (None, Tiling(32)):
        out = tmp_path / f"out-{tile is None}"
        for _ in range(2):
            report = packed(images, maps, out, replace(SMALL, tile=tile), rules)
            (warning,) = report.warnings
            match = re.match(expected, warning)
            assert match, warning
            assert sorted(match[1].split(", ")) == [f"{maps}/{name}" for name in sorted(files) if name != "3.png"]
            assert (report.complete, report.broken) == (True, [])
        assert report.num_reused == report.num_shards
    found = inspect(open_set(tmp_path / "out-True"))
    assert found.complete
    assert {name.rpartition("/")[2] for name in found.smooth} == {"0.seg.png", "1.seg.png", "2.seg.png"}
    assert any(re.match(f"warning: {expected}", line) for line in inspection_lines(found))
    again = pack(str(tmp_path / "out-True"), tmp_path / "again", SMALL)
    assert again.complete
    assert len(again.smooth) == 3


def test_ordered_classes_are_packed(tmp_path: Path) -> None:
    """Heights, fractions of trees, and distances follow each other as interpolated values do, so none is refused."""
    images, maps = write_pairs(tmp_path, 0)
    cases = {f"{number}": array for number, array in enumerate(ordered().values())}
    for name, array in cases.items():
        (images / f"{name}.png").write_bytes(png(pixels(0, *array.shape)))
        (maps / f"{name}.png").write_bytes(png(array))
    report = packed(images, maps, tmp_path / "out", rules=LabelRules(tuple(map(str, range(61)))))
    assert (report.complete, report.cards["train"].num_samples) == (True, len(cases))
    found = maps_of(open_set(tmp_path / "out"))
    assert all((found[name] == array).all() for name, array in cases.items())
    assert set(report.smooth) == {f"{maps}/{name}.png" for name in cases}  # the reason why it is only a warning


def test_other_versions_pack_only_label_maps_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, maps = write_pairs(tmp_path, 3)
    for tile in (None, Tiling(16)):
        options, plain, pairs = replace(SMALL, tile=tile), tmp_path / f"plain{tile}", tmp_path / f"pairs{tile}"
        with monkeypatch.context() as earlier:
            earlier.setattr("swinv2_train.data.pack_writer._LABELS_VERSION", 1)
            pack(str(images), plain, options)
            packed(images, maps, pairs, options)
        report = pack(str(images), plain, options)
        assert report.num_reused == report.num_shards
        assert packed(images, maps, pairs, options).num_reused == 0


def test_maps_with_many_classes_have_16_bits(tmp_path: Path) -> None:
    images, maps = write_pairs(tmp_path, 1)
    wide = np.arange(24 * 32, dtype=np.uint16).reshape(24, 32)
    rules = LabelRules(tuple(map(str, range(768))), 9999)
    wide[0, 0] = 9999
    (maps / "a" / "0.png").write_bytes(imagecodecs.png_encode(wide))
    facts = packed(images, maps, tmp_path / "out", rules=rules).cards["train"].label_maps
    assert facts is not None
    assert (facts.ignore, facts.ignored, len(facts.pixels)) == (65535, 1, 767)
    found = maps_of(open_set(tmp_path / "out"))["a/0"]
    assert (found.dtype, found[0, 0], found[-1, -1]) == (np.uint16, 65535, 767)
    few = packed(*write_pairs(tmp_path / "few", 1), tmp_path / "few-out").cards["train"]
    with pytest.raises(DataError, match=r"with 65535 and with 255 .* cannot be read together"):
        Card.merged([Card(label_maps=facts), few])


def test_damaged_counts_of_a_card_are_refused() -> None:
    whole = Card(label_maps=LabelMapFacts.of(GOOD, 255)).to_json()
    for damage in ({"ignore": "x"}, {"pixels": {"a": 1}}, {"images": [1]}, {"ignored": -1}):
        with pytest.raises(ValueError, match="label_maps cannot be read"):
            Card.from_json(whole | {"label_maps": whole["label_maps"] | damage})
    many = Card(class_names=[f"c{number}" for number in range(40)], label_maps=LabelMapFacts.of(GOOD, 255))
    rows = dict(many.rows())
    assert rows["10 other classes"] == "0.00% of the labeled pixels"
    assert rows["classes without a pixel"] == "37: c3, c4, c5, c6, c7, c8, c9, c10, c11, c12, ..."


def test_tiff_overviews_are_not_pages(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer) as file:
        file.write(GOOD, photometric="minisblack", metadata=None)
        file.write(GOOD[::2, ::2], photometric="minisblack", subfiletype=1, metadata=None)
    assert decode_label_map(buffer.getvalue()).tolist() == GOOD.tolist()
