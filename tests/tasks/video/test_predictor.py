"""Prediction of videos over time: the numbers of evaluations, any length, and a strip with a curve."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from swinv2_train.data.clip_windows import window_starts
from swinv2_train.data.clips import clip_numbers
from swinv2_train.data.raw_sample import RawSample
from swinv2_train.data.sample import Sample
from swinv2_train.data.samples import VIDEO
from swinv2_train.data.video import probe
from swinv2_train.interop.load import LoadedModel, load_model
from swinv2_train.tasks.prediction import FinishedModel, PredictOptions, Unreadable
from swinv2_train.tasks.video.predictor import Course, VideoPrediction, VideoPredictor, Windows
from swinv2_train.tasks.video.task import Video
from tests.data.filmed import film
from tests.evaluated import clip_classifier

NAMES = ["left", "right", "down"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """clips.safetensors and several.safetensors, a video of one window, a long one, a short one, and bad files."""
    place = tmp_path_factory.mktemp("predictor")
    clip_classifier(place / "clips.safetensors", NAMES)
    clip_classifier(place / "several.safetensors", NAMES, multi_label=True)
    for name, data in {
        "window.mp4": film(16, size=(40, 56)),
        "long.mkv": film(61, "mkv", size=(40, 56)),
        "short.mp4": film(5, size=(40, 56)),
        "cut.mp4": film(16, size=(40, 56))[:500],
        "text.mp4": b"no video",
    }.items():
        (place / name).write_bytes(data)
    (place / "folder.mp4").mkdir()
    return place


def loaded(place: Path, name: str = "clips", *overrides: str) -> LoadedModel:
    return load_model(place / f"{name}.safetensors", overrides)


def predict(found: LoadedModel, paths: list[Path], **options: Any) -> list[VideoPrediction | Unreadable]:
    model = FinishedModel(found.model, found.config, found.mean, found.std, NAMES, torch.device("cpu"))
    with torch.inference_mode():
        return list(VideoPredictor(model, PredictOptions(**options), lambda *_: None).predict(paths))


def task_of(found: LoadedModel) -> Video:
    return Video(found.config, found.mean, found.std)


def in_order(one: VideoPrediction) -> list[float]:
    """The probabilities of `classes` in the order of the classes."""
    return [share for _, _, share in sorted(one.classes)]


@pytest.mark.parametrize("views", ["1x1", "1x3"])
@pytest.mark.parametrize("name", ["clips", "several"])
def test_a_video_of_one_window_has_the_numbers_of_an_evaluation(place: Path, name: str, views: str) -> None:
    found = loaded(place, name, f"task.views={views}")
    for file in ("window.mp4", "short.mp4"):
        (one,) = predict(found, [place / file])
        sample = Sample(RawSample(file, "mp4", {VIDEO: (place / file).read_bytes(), "cls": b"1"}, VIDEO), 3)
        batch = task_of(found).eval_transform(sample, np.random.default_rng(0))
        batch = {key: value[None] for key, value in batch.items()} | {"position": torch.zeros(1, dtype=torch.int64)}
        with torch.no_grad():
            logits = task_of(found).logits(found.model, batch)
        shares = logits.sigmoid() if name == "several" else logits.softmax(dim=1)
        assert in_order(one) == pytest.approx(shares[0].tolist(), abs=1e-5)
        assert one.windows.numbers.shape == (1, 3)


@pytest.mark.parametrize("batch", [1, 3, 100])
def test_every_window_is_the_clip_at_its_time(place: Path, batch: int) -> None:
    found = loaded(place)
    (one,) = predict(found, [place / "long.mkv"], top=2, batch=batch)
    starts = window_starts(np.arange(61) / 30, 16, None)
    assert starts == [0, 8, 16, 24, 32, 40, 45]
    assert one.windows.starts == pytest.approx(np.array(starts) / 30, abs=1e-3)
    assert one.windows.ends == pytest.approx((np.array(starts) + 16) / 30, abs=1e-3)
    assert one.seconds == pytest.approx(61 / 30, abs=1e-3)
    sample = Sample(RawSample("long", "mkv", {VIDEO: (place / "long.mkv").read_bytes()}, VIDEO), 3)
    from swinv2_train.data.augment import normalise_clips
    from swinv2_train.data.clip_input import FixedCrops

    crops = FixedCrops.of(sample.video.size, (32, 32), found.config.data)
    expected = []
    for start in starts:
        (view,) = crops.views(sample.video.frames(clip_numbers(61, 8, 2, start), crops.scaled))
        with torch.no_grad():
            expected.append(found.model(normalise_clips(view[None], found.mean, found.std)).softmax(dim=1)[0])
    shares, numbers = torch.stack(expected).topk(2)
    assert one.windows.numbers.tolist() == numbers.tolist()
    np.testing.assert_allclose(one.windows.shares, shares, atol=1e-5)
    best = torch.stack(expected).mean(dim=0).topk(2)
    assert [number for number, _, _ in one.classes] == best.indices.tolist()
    assert [share for _, _, share in one.classes] == pytest.approx(best.values.tolist(), abs=1e-5)


def test_bad_files_are_named_and_the_others_are_predicted(place: Path) -> None:
    names = ["cut.mp4", "window.mp4", "text.mp4", "folder.mp4", "gone.mp4", "short.mp4"]
    found = predict(loaded(place), [place / name for name in names])
    assert [type(one) for one in found] == [
        Unreadable, VideoPrediction, Unreadable, Unreadable, Unreadable, VideoPrediction,
    ]  # fmt: skip
    reasons = [one.reason for one in found if isinstance(one, Unreadable)]
    assert reasons[0].startswith("it is cut off: it has 500 of ")
    assert reasons[1:] == [
        "it is text, not a video",
        "it cannot be read (Is a directory)",
        "it cannot be read (No such file or directory)",
    ]


def test_a_damaged_frame_in_the_middle_names_the_file(place: Path, tmp_path: Path) -> None:
    data = bytearray(film(60, size=(40, 56)))
    start, end = data.index(b"mdat"), data.index(b"moov") - 4
    middle = (start + end) // 2
    data[middle:end] = b"\x55" * (end - middle)
    (tmp_path / "damaged.mp4").write_bytes(data)
    assert probe(tmp_path / "damaged.mp4").frames == 60
    one, other = predict(loaded(place), [tmp_path / "damaged.mp4", place / "short.mp4"])
    assert isinstance(one, Unreadable)
    assert "damaged" in one.reason
    assert isinstance(other, VideoPrediction)


@pytest.mark.slow
def test_strips_and_pictures_are_drawn_where_they_are_wanted(place: Path, tmp_path: Path) -> None:
    from PIL import Image

    paths = [place / "long.mkv", place / "short.mp4"]
    files = {path: Path(path.stem) for path in paths}
    found = predict(loaded(place), paths, files=files, directory=tmp_path, pictures=1)
    assert found[0].picture is not None
    assert found[0].picture.size == (2 * 192 + 2, 2 * 137 + 2)  # two rows of two frames
    tiles = np.asarray(found[0].picture)
    assert (tiles[137:139] == 255).all()
    assert (tiles[:, 192:194] == 255).all()
    assert found[1].picture is None
    for path in paths:
        with Image.open(tmp_path / "strips" / f"{path.stem}.jpg") as picture:
            pixels = np.asarray(picture.convert("RGB")).astype(int)
        assert pixels.shape[1] > pixels.shape[0] > 400
        # Curves in the colors of the charts, below frames with their own.
        blue = (np.abs(pixels - (0x00, 0x72, 0xB2)).sum(axis=2) < 40).sum(axis=1)
        assert blue[len(blue) // 3 :].sum() > 500


def test_parts_end_where_time_is_not_seen() -> None:
    starts = np.array([0.0, 0.5, 3.0, 3.5, 4.0])
    numbers = np.array([[0], [0], [0], [0], [1]], np.int32)
    shares = np.array([[0.5], [0.7], [0.8], [0.6], [0.9]], np.float32)
    windows = Windows(starts, starts + 0.5, numbers, shares)
    one = VideoPrediction(Path("a.mp4"), [(0, "left", 0.6)], windows=windows, seconds=4.5, names=NAMES)
    assert one.lines(1)[1:] == [
        ("", "0.0-1.0 s", "left 60.0%"),
        ("", "3.0-4.0 s", "left 70.0%"),
        ("", "4.0-4.5 s", "right 90.0%"),
    ]


@pytest.mark.parametrize(("hop", "notes"), [(0.5, []), (1, ["--hop 1 is longer than a window (0.53 s): "])])
def test_a_hop_longer_than_a_window_is_noted_once(place: Path, hop: float, notes: list[str]) -> None:
    found = loaded(place, "clips", f"task.hop={hop}")
    model = FinishedModel(found.model, found.config, found.mean, found.std, NAMES, torch.device("cpu"))
    predictor = VideoPredictor(model, PredictOptions(), lambda *_: None)
    with torch.inference_mode():
        assert len(list(predictor.predict([place / "long.mkv"] * 2))) == 2
    assert predictor.notes == [f"{note}the model does not see the time between windows" for note in notes]


def test_broken_weights_end_the_prediction(place: Path) -> None:
    found = loaded(place)
    found.model.head.weight.data *= float("nan")
    with pytest.raises(FloatingPointError, match="not finite"):
        predict(found, [place / "window.mp4"])


def test_the_course_of_a_long_video_has_a_limited_number_of_points() -> None:
    rng = np.random.default_rng(0)
    shares = rng.random((1000, 3))
    course = Course(3, most=8)
    for number, row in enumerate(shares):
        course.add(number / 10, row)
    assert len(course.times) == 8
    np.testing.assert_allclose(course.mean, shares.mean(axis=0))
    np.testing.assert_allclose(course.shares[0], shares[:128].mean(axis=0))
    np.testing.assert_allclose(course.shares[-1], shares[896:].mean(axis=0))
    assert course.times[0] == pytest.approx(np.arange(128).mean() / 10)
    few = Course(3, most=8)
    for number in range(5):
        few.add(number, shares[number])
    np.testing.assert_array_equal(few.shares, shares[:5])
    assert few.times.tolist() == [0, 1, 2, 3, 4]


def test_facts_decide_the_times_of_windows(place: Path, tmp_path: Path) -> None:
    """At a variable rate, windows of one number of frames last differently long."""
    pts = [number * 512 for number in range(20)] + [20 * 512 + number * 5120 for number in range(20)]
    (tmp_path / "rate.mp4").write_bytes(film(tuple(range(40)), pts=tuple(pts), size=(40, 56)))
    times = probe(tmp_path / "rate.mp4").times
    (one,) = predict(loaded(place, "clips", "task.hop=0.5"), [tmp_path / "rate.mp4"])
    starts = window_starts(times, 16, 0.5)
    assert len(starts) > 3
    assert one.windows.starts == pytest.approx(times[starts], abs=1e-6)
    assert one.windows.ends[-1] == pytest.approx(one.seconds)
    assert max(one.windows.ends - one.windows.starts) > 4 * min(one.windows.ends - one.windows.starts)
