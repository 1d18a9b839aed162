"""Names of label maps lead to their images by one constant difference, and nothing is guessed."""

from __future__ import annotations

from collections.abc import Collection

import pytest

from swinv2_train.data.errors import DataError
from swinv2_train.data.label_affixes import affix_of

PAIRED: dict[str, tuple[dict[str, str], str]] = {
    "numbers of other lengths": ({"img_1": "1", "img_11": "11"}, "img_ at the beginning of images"),
    "an ending": ({"img_1": "img_1_mask", "img_11": "img_11_mask"}, "_mask at the end of label maps"),
    "two endings": ({"7_sat": "7_mask", "x_1_sat": "x_1_mask"}, "_mask instead of _sat at the end of images"),
    "Cityscapes": (
        {f"ulm/ulm_{n}_leftImg8bit": f"ulm/ulm_{n}_gtFine_labelTrainIds" for n in range(3)},
        "_gtFine_labelTrainIds instead of _leftImg8bit at the end of images",
    ),
    "nnU-Net": ({"a_0000": "a", "b_0000": "b"}, "_0000 at the end of images"),
    "both ends": (
        {"im-1.x": "gt-1", "im-2.x": "gt-2"},
        "gt- instead of im- at the beginning of images and .x at the end",
    ),
    "an image without a number": ({"img": "mask", "img_1": "mask_1"}, "mask instead of img at the beginning"),
    "no separator": ({"001": "001mask", "002": "002mask"}, "mask at the end of label maps"),
    "names that repeat themselves": ({"1_1": "1_1_m", "1_1_1": "1_1_1_m"}, "_m at the end of label maps"),
    "a number as ending": ({"1": "1_1", "11": "11_1"}, "_1 at the end of label maps"),
    "one image": ({"img_1": "img_1_mask"}, "_mask at the end of label maps"),
    "one image with a longer name": ({"img_1_rgb": "img_1"}, "_rgb at the end of images"),
    "one image in two ways": ({"1": "1_1"}, "_1 at the end of label maps"),
    "equal names in folders": ({"a/x": "a/x_mask", "b/x": "b/x_mask"}, "_mask at the end of label maps"),
}


@pytest.mark.parametrize("case", PAIRED)
def test_one_constant_difference_pairs_all_images(case: str) -> None:
    pairs, text = PAIRED[case]
    maps = [*pairs.values(), "zz", "other/7_mask"]
    affix = affix_of(pairs, maps, "")
    assert {image: affix.label(image) for image in pairs} == pairs
    assert str(affix).startswith(text)


REFUSED: dict[str, tuple[list[str], list[str]]] = {
    "numbers that begin alike": (["img_1", "img_11"], ["x_3", "x_31"]),
    "one image and a longer number": (["img_1"], ["img_11"]),
    "one image and another ending": (["scan_2024"], ["scan_mask"]),
    "one image and a longer word": (["cat"], ["catalog"]),
    "another number at the end": (["a_1", "b_1"], ["a_2", "b_2"]),
    "another number that begins alike": (["0001_2", "0002_2"], ["0001_22", "0002_22"]),
    "tens": (["1", "2", "3"], ["10", "20", "30"]),
    "times": (["2024-01-01T00", "2024-01-02T00"], ["2024-01-01T12", "2024-01-02T12"]),
    "most images without a label map": (["a", "b", "c"], ["a_mask"]),
    "another folder": (["a", "b"], ["x/a_mask", "x/b_mask"]),
    "words that end alike": (["beach", "peach"], ["reach", "teach"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_names_that_could_mean_another_image_are_refused(case: str) -> None:
    images, maps = REFUSED[case]
    with pytest.raises(
        DataError, match=r"which image: they differ \(x and y, for example\).* pack a list \(.csv\) with"
    ):
        affix_of(images, maps, "x and y")


def test_two_kinds_of_label_maps_are_refused() -> None:
    maps = [f"{n}_{kind}" for n in (1, 2) for kind in ("color", "labelIds")]
    with pytest.raises(DataError, match=r"2 of 2 images can .*, such as 1_rgb to 1_color and to 1_labelIds: move"):
        affix_of(["1_rgb", "2_rgb"], maps, "")
    assert affix_of(["1_rgb", "2_rgb"], maps[:-1], "").label("2_rgb") == "2_color"


@pytest.mark.parametrize(
    ("count", "missing"),
    [(30, [0]), (30, [3, 9, 17]), (30, [10, 11, 12]), (1000, range(0, 1000, 25)), (1000, range(90))],
)
def test_images_without_a_label_map_do_not_hide_the_difference(count: int, missing: Collection[int]) -> None:
    images = [f"{n:02d}_sat" for n in range(count)]
    maps = [f"{n:02d}_mask" for n in range(count) if n not in missing]
    affix = affix_of(images, set(maps), "")
    assert [affix.label(image) for image in images] == [f"{n:02d}_mask" for n in range(count)]
    assert str(affix_of(images, [*maps, "01_edge", "02_edge"], "")) == str(affix)


def test_images_that_the_best_difference_leaves_out_are_named() -> None:
    images = [f"{n}_sat" for n in range(30)]
    with pytest.raises(
        DataError, match=r"with _mask instead of _sat at the end of images, 4 of 30 images have none \(5_sat, 6_sat, "
    ):
        affix_of(images, [f"{n}_mask" for n in range(30) if n not in (5, 6, 7, 8)], "")
    others = [f"{n}_edge" for n in range(10)]
    with pytest.raises(DataError, match=r"9 of 30 images can belong to two label maps, such as 1_sat to 1_mask and to"):
        affix_of(images, [*others, *(f"{n}_mask" for n in range(1, 30))], "")
