"""Samples with several images: the one that is read, how another is chosen, and what is reported."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

import swinv2_train
from swinv2_train.cli.data import main
from swinv2_train.config.schema import DataConfig
from swinv2_train.config.tasks.segmentation import SegmentationConfig
from swinv2_train.data.configured import open_labeled, open_shards
from swinv2_train.data.errors import BrokenSample, DataError
from swinv2_train.data.shards import ShardSet
from tests.data.samples import encoded, jpeg, pixels, write_tar


def png(seed: int) -> bytes:
    return encoded(pixels(seed), "PNG")


PAIRS = [
    (name, png(seed))
    for seed, name in enumerate(("a.left.png", "a.right.png", "b.left.png", "b.right.png", "c.left.png"))
]


@pytest.fixture
def pairs(tmp_path: Path) -> str:
    return str(write_tar(tmp_path / "pairs" / "pairs.tar", PAIRS))


@pytest.mark.parametrize(
    ("members", "taken"),
    [
        (("tif", "png"), "png"),
        (("seg.png", "jpg"), "jpg"),
        (("right.png", "left.png"), "left.png"),
        (("avif", "tif"), "tif"),  # formats that earlier versions read come first, so old runs read the same image
    ],
)
def test_the_image_that_is_read_does_not_depend_on_the_order_of_members(
    members: tuple[str, str], taken: str, tmp_path: Path
) -> None:
    for number, order in enumerate((members, members[::-1])):
        path = write_tar(tmp_path / f"{number}.tar", [(f"a.{extension}", jpeg(0)) for extension in order])
        shards = ShardSet.open(str(path), tmp_path / "cache")
        assert shards.read(0).extension == taken
        assert f"{taken} is read" in shards.choices()[0]


@pytest.mark.parametrize("chosen", ["right.png", ".right.png", "RIGHT.PNG"])
def test_another_image_is_chosen(chosen: str, pairs: str, tmp_path: Path) -> None:
    shards = ShardSet.open(pairs, tmp_path / "cache", image=chosen)
    assert [shards.read(sample).data for sample in (0, 1)] == [PAIRS[1][1], PAIRS[3][1]]
    with pytest.raises(BrokenSample, match=r"it has no image right\.png .*only left\.png"):
        shards.read(2)
    assert shards.choices() == [
        "2 samples with several images (left.png, right.png): right.png is read; to read another: data.image=left.png"
    ]


def test_opening_for_a_run_warns_only_if_nothing_was_chosen(
    pairs: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        ShardSet.open(pairs, tmp_path / "cache")
        assert "data.image=right.png" in caplog.text
        caplog.clear()
        ShardSet.open(pairs, tmp_path / "cache", image="left.png")
        assert caplog.text == ""


@pytest.mark.parametrize(
    ("members", "label", "image"),
    [
        (("jpg", "seg.png"), "seg.png", "jpg"),
        (("jpg", "png"), "png", "jpg"),
        (("png", "tif"), "png", "tif"),  # without a label map, the image would be png
        (("mask.png", "rgb.png"), "mask.png", "rgb.png"),
    ],
)
def test_a_label_map_is_never_the_image(
    members: tuple[str, str], label: str, image: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Nor one of several images, in warnings and counts, for every way in which shards are opened."""
    path = write_tar(tmp_path / "s.tar", [(f"a.{each}", png(seed)) for seed, each in enumerate(members)])
    data = DataConfig(shards=str(path), eval_shards=str(path), cache_dir=str(tmp_path / "cache"))
    with caplog.at_level(logging.WARNING):
        training, held_out = open_shards(data, task=SegmentationConfig(label=label))
        opened = swinv2_train.open_shards(path, label_map=label, cache_dir=tmp_path / "cache")
    assert caplog.text == ""
    assert held_out is not None
    assert opened[0].raw.members.keys() >= {"image", label}
    for shards in (training, held_out, opened.shard_set):
        assert shards.read(0).extension == image
        assert shards.image_size(0) == len(png(members.index(image)))
        assert (shards.choices(), shards.left_out(0).counts) == ([], {})


def test_a_sample_with_only_a_label_map_is_broken(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_tar(
        tmp_path / "s.tar", [("a.mask.png", png(0)), *((f"b.{n}.png", png(0)) for n in ("mask", "x", "y"))]
    )
    with caplog.at_level(logging.WARNING):
        shards = open_labeled(str(path), tmp_path / "cache", 1.0, label_member="mask.png")
    with pytest.raises(BrokenSample, match=r"^it has no image, only the label map mask.png$"):
        shards.read(0, ("image", "mask.png"))
    assert shards.read(1).extension == "x.png"
    assert shards.choices()[0].startswith("1 sample with several images (x.png, y.png): x.png is read")
    with pytest.raises(DataError, match=r"mask.png cannot be the image \(data.image\) and the label map"):
        open_labeled(str(path), tmp_path / "cache", 1.0, image="mask.png", label_member="mask.png")
    assert "several images (x.png, y.png)" in caplog.text


def test_inspect_reports_the_choice(pairs: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def inspect(*options: str) -> tuple[object, str]:
        with pytest.raises(SystemExit) as ended:
            main(["inspect", pairs, "--workers", "0", "--cache-dir", str(tmp_path / "cache"), *options])
        out = capsys.readouterr()
        return ended.value.code, out.out + out.err

    code, shown = inspect()
    assert code == 1
    assert "2 samples with several images (left.png, right.png): left.png is read" in shown
    code, shown = inspect("--image", "left.png")
    assert code == 0, shown
    code, shown = inspect("--image", "right.png")
    assert code == 1
    assert "pairs.tar/c: it has no image right.png" in shown
