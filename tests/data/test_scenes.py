"""The scripts that write images with label maps or objects: scenes of digits, and an image of nuclei."""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import tifffile
from PIL import Image

SCRIPTS = Path(__file__).parents[2] / "scripts"
PACKAGES = ("mlxtend", "skimage", "sklearn")


def script(name: str) -> ModuleType:
    """A script as a module; it may import its neighbors."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPTS))
        return importlib.import_module(name)


@pytest.fixture(scope="module")
def scenes() -> ModuleType:
    if not all(importlib.util.find_spec(package) for package in PACKAGES):
        pytest.skip("the packages with the digits and photographs are not installed")
    return script("scenes")


@pytest.mark.slow
def test_scenes_and_held_out_scenes_share_no_digit_and_no_photograph(
    scenes: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn: dict[str, set[bytes]] = {}
    grounds: dict[str, set[int]] = {}
    real = scenes.write

    def write(
        folder: Path, classes: list[np.ndarray], photographs: list[Image.Image], count: int, *, seed: int
    ) -> None:
        drawn[folder.name] = {digit.tobytes() for digits in classes for digit in digits}
        grounds[folder.name] = {hash(photograph.tobytes()) for photograph in photographs}
        real(folder, classes, photographs, count, seed=seed)

    rng = np.random.default_rng(0)
    made = [np.pad(rng.integers(0, 256, (300, 12, 12), np.uint8), ((0, 0), (8, 8), (8, 8))) for _ in range(10)]
    monkeypatch.setattr(scenes, "read_digits", lambda path: made)
    monkeypatch.setattr(scenes, "write", write)
    monkeypatch.setattr(scenes, "TRAIN_SCENES", 6)
    monkeypatch.setattr(scenes, "HELD_OUT_SCENES", 4)
    for dest in ("a", "b"):
        monkeypatch.setattr(sys, "argv", ["scenes.py", str(tmp_path / dest)])
        scenes.main()
    files = {p.relative_to(tmp_path / "a"): p.read_bytes() for p in (tmp_path / "a").rglob("*.*")}
    assert files == {p.relative_to(tmp_path / "b"): p.read_bytes() for p in (tmp_path / "b").rglob("*.*")}
    assert len(set(files.values())) == len(files) == 2 * (6 + 4) + 1
    assert {name: len(each) for name, each in drawn.items()} == {
        "train": len(scenes.SHOWN) * scenes.TRAIN_DIGITS,
        "heldout": len(scenes.SHOWN) * scenes.HELD_OUT_DIGITS,
    }
    assert not drawn["train"] & drawn["heldout"]
    assert not grounds["train"] & grounds["heldout"]
    assert files[Path("classes.txt")].decode().split() == list(scenes.NAMES)
    for image in (tmp_path / "a").glob("*/images/*.jpg"):
        labels = Image.open(image.parents[1] / "labels" / f"{image.stem}.png")
        assert (labels.mode, labels.size) == ("P", Image.open(image).size)
        found = set(np.unique(np.asarray(labels)).tolist())
        assert 0 in found
        assert found <= {*range(len(scenes.NAMES)), scenes.IGNORED}
    assert f"{tmp_path / 'a' / 'heldout'}: 4 scenes" in capsys.readouterr().out


def test_scenes_with_objects_have_the_digits_and_photographs_of_those_with_label_maps(
    scenes: ModuleType, detect_scenes: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert detect_scenes.parts is scenes.parts
    ink = np.full((1, 28, 28), 255, np.uint8)
    grounds = [[Image.new("RGB", (300, 200), color)] for color in ("red", "blue")]
    parts = [(name, [ink, ink], ground) for name, ground in zip(("train", "heldout"), grounds, strict=True)]
    monkeypatch.setattr(detect_scenes, "parts", lambda: iter(parts))
    monkeypatch.setattr(detect_scenes, "TRAIN_SCENES", 3)
    monkeypatch.setattr(detect_scenes, "HELD_OUT_SCENES", 2)
    written = dict(detect_scenes.write_folders(tmp_path))
    assert [text.split(" with ")[0] for text in written.values()] == ["3 scenes", "2 scenes"]
    for (folder, text), channel in zip(written.items(), (0, 2), strict=True):
        content = json.loads((tmp_path / folder / "objects.json").read_text())
        assert text.endswith(f" with {len(content['annotations'])} digits")
        images = [Image.open(tmp_path / folder / "images" / each["file_name"]) for each in content["images"]]
        assert all(np.asarray(image)[0, 0].argmax() == channel for image in images)


def test_the_stroke_is_labeled_and_its_blurred_border_ignored(scenes: ModuleType) -> None:
    ink = np.zeros((28, 28), np.uint8)
    ink[4:24, 10:18] = 255
    black = Image.new("RGB", (300, 200))
    image, labels = scenes.scene([(2, ink), (4, ink)], black, np.random.default_rng(1))
    light, classes = np.asarray(image).max(axis=2), np.asarray(labels)
    assert set(np.unique(classes).tolist()) == {0, 2, 4, 255}
    assert light[np.isin(classes, (2, 4))].min() > 60
    assert (light[classes == 0] < 60).all()
    for number in (2, 4):
        rows, columns = (np.ptp(axis) + 1 for axis in np.nonzero(classes == number))
        assert 20 / 28 * 36 - 2 <= rows <= 60
        assert columns < rows


@pytest.fixture(scope="module")
def detect_scenes(scenes: ModuleType) -> ModuleType:
    return script("detect_scenes")


def test_scenes_have_exact_boxes_and_masks_and_some_no_digit(detect_scenes: ModuleType, tmp_path: Path) -> None:
    from pycocotools.coco import COCO

    ink = np.zeros((28, 28), np.uint8)
    ink[4:24, 10:18] = 255
    black = Image.new("RGB", (300, 200))
    written = [
        detect_scenes.write(tmp_path / name, [ink[None]] * 2, [black], 9, seed=seed)
        for name, seed in (("a", 3), ("b", 3), ("c", 4))
    ]
    texts = [(tmp_path / name / "objects.json").read_text() for name in "abc"]
    assert texts[0] == texts[1] != texts[2]
    coco = COCO(str(tmp_path / "a" / "objects.json"))
    assert len(coco.anns) == written[0] > 8
    assert coco.getAnnIds(imgIds=[detect_scenes.WITHOUT_DIGITS]) == []
    assert [category["name"] for category in coco.dataset["categories"]] == ["0", "1"]
    for image in coco.dataset["images"]:
        light = np.asarray(Image.open(tmp_path / "a" / "images" / image["file_name"])).max(axis=2) > 90
        masks = np.zeros(light.shape, int)
        for each in coco.loadAnns(coco.getAnnIds(imgIds=[image["id"]])):
            mask = coco.annToMask(each)
            rows, columns = np.nonzero(mask)
            left, top, width, height = each["bbox"]
            assert (rows.min(), columns.min(), np.ptp(rows) + 1, np.ptp(columns) + 1) == (top, left, height, width)
            assert each["area"] == mask.sum()
            masks += mask
        assert masks.max(initial=0) <= 1
        assert (light == (masks > 0)).mean() > 0.95


def test_every_digit_is_dealt_once_before_any_is_repeated(scenes: ModuleType) -> None:
    classes = [np.full((3, 28, 28), 1, np.uint8), np.full((2, 28, 28), 2, np.uint8)]
    dealt = scenes.deal(classes, np.random.default_rng(0))
    for _ in range(2):
        turn = [next(dealt)[0] for _ in range(5)]
        assert sorted(turn) == [1, 1, 1, 2, 2]


def test_a_digit_goes_where_no_other_is(scenes: ModuleType) -> None:
    taken = np.zeros((scenes.SIDE, scenes.SIDE), bool)
    taken[:, : scenes.SIDE // 2] = True
    needed = np.ones((40, 40), bool)
    _, columns = scenes.free_place(taken, needed, np.random.default_rng(0))
    assert columns.start >= scenes.SIDE // 2
    taken[:] = True
    assert scenes.free_place(taken, needed, np.random.default_rng(0)) is None


def test_a_constant_guess_has_the_share_of_its_class_over_all_classes() -> None:
    assert script("segment_result").constant_guess({0: 90, 1: 6, 2: 4}) == pytest.approx(0.9 / 3)


@pytest.fixture(scope="module")
def nuclei() -> ModuleType:
    return script("nuclei")


def test_nuclei_have_a_border_on_both_sides(nuclei: ModuleType) -> None:
    instances = np.zeros((6, 8), np.uint16)
    instances[1:5, 1:4] = 7
    instances[1:5, 4:8] = 300
    assert nuclei.semantic(instances).tolist() == [
        [0, 2, 2, 2, 2, 2, 2, 2],
        [2, 2, 2, 2, 2, 2, 2, 2],
        [2, 2, 1, 2, 2, 1, 1, 1],
        [2, 2, 1, 2, 2, 1, 1, 1],
        [2, 2, 2, 2, 2, 2, 2, 2],
        [0, 2, 2, 2, 2, 2, 2, 2],
    ]


def test_the_right_quarter_of_the_nuclei_is_held_out(
    nuclei: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    image = np.arange(64 * 80, dtype=np.uint16).reshape(64, 80)
    for name, pixels in ((nuclei.IMAGE, image), (nuclei.INSTANCES, (image // 1000).astype(np.uint16))):
        (tmp_path / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        tifffile.imwrite(tmp_path / "source" / name, pixels)
    monkeypatch.setattr(sys, "argv", ["nuclei.py", str(tmp_path / "source"), str(tmp_path / "out")])
    nuclei.main()
    halves = [tifffile.imread(tmp_path / "out" / part / "images" / "nuclei.tif") for part in ("train", "heldout")]
    assert np.array_equal(np.concatenate(halves, axis=1), image)
    assert [half.shape for half in halves] == [(64, 60), (64, 20)]
    labels = tifffile.imread(tmp_path / "out" / "train" / "labels" / "nuclei.tif")
    assert (labels.dtype, labels.shape, set(np.unique(labels).tolist())) == (np.uint16, (64, 60), {0, 1, 2})
    assert "60 x 64 pixels" in capsys.readouterr().out

    monkeypatch.setattr(sys, "argv", ["nuclei.py", str(tmp_path / "no"), str(tmp_path / "out")])
    with pytest.raises(SystemExit, match=r"nuclei.py: .*img2d.tif"):
        nuclei.main()
