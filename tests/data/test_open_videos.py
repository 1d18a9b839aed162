"""Shards of videos open by their manifest, with few operations; those of the other kind are refused."""

from __future__ import annotations

import os
import shutil
import zlib
from pathlib import Path
from types import SimpleNamespace

import pytest

import swinv2_train
from swinv2_train.config.data import DataConfig
from swinv2_train.data import index as index_module
from swinv2_train.data import shard_files
from swinv2_train.data.configured import open_for_model, open_held_out, open_shards, open_training
from swinv2_train.data.errors import DataError, OtherSamples
from swinv2_train.data.pack import PackOptions, pack
from swinv2_train.data.samples import VIDEO, VIDEO_FACTS, Scope
from swinv2_train.data.shards import ShardSet
from tests.data.filmed import packed, shown, write_videos
from tests.data.http_server import FlakyServer
from tests.data.operations import operations
from tests.data.samples import jpeg, write_folder, write_tar

MEMBERS = (VIDEO, VIDEO_FACTS, "cls")


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with packed shards: `videos`, with a sample each, and `images`."""
    folder = tmp_path_factory.mktemp("sets")
    packed(write_videos(folder / "src"), folder / "videos", classes=True, max_count=1)
    pack(str(write_folder(folder / "loose", 2)), folder / "images", PackOptions())
    return folder


def data(sets: Path, kind: str, frames: int, **settings: object) -> DataConfig:
    return DataConfig(shards=str(sets / kind), frames=frames, cache_dir=str(sets / "cache"), **settings)


def test_a_packed_set_opens_without_its_indexes(sets: Path, tmp_path: Path) -> None:
    with operations(sets / "videos") as counts:
        opened = ShardSet.open(str(sets / "videos"), tmp_path / "cache", main=VIDEO)
    assert opened.shard_sizes == [1] * 4
    assert counts["stat .tar"] <= 5
    assert not any(kind.endswith((".jsonl", ".bin")) for kind in counts)
    assert opened.card is not None
    assert opened.card.num_classes == 2
    assert opened.warnings() == []
    for number in range(4):
        assert set(opened.read(number, MEMBERS).members) == set(MEMBERS)
        assert opened.left_out(number).lines() == []


def test_configs_read_the_kind_that_their_frames_name(sets: Path) -> None:
    assert open_training(data(sets, "videos", 8)).scope.main == VIDEO
    training, held_out = open_shards(data(sets, "videos", 8, eval_shards=str(sets / "videos")))
    assert held_out is not None
    assert training.num_samples == held_out.num_samples == 4
    assert open_training(data(sets, "images", 0)).num_samples == 2
    labeled = open_training(data(sets, "videos", 8, label="cls"))
    assert labeled.card is not None
    assert dict(labeled.card.class_counts) == {0: 2, 1: 2}


def test_shards_of_the_other_kind_are_one_message(sets: Path, tmp_path: Path) -> None:
    write_tar(tmp_path / "clips.tar", [("a.cls", b"1"), ("a.mp4", b"xx")])
    write_tar(tmp_path / "pictures.tar", [("a.jpg", jpeg(0))])
    to_videos = r"data.frames=0 reads images: set data.frames and model.temporal_patch, for a task .* task=video$"
    to_images = r"data.frames=8 reads videos: set data.frames=0 model.temporal_patch=0, or pack videos .* --video$"
    videos, images = "are videos, and images are expected", "are images, and videos are expected"
    cases = [
        (data(sets, "videos", 0), rf"^data.shards=.*train.dataset.json {videos}; {to_videos}"),
        (data(sets, "images", 8), rf"^data.shards=.*train.dataset.json {images}; {to_images}"),
        (data(tmp_path, "clips.tar", 0), rf"the samples of .*clips.tar {videos}; {to_videos}"),
        (data(tmp_path, "pictures.tar", 8), rf"the samples of .*pictures.tar {images}; {to_images}"),
    ]
    for config, message in cases:
        with pytest.raises(OtherSamples, match=message):
            open_training(config)
    with pytest.raises(OtherSamples, match=r"^data.eval_shards=.*are images, and videos are expected"):
        open_held_out(data(sets, "videos", 8, eval_shards=str(sets / "images")))


@pytest.mark.parametrize(
    ("name", "frames", "message"),
    [
        ("clips.tar", 0, "the model reads images: use shards of images, or weights of a model of videos"),
        ("pictures.tar", 8, "the model reads clips: use shards of videos, or weights of a model of images"),
    ],
)
def test_shards_of_the_other_kind_for_finished_weights_are_one_message(
    tmp_path: Path, name: str, frames: int, message: str
) -> None:
    write_tar(tmp_path / name, [("a.mp4", b"xx")] if name == "clips.tar" else [("a.jpg", jpeg(0))])
    config = SimpleNamespace(data=data(tmp_path, name, frames), task=SimpleNamespace(label_member=None))
    with pytest.raises(OtherSamples, match=rf"{name} are .* are expected; {message}$"):
        open_for_model(str(tmp_path / name), config, tmp_path / "cache", 1.0)  # type: ignore[arg-type]


def test_uploaded_indexes_of_videos_are_used(sets: Path, tmp_path: Path) -> None:
    """Without a manifest the shards are counted from them, so that no tar is fetched to be indexed."""
    served = tmp_path / "served"
    shutil.copytree(sets / "videos", served)
    (served / "train.dataset.json").unlink()
    server = FlakyServer(served)
    try:
        spec = server.url + "/train-{000000..000003}.tar"
        opened = ShardSet.open(spec, tmp_path / "cache", backoff=0.01, main=VIDEO)
        assert opened.shard_sizes == [1] * 4
        names = [f"train-{number:06d}.tar" for number in range(4)]
        assert sum(server.gets(name) for name in names) == 0
        local = ShardSet.open(str(sets / "videos"), tmp_path / "other", main=VIDEO)
        assert opened.read(2, MEMBERS).members == local.read(2, MEMBERS).members
        for name in names:
            (served / f"{name}.video.index.jsonl").unlink()
        again = ShardSet.open(spec, tmp_path / "empty", backoff=0.01, main=VIDEO)
        assert again.read(2, MEMBERS).members == local.read(2, MEMBERS).members
    finally:
        server.close()


def test_large_members_are_read_in_parts(sets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system reads at most 2 GiB at a time, and a checksum needs no more of a video in memory than a part."""
    raw = ShardSet.open(str(sets / "videos"), tmp_path / "cache", main=VIDEO).read(0, MEMBERS)
    some = SimpleNamespace(**vars(os) | {"pread": lambda fd, size, offset: os.pread(fd, min(size, 700), offset)})
    monkeypatch.setattr(shard_files, "os", some)
    opened = ShardSet.open(str(sets / "videos"), tmp_path / "cache", main=VIDEO)
    assert opened.read(0, MEMBERS).members == raw.members
    monkeypatch.setattr(index_module, "_CHUNK", 100)
    with (sets / "videos/train-000000.tar").open("rb") as tar:
        built = index_module.build_index("a", tar.fileno(), scope=Scope(VIDEO, all_members=True))
        sums = dict(zip(built.extensions, index_module.checksums(built, tar.fileno())[:, 0].tolist(), strict=True))
    names = {VIDEO: raw.extension}
    assert sums == {names.get(name, name): zlib.crc32(data) for name, data in raw.members.items()}


def test_the_api_reads_videos(sets: Path) -> None:
    samples = swinv2_train.open_shards(sets / "videos", cache_dir=sets / "cache")
    assert (len(samples), samples.class_names) == (4, ["down", "up"])
    for sample in samples:
        assert sample.labels == (int(sample.key.startswith("up")),)
        first = "abcd".index(sample.key[-1]) * 10
        assert shown(sample) == list(range(first, first + 12))


def test_a_set_of_images_and_videos_together_is_refused(sets: Path) -> None:
    both = [str(sets / "videos"), str(sets / "images")]
    with pytest.raises(DataError, match=r"are images, and videos are expected"):
        ShardSet.open(both, sets / "cache", main=VIDEO)
