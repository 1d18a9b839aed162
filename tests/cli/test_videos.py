"""The commands for finished weights with a model of clips: evaluation by views, features, and analysis."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from swinv2_train.cli import analyze, evaluate, features
from swinv2_train.data.augment import normalise_clips
from swinv2_train.data.clip_input import center_clip
from swinv2_train.data.video import Video
from swinv2_train.interop.load import load_model
from swinv2_train.models.heads import pooled_features
from tests.data.filmed import film
from tests.evaluated import classifier, clip_classifier
from tests.filmed import make_filmed_shard
from tests.runs import exit_code

NAMES = ["left", "right", "down"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """clips.safetensors, images.safetensors, eval-0.tar with a broken video, and two video files."""
    place = tmp_path_factory.mktemp("clips")
    clip_classifier(place / "clips.safetensors", NAMES)
    classifier(place / "images.safetensors")
    make_filmed_shard(place / "eval-0.tar", 5, 2, broken=(1,))
    for name, container in (("a.mp4", "mp4"), ("b.mkv", "mkv")):
        (place / "videos").mkdir(exist_ok=True)
        (place / "videos" / name).write_bytes(film(30, container))
    return place


@pytest.mark.slow
def test_views_test_windows_and_sizes_of_an_evaluation(place: Path, tmp_path: Path) -> None:
    """Of a window along time as well; the position bias keeps the windows of the training."""
    options = ("views=2x3", "test_window=6", "data.resolution=48", "model.temporal_window=2", "workers=0", "batch=6")
    out = f"out={tmp_path / 'out'}"
    assert exit_code(evaluate.main, place / "clips.safetensors", place / "eval-0.tar", *options, out) == 0
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    assert found["samples"] == 4
    assert len(found["broken"]) == 1
    assert found["input"]["views"] == "2x3"
    assert found["input"]["resolution"] == [48, 48]
    assert found["input"]["temporal_window"] == 2
    assert found["input"]["pretrained_temporal_window"] == [3, 3, 3, 3]
    assert set(found["metrics"]) >= {"top1", "clip_top1", "loss"}
    with Image.open(tmp_path / "out" / "strips.png") as picture:
        assert picture.width > 960
        assert picture.height > 100


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["{place}/clips.safetensors", "{place}/eval-0.tar", "views=4"], "task.views=4: must be clips times crops"),
        (["{place}/clips.safetensors", "{place}/eval-0.tar", "views=1x1", "task.views=2x2"], "task.views"),
        (
            ["{place}/images.safetensors", "{place}/eval-0.tar", "views=4x3"],
            "views=4x3: requires a classifier of videos",
        ),
    ],
)
def test_views_that_cannot_be_are_one_sentence(
    place: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    assert exit_code(evaluate.main, *(argument.format(place=place) for argument in arguments), "workers=0") == 2
    message = capsys.readouterr().err.strip()
    assert says in message
    assert message.count("\n") == 0


@pytest.mark.slow
def test_features_of_videos_are_those_of_the_center_clip(place: Path, tmp_path: Path) -> None:
    (place / "videos" / "text.mp4").write_text("not a video")
    files, shards = tmp_path / "files.npz", tmp_path / "shards.npz"
    picture = tmp_path / "sheet.png"
    more = ("stages=3", f"sheet={picture}", "workers=0")
    assert exit_code(features.main, place / "clips.safetensors", place / "videos", files, *more) == 1
    loaded = load_model(place / "clips.safetensors")
    clips = [center_clip(Video.of(film(30, one)), (32, 32), loaded.config.data) for one in ("mp4", "mkv")]
    with torch.no_grad():
        expected = pooled_features(loaded.model.backbone, normalise_clips(torch.stack(clips), [0.5] * 3, [0.25] * 3))
    table = np.load(files)
    assert [Path(name).name for name in table["name"]] == ["a.mp4", "b.mkv"]
    np.testing.assert_allclose(table["features"], expected, atol=1e-5)
    assert table["stage3"].shape == (2, 64, 4, 2, 2)
    about = json.loads(str(table["about"]))
    assert (about["frames"], about["frame_stride"], about["shapes"]["stage3"]) == (8, 2, [64, 4, 2, 2])
    assert [Path(name).name for name, _ in about["broken"]] == ["text.mp4"]
    assert picture.is_file()
    assert exit_code(features.main, place / "clips.safetensors", place / "eval-0.tar", shards, "workers=0") == 1
    table = np.load(shards)
    assert table["features"].shape == (4, 128)
    assert table["label"].tolist() == [0, 2, 0, 1]


@pytest.mark.slow
def test_windows_and_amplitudes_of_clips_are_drawn(place: Path, tmp_path: Path) -> None:
    data, out = f"data={place / 'eval-0.tar'}", f"out={tmp_path}"
    windows = ("windows=2,4", "workers=0")
    assert exit_code(analyze.main, "windows", place / "clips.safetensors", data, out, *windows) == 0
    (curve,) = json.loads((tmp_path / "windows.json").read_text())["models"]
    assert [point["resolution"] for point in curve["points"]] == [[16, 16], [32, 32]]
    for more in ([], [data]):
        assert exit_code(analyze.main, "signal", place / "clips.safetensors", out, *more, "batch=2") == 0
    assert (tmp_path / "signal.png").is_file()


def test_attention_maps_are_of_images(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = (place / "videos" / "a.mp4", tmp_path / "attention.png")
    assert exit_code(analyze.main, "attention", place / "clips.safetensors", *files) == 2
    assert "is a model of clips, and attention maps are drawn of images" in capsys.readouterr().err
