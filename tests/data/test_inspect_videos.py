"""`inspect` decodes every video, compares it with what was packed, and draws film strips."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from swinv2_train.data.card import Card
from swinv2_train.data.card_videos import VideoCounts
from swinv2_train.data.errors import DataError
from swinv2_train.data.film_strips import film_sheet, film_strip
from swinv2_train.data.inspect import inspect
from swinv2_train.data.samples import VIDEO
from swinv2_train.data.shards import ShardSet
from swinv2_train.data.video import probe
from swinv2_train.data.video_statistics import spread
from tests.data.filmed import film, open_filmed, packed, write_videos
from tests.data.samples import write_tar


def facts_json(data: bytes, **changes: object) -> bytes:
    return json.dumps(probe(data).to_json() | changes).encode()


def test_the_card_of_an_inspection_is_that_of_the_packing(tmp_path: Path) -> None:
    report = packed(write_videos(tmp_path / "src"), tmp_path / "out", classes=True)
    found = inspect(open_filmed(tmp_path / "out"))
    assert (found.complete, found.left_out.lines(), found.copies) == (True, [], 0)
    assert found.labels_row() == "4 of 4 samples, numbers 0 to 1"
    card, before = found.card, report.cards["train"]
    assert card.videos == before.videos
    for values, expected in zip(card.statistics(3) or (), before.statistics(3) or (), strict=True):
        assert values == pytest.approx(expected)
    assert (card.bytes, card.formats, card.class_counts) == (before.bytes, before.formats, before.class_counts)


def test_videos_that_are_not_those_of_their_facts_are_named(tmp_path: Path) -> None:
    one, other = film(12), film(14, "mkv")
    times = probe(one).to_json()["pts"]
    members = {
        "a": (one, facts_json(one)),
        "b": (one, facts_json(other)),
        "c": (one, facts_json(one, width=66)),
        "d": (one, facts_json(one, pts=[[*times[0][:2], 2 * times[0][2], *times[0][3:]]])),
        "e": (one, b"{}"),
        "f": (one[:-300], facts_json(one)),
        "g": (other, None),
    }
    listed = []
    for key, (data, facts) in members.items():
        listed += [(f"{key}.cls", b"0"), (f"{key}.mp4", data)] + ([(f"{key}.frames.json", facts)] if facts else [])
    write_tar(tmp_path / "s.tar", listed)
    found = inspect(ShardSet.open(str(tmp_path / "s.tar"), tmp_path / "cache", main=VIDEO))
    reasons = {name[-1]: reason for name, reason in found.broken}
    assert reasons.pop("f").startswith("it is cut off")
    assert reasons.pop("e").startswith("frames.json: its pts")
    assert reasons == {
        "b": "frames.json is of another video: its number of frames is 14, not 12",
        "c": "frames.json is of another video: its size is 66 x 48, not 64 x 48",
        "d": "frames.json is of another video: the times of its frames differ",
    }
    assert (found.card.num_samples, found.card.formats, found.complete) == (2, {"mp4": 2}, False)


def test_copies_in_both_splits_are_found(tmp_path: Path) -> None:
    for split in ("first", "second"):
        packed(write_videos(tmp_path / split), tmp_path / "out" / split)
    places = [str(tmp_path / "out" / split) for split in ("first", "second")]
    found = inspect(ShardSet.open(places, tmp_path / "cache", main=VIDEO))
    assert (found.copies, len(found.across), found.complete) == (4, 4, False)


def test_film_strips_show_frames_over_the_whole_video(tmp_path: Path) -> None:
    report = packed(write_videos(tmp_path / "src"), tmp_path / "out", classes=True)
    assert report.complete
    shards = open_filmed(tmp_path / "out")
    assert film_sheet(shards, tmp_path / "sheet.png", num_samples=3) == 3
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert sheet.shape == (3 * (120 + 16 + 8) + 8, 8 * 162 - 2 + 16, 3)
    red = (sheet == [255, 0, 0]).all(axis=2)
    near = (np.abs(sheet.astype(int) - [254, 0, 0]) < 12).all(axis=2)
    assert not red.all()
    assert near[24:144].any(axis=0).sum() >= 8 * 30, "each of 8 frames has its red corner"
    film_sheet(shards, tmp_path / "same.png", num_samples=3)
    assert (tmp_path / "same.png").read_bytes() == (tmp_path / "sheet.png").read_bytes()
    for seed in range(4):
        film_sheet(shards, tmp_path / f"{seed}.png", num_samples=1, seed=seed)
    assert len({(tmp_path / f"{seed}.png").read_bytes() for seed in range(4)}) > 1
    with pytest.raises(DataError, match="picture format"):
        film_sheet(shards, tmp_path / "sheet.mp4", num_samples=3)


def test_broken_videos_have_their_reason_on_the_sheet(tmp_path: Path) -> None:
    write_tar(tmp_path / "s.tar", [("a.mp4", b"text"), ("b.mp4", film(3))])
    shards = ShardSet.open(str(tmp_path / "s.tar"), tmp_path / "cache", main=VIDEO)
    assert film_sheet(shards, tmp_path / "sheet.png", num_samples=9) == 2
    height = np.asarray(Image.open(tmp_path / "sheet.png")).shape[0]
    assert height == 8 + (16 + 16 + 8) + (120 + 16 + 8)


def test_a_strip_has_its_frames_side_by_side() -> None:
    clip = torch.arange(3 * 2 * 4 * 5, dtype=torch.uint8).view(3, 2, 4, 5)
    strip = np.asarray(film_strip(clip))
    assert strip.shape == (4, 12, 3)
    assert (strip[:, :5] == clip[:, 0].permute(1, 2, 0).numpy()).all()
    assert (strip[:, 7:] == clip[:, 1].permute(1, 2, 0).numpy()).all()
    assert (strip[:, 5:7] == 255).all()


@pytest.mark.parametrize(
    ("total", "numbers"), [(1, [0]), (3, [0, 1, 2]), (8, list(range(8))), (15, list(range(0, 15, 2)))]
)
def test_spread_frames_have_the_first_and_the_last(total: int, numbers: list[int]) -> None:
    assert spread(total, 8) == numbers


def test_counts_add_up_in_any_order() -> None:
    parts = [
        VideoCounts.of(probe(film(count, container))) for count, container in ((12, "mp4"), (20, "mkv"), (3, "avi"))
    ]
    sums = []
    for order in (parts, parts[::-1]):
        total = VideoCounts()
        for part in order:
            total.add(part)
        sums.append(total)
    assert sums[0] == sums[1]
    assert (sums[0].videos, sums[0].shortest, sums[0].longest, sums[0].frames) == (3, 3, 20, 35)
    assert VideoCounts.from_json(json.loads(json.dumps(sums[0].to_json()))) == sums[0]
    rows = dict(sums[0].rows())
    assert rows["frames"] == "35, 3 to 20 in a video"
    assert rows["videos by frames"] == "1-15: 2, 16-31: 1"
    assert "with a variable rate" not in rows
    variable = VideoCounts.of(probe(film(5, pts=(0, 512, 1024, 4096, 4608))))
    assert dict(variable.rows())["with a variable rate"] == "1"


def test_cards_with_impossible_counts_of_videos_are_refused() -> None:
    content = Card(num_samples=1, videos=VideoCounts.of(probe(film(12)))).to_json()
    assert Card.from_json(content).to_json() == content
    assert "videos" not in Card().to_json()
    for change in ({"frames": -1}, {"rates": {"x": 1}}, {"codecs": {"h264": 1.5}}, {"videos": None}):
        wrong = content | {"videos": content["videos"] | change}
        with pytest.raises(ValueError, match="videos cannot be read"):
            Card.from_json(wrong)
