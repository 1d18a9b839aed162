"""The Python API with a model of clips: videos in any form."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import swinv2_train
from swinv2_train.api.model import Model
from swinv2_train.data.clips import test_clips as clips_of
from swinv2_train.data.errors import DataError
from swinv2_train.data.video import Video
from tests.data.filmed import film
from tests.evaluated import clip_classifier
from tests.filmed import make_filmed_shard


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """clips.safetensors, a.mp4, and eval-0.tar."""
    folder = tmp_path_factory.mktemp("api")
    clip_classifier(folder / "clips.safetensors", ["left", "right", "down"])
    (folder / "a.mp4").write_bytes(film(30, size=(40, 56)))
    make_filmed_shard(folder / "eval-0.tar", 3, 2)
    return folder


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    return swinv2_train.load(folder / "clips.safetensors", device="cpu")


def test_videos_in_any_form_have_the_same_clip(model: Model, folder: Path) -> None:
    expected = model.preprocess(folder / "a.mp4")
    assert expected.shape == (1, 3, 8, 32, 32)
    video = Video.of(folder / "a.mp4")
    whole = video.frames(range(30))
    (numbers,) = clips_of(30, 8, 2, 1)
    forms: dict[str, Any] = {
        "name": str(folder / "a.mp4"),
        "bytes": (folder / "a.mp4").read_bytes(),
        "all frames": whole,
        "array": whole.permute(1, 2, 3, 0).numpy(),
        "the clip": whole[:, numbers],
        "batch": whole[None],
        "list": [whole],
        "arrays": np.stack([whole[:, numbers].permute(1, 2, 3, 0).numpy()]),
    }
    for name, form in forms.items():
        assert torch.equal(model.preprocess(form), expected), name
    shares = model.probabilities(folder / "a.mp4")
    assert torch.equal(model.probabilities(expected), shares)
    assert float(shares.sum()) == pytest.approx(1)
    assert model.features([folder / "a.mp4", whole]).shape == (2, 128)
    assert [tuple(each.shape) for each in model.maps(expected, (1, 4))] == [(1, 16, 4, 8, 8), (1, 128, 4, 1, 1)]


def test_samples_of_shards_are_classified(model: Model, folder: Path) -> None:
    shards = swinv2_train.open_shards(folder / "eval-0.tar")
    shares = model.probabilities(shards, batch=2)
    assert shares.shape == (3, 3)
    torch.testing.assert_close(shares[1:2], model.probabilities(shards[1].data("video")))
    found = swinv2_train.evaluate(folder / "clips.safetensors", f"{folder}/eval-0.tar", workers=0, device="cpu")
    right = [int(share.argmax()) == shards[n].labels[0] for n, share in enumerate(shares)]
    assert found.metrics["top1"] == pytest.approx(sum(right) / 3)
    assert found.figure is not None


@pytest.mark.parametrize(
    ("videos", "message"),
    [
        ("/nowhere.mp4", r"video /nowhere\.mp4: it cannot be read"),
        ([b"no video"], "video 0: it is text, not a video"),
        (np.zeros((40, 56, 3), np.uint8), r"it is \(40, 56, 3\) uint8; arrays of frames are \(N, H, W, 3\) uint8"),
        (torch.zeros(8, 3, 40, 56, dtype=torch.uint8), r"it is \(8, 3, 40, 56\) torch.uint8; .*tensors \(3, N, H, W\)"),
        (torch.zeros(3, 8, 40, 56), r"preprocessed batches tensors \(B, 3, T, H, W\) of floats"),
        ([7], "video 0: pass a video file"),
        ([], "there are no images"),
    ],
)  # fmt: skip
def test_videos_that_cannot_be_used_are_named(model: Model, videos: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        model.preprocess(videos)
