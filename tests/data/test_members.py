"""Named members: read if a transform asks for them, decoded if it uses them, broken by name."""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from swinv2_train.config.errors import ConfigError
from swinv2_train.config.schema import AugmentConfig, DataConfig
from swinv2_train.config.tasks import DetectionConfig, SegmentationConfig
from swinv2_train.data import sample as sample_module
from swinv2_train.data import shards as shards_module
from swinv2_train.data.configured import as_read_by, open_held_out, open_training
from swinv2_train.data.errors import BrokenSample, DataError, OtherSamples
from swinv2_train.data.geometry import draw_crop
from swinv2_train.data.index import build_index, read_index, write_index
from swinv2_train.data.index_store import index_path
from swinv2_train.data.order import SampleOrder, sample_rng
from swinv2_train.data.raw_sample import RawSample
from swinv2_train.data.sample import Sample
from swinv2_train.data.shards import ShardSet
from swinv2_train.data.transform import Transform
from tests.data.http_server import FlakyServer
from tests.data.loaders import eval_loader, train_loader
from tests.data.samples import encoded, jpeg, pixels, write_tar

BOXES = [[2.0, 3.0, 20.0, 12.0], [0.0, 0.0, 1.0, 1.0]]


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def label_png(seed: int) -> bytes:
    buffer = io.BytesIO()
    picture = Image.fromarray((np.arange(24 * 32).reshape(24, 32) % (seed + 2)).astype(np.uint8))
    picture.putpalette([9] * 768)
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def members(number: int) -> dict[str, bytes]:
    return {
        "jpg": jpeg(number),
        "seg.png": label_png(number),
        "depth.npy": npy(np.full((2, 3), number)),
        "json": json.dumps({"boxes": BOXES}).encode(),
        "txt": b"gr\xc3\xbcn",
        "cls": str(number).encode(),
    }


def write(path: Path, count: int = 6, changes: dict[str, bytes | None] | None = None) -> Path:
    """A shard; `changes` replaces members of some samples, as `2.seg.png`, or leaves them out (None)."""
    listed = {f"{n}.{name}": data for n in range(count) for name, data in members(n).items()} | (changes or {})
    return write_tar(path, [(name, data) for name, data in sorted(listed.items()) if data is not None])


@pytest.fixture
def shards(tmp_path: Path) -> ShardSet:
    return ShardSet.open(str(write(tmp_path / "s.tar")), tmp_path / "cache")


@pytest.fixture
def read_bytes(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The sizes of all reads of members."""
    sizes: list[int] = []
    plain = shards_module.read_member

    def counted(fd: int, offset: int, size: int) -> bytes:
        sizes.append(size)
        return plain(fd, offset, size)

    monkeypatch.setattr(shards_module, "read_member", counted)
    return sizes


@pytest.mark.parametrize("wanted", [("image",), ("seg.png", "cls"), ("depth.npy",), ("jpg", "none.npy"), ()])
def test_nothing_is_read_but_the_members_that_are_asked_for(
    wanted: tuple[str, ...], shards: ShardSet, read_bytes: list[int]
) -> None:
    raw = shards.read(3, wanted)
    have = members(3) | {"image": jpeg(3)}
    assert raw.members == {name: have[name] for name in wanted if name in have}
    assert read_bytes == [len(data) for data in raw.members.values()]
    assert (raw.key, raw.extension) == ("3", "jpg")


def test_all_kinds_of_members_are_decoded(shards: ShardSet) -> None:
    wanted = ("image", "seg.png", "depth.npy", "json", "txt")
    sample = Sample(shards.read(2, wanted), channels=1, declared=wanted)
    assert sample.key == "2"
    assert sample.image.shape == (1, 24, 32)
    assert sample.label_map("seg.png").unique().tolist() == [0, 1, 2, 3]
    assert sample.array("depth.npy").tolist() == [[2] * 3] * 2
    assert sample.json() == {"boxes": BOXES}
    assert sample.text() == "grün"
    assert sample.data("txt") == b"gr\xc3\xbcn"
    assert sample.label_map("seg.png") is sample.label_map("seg.png")
    with pytest.raises(LookupError, match=r"member cls is used but not declared in Transform\.members"):
        sample.data("cls")


ARCHIVE = io.BytesIO()
np.savez(ARCHIVE, a=np.zeros(3))
OBJECTS = io.BytesIO()
np.save(OBJECTS, np.array([print], dtype=object), allow_pickle=True)


@pytest.mark.parametrize(
    ("name", "data", "use", "reason"),
    [
        ("seg.png", None, lambda s: s.label_map("seg.png"), "^it has no member seg.png$"),
        ("seg.png", jpeg(0), lambda s: s.label_map("seg.png"), "^seg.png: jpeg: a label map must be PNG or TIFF"),
        ("seg.png", label_png(0)[:-20], lambda s: s.label_map("seg.png"), "^seg.png: png: it ends"),
        ("depth.npy", None, lambda s: s.array("depth.npy"), "^it has no member depth.npy$"),
        ("depth.npy", npy(np.zeros(9))[:-3], lambda s: s.array("depth.npy"), "^depth.npy: it is not an array"),
        ("depth.npy", OBJECTS.getvalue(), lambda s: s.array("depth.npy"), "^depth.npy: .*allow_pickle=False"),
        ("depth.npy", ARCHIVE.getvalue(), lambda s: s.array("depth.npy"), r"^depth.npy: it is an archive \(npz\)"),
        ("json", b"{", lambda s: s.json(), "^json: not JSON: "),
        ("txt", b"\xff", lambda s: s.text(), "^txt: .*utf-8"),
        ("jpg", b"\xff\xd8\xff", lambda s: s.image, "^jpeg: "),
    ],
)
def test_missing_and_damaged_members_break_the_sample_by_name(
    name: str, data: bytes | None, use: Any, reason: str, tmp_path: Path
) -> None:
    path = write(tmp_path / "s.tar", 2, {f"1.{name}": data})
    shards = ShardSet.open(str(path), tmp_path / "cache")
    wanted = ("image", "seg.png", "depth.npy", "json", "txt")
    use(Sample(shards.read(0, wanted)))
    with pytest.raises(BrokenSample, match=reason):
        use(Sample(shards.read(1, wanted)))


def test_the_size_of_an_image_is_known_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    plain, turned = encoded(pixels(0, 20, 30)), encoded(pixels(0, 20, 30), exif=exif)
    images = [plain, turned, encoded(pixels(0, 20, 30), "PNG"), encoded(pixels(0, 20, 30), "WEBP")]
    sizes = [tuple(Sample(RawSample("a", "x", {"image": data})).image.shape[-2:]) for data in images]
    assert sizes == [(20, 30), (30, 20), (20, 30), (20, 30)]
    bmp = Sample(RawSample("a", "bmp", {"image": encoded(pixels(0, 20, 30), "BMP")}))
    assert bmp.size == (20, 30)
    monkeypatch.setattr(sample_module, "decode", None)  # any use of it would fail now
    assert [Sample(RawSample("a", "x", {"image": data})).size for data in images] == sizes


class Paired(Transform):
    """A crop that is drawn before anything is decoded, on the image, its label map, and its boxes."""

    members = ("image", "seg.png", "json")
    ragged = ("boxes",)

    def __call__(self, sample: Sample, rng: np.random.Generator) -> dict[str, Any]:
        crop = draw_crop(sample.size, (16, 16), AugmentConfig(), rng)
        boxes, kept = crop.boxes(torch.tensor(sample.json()["boxes"]))
        labels = crop.label_map(sample.label_map("seg.png"))
        image = crop.image(sample.image, "bilinear")
        return {"image": image, "labels": labels, "boxes": boxes, "number": torch.tensor(len(kept))}


def test_a_transform_of_pairs_is_trained_with_and_what_is_broken_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "s.tar", 6, {"2.seg.png": None, "4.json": b"["})
    shards = ShardSet.open(str(path), tmp_path / "cache")
    order = SampleOrder(6, seed=1, shuffle_samples=6, block_samples=1)
    loader = train_loader(shards, order, Paired(), global_batch=6, micro_batch=3)
    batches = [next(loader) for _ in range(4)]
    for batch in batches:
        assert batch["image"].shape == (3, 3, 16, 16)
        assert batch["labels"].shape == (3, 16, 16)
        assert [len(boxes) for boxes in batch["boxes"]] == batch["number"].tolist()
    # The same crops for other micro-batches.
    alone = train_loader(shards, order, Paired(), global_batch=6, micro_batch=1)
    for batch in batches:
        for number in range(3):
            one = next(alone)
            assert torch.equal(one["image"][0], batch["image"][number])
            assert torch.equal(one["labels"][0], batch["labels"][number])
            assert torch.equal(one["boxes"][0], batch["boxes"][number])
    reasons = {(key, reason.partition(":")[0]) for batch in batches for _, key, reason in batch["broken"]}
    assert reasons == {("s.tar/2", "it has no member seg.png"), ("s.tar/4", "json")}


class Label(Transform):
    members = ("cls", "image")

    def __call__(self, sample: Sample, rng: np.random.Generator) -> dict[str, Any]:
        if rng.random() < 0.5:  # what is drawn decides what is decoded
            return {"label": torch.tensor(int(sample.data("cls"))), "mean": torch.tensor(-1.0)}
        return {"label": torch.tensor(sample.raw.label), "mean": sample.image.float().mean()}


def test_members_are_decoded_when_they_are_used_and_once_for_all_repeats(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "s.tar", 4, {"1.jpg": b"\xff\xd8\xff"})
    shards = ShardSet.open(str(path), tmp_path / "cache")
    decoded: list[bytes] = []
    plain = sample_module.decode
    monkeypatch.setattr(sample_module, "decode", lambda data, *rest: (decoded.append(data), plain(data, *rest))[1])
    order = SampleOrder(4, seed=1, shuffle_samples=4, block_samples=1, repeats=4)
    batch = next(train_loader(shards, order, Label(), global_batch=16, micro_batch=16, seed=2))
    # One of them also replaces the broken sample, and is decoded for all of its repeats once.
    assert sorted(decoded.count(jpeg(number)) for number in (0, 2, 3)) == [1, 1, 2]
    of_broken = [position for position in range(16) if order.at(position)[1] == 1]
    needing_it = [position for position in of_broken if sample_rng(2, position).random() >= 0.5]
    assert 0 < len(needing_it) < 4
    assert [position for position, _, _ in batch["broken"]] == needing_it
    for number in (0, 2, 3):
        means = {float(m) for label, m in zip(batch["label"], batch["mean"], strict=True) if label == number and m >= 0}
        assert len(means) == 1


class Depth(Transform):
    members = ("depth.npy",)

    def __call__(self, sample: Sample, rng: np.random.Generator) -> dict[str, Any]:
        return {"depth": torch.from_numpy(sample.array("depth.npy").copy())}


OLD_HEADER = [
    "format", "tar_size", "tar_mtime_ns", "num_samples", "truncated", "extra", "left_out", "columns_sha256", "sha256"
]  # fmt: skip


def test_an_index_of_an_earlier_version_goes_on_and_grows_when_other_members_are_asked_for(tmp_path: Path) -> None:
    path = write(tmp_path / "s.tar")
    with path.open("rb") as file:
        index = build_index("s.tar", file.fileno(), {"card": {"n": 1}})
    write_index(index, index_path(path))
    before = index_path(path).read_bytes()
    header = json.loads(before.splitlines()[0])
    assert list(header) == OLD_HEADER
    assert index.extensions == ["cls", "jpg", "json", "seg.png", "txt"]

    shards = ShardSet.open(str(path), tmp_path / "cache")
    assert shards.read(1, ("image", "seg.png", "cls")).members["seg.png"] == label_png(1)
    assert index_path(path).read_bytes() == before, "images and texts need no other index"

    (batch,) = eval_loader(shards, Depth(), micro_batch=6)
    assert batch["depth"][:, 0, 0].tolist() == list(range(6))
    grown = read_index(index_path(path))
    assert grown is not None
    assert grown.extra == {"card": {"n": 1}}
    assert grown.left_out == index.left_out
    assert grown.same_members(index)
    assert [grown.members(2)[name] for name in index.extensions] == [
        index.members(2)[name] for name in index.extensions
    ]
    assert "depth.npy" in grown.extensions
    assert json.loads(index_path(path).read_text().splitlines()[0])["format"] == header["format"]

    after = index_path(path).read_bytes()
    again = ShardSet.open(str(path), tmp_path / "cache")
    assert again.read(1).data == jpeg(1)
    assert again.left_out(0) == shards.left_out(0)
    assert again.several_images(0) == shards.several_images(0)
    assert index_path(path).read_bytes() == after, "an index with more members serves all"


def test_a_tar_that_changed_keeps_the_wide_index_and_pickles_stay_out_of_it(tmp_path: Path) -> None:
    path = write(tmp_path / "s.tar", 2, {"0.pkl": pickle.dumps(1), "0.x.pth": b"x"})
    assert ShardSet.open(str(path), tmp_path / "cache").read(0, ("pkl", "x.pth", "depth.npy")).members.keys() == {
        "depth.npy"
    }
    write(path, 3)
    assert ShardSet.open(str(path), tmp_path / "cache").num_samples == 3
    index = read_index(index_path(path))
    assert index is not None
    assert index.scope.all_members
    assert index.extensions == ["cls", "depth.npy", "jpg", "json", "seg.png", "txt"]


def test_other_members_of_remote_shards_are_indexed_in_the_cache(tmp_path: Path) -> None:
    path = write(tmp_path / "served" / "s.tar")
    ShardSet.open(str(path), tmp_path / "unused")
    server = FlakyServer(tmp_path / "served")
    try:
        shards = ShardSet.open(f"{server.url}/s.tar", tmp_path / "cache", backoff=0.01)
        assert server.gets("s.tar") == 0, "the index that was uploaded counts the samples"
        assert shards.read(4).data == jpeg(4)
        for _ in range(2):
            assert [shards.read(n, ("depth.npy",)).members["depth.npy"] for n in range(6)] == [
                members(n)["depth.npy"] for n in range(6)
            ]
            shards = ShardSet.open(f"{server.url}/s.tar", tmp_path / "cache", backoff=0.01)
        assert server.gets("s.tar.index.jsonl") == 1
        assert server.gets("s.tar") == 1, "it is indexed from the copy that is there"
    finally:
        server.close()


def test_videos_make_samples_of_their_own(tmp_path: Path) -> None:
    """The same tar has other samples for a task that reads videos; those of images stay as they are."""
    listed = [("a.mp4", b"aaaa"), ("a.json", b'{"fps": 25}'), ("b.jpg", jpeg(1)), ("b.webm", b"bb"), ("c.jpg", jpeg(2))]
    listed += [("d.cls", b"1"), ("e.low.mp4", b"low"), ("e.mp4", b"high")]
    path = write_tar(tmp_path / "s.tar", listed)
    images = ShardSet.open(str(path), tmp_path / "cache")
    before = index_path(path).read_bytes()
    videos = ShardSet.open(str(path), tmp_path / "cache", main="video")
    assert [videos.key(n) for n in range(videos.num_samples)] == ["a", "b", "e"]
    assert [videos.read(n, ("video",)).data for n in range(3)] == [b"aaaa", b"bb", b"high"]
    assert videos.read(0, ("video", "json")).metadata == {"fps": 25}
    assert Sample(videos.read(1, ("video", "jpg"))).data("jpg") == jpeg(1)
    assert videos.choices() == ["1 sample with several videos (low.mp4, mp4): mp4 is read"]
    assert [images.key(n) for n in range(images.num_samples)] == ["b", "c"]
    assert index_path(path).read_bytes() == before
    assert images.left_out(0).counts["no image"] == (5, "a.mp4")
    assert videos.left_out(0).counts["no video"] == (2, "c.jpg")
    only = write_tar(tmp_path / "only.tar", [("a.jpg", jpeg(0))])
    with pytest.raises(OtherSamples, match=r"the samples of .*only\.tar are images, and videos are expected"):
        ShardSet.open(str(only), tmp_path / "cache", main="video")
    neither = write_tar(tmp_path / "neither.tar", [("a.cls", b"1")])
    with pytest.raises(DataError, match=r"neither\.tar holds no sample with a video \(mp4, m4v, mov, mkv, webm, avi\)"):
        ShardSet.open(str(neither), tmp_path / "cache", main="video")
    clips = write_tar(tmp_path / "clips.tar", [("a.cls", b"1"), ("a.mp4", b"aaaa")])
    with pytest.raises(OtherSamples, match=r"the samples of .*clips\.tar are videos, and images are expected"):
        ShardSet.open(str(clips), tmp_path / "cache")
    # An index under the name of another is not taken for it.
    index_path(path).write_bytes(Path(f"{path}.video.index.jsonl").read_bytes())
    assert ShardSet.open(str(path), tmp_path / "cache").num_samples == 2


@pytest.mark.parametrize("wide", [False, True])
def test_a_label_map_that_no_sample_has_is_refused_with_the_members(tmp_path: Path, wide: bool) -> None:
    for number in range(2):
        write_tar(tmp_path / f"{number}.tar", [(f"a.{name}", data) for name, data in members(number).items()])
    shards = ShardSet.open(f"{tmp_path}/*.tar", tmp_path / "cache", warn=False)
    if wide:
        shards.declare(["depth.npy"])

    def check(member: str) -> None:
        as_read_by(SegmentationConfig(label=member), shards)

    for found in ("seg.png", "depth.npy"):
        check(found)
    for missing in ("mask.png", "mask.tif", *(("mask.npy",) if wide else ())):
        with pytest.raises(DataError, match=rf"no sample has a label map {missing}; .* cls, .*jpg.*: set task.label"):
            check(missing)
    write_tar(tmp_path / "2.tar", [("b.jpg", jpeg(0)), ("b.mask.png", label_png(1))])
    shards = ShardSet.open(f"{tmp_path}/*.tar", tmp_path / "cache", warn=False)
    check("mask.png")


def test_sets_and_evaluations_check_the_label_maps(tmp_path: Path) -> None:
    objects = b'{"width": 8, "height": 8, "objects": []}'
    members = [("a.jpg", jpeg(0)), ("a.objects.json", objects), ("a.seg.png", label_png(0))]
    write_tar(tmp_path / "0.tar", members)
    data = DataConfig(shards=str(tmp_path / "0.tar"), eval_shards=str(tmp_path / "0.tar"), cache_dir=str(tmp_path))
    for reads in (SegmentationConfig(), DetectionConfig(semantic_classes=3), DetectionConfig(semantic_label="x.png")):
        assert open_training(data, task=reads).num_samples == open_held_out(data, task=reads).num_samples == 1
    with pytest.raises(DataError, match=r"^data\.shards=.*0.tar: no sample has a label map mask.png"):
        open_training(data, task=SegmentationConfig(label="mask.png"))
    with pytest.raises(DataError, match=r"^data\.eval_shards=.*0.tar: no sample has a label map mask.png"):
        open_held_out(data, task=SegmentationConfig(label="mask.png"))
    branch = DetectionConfig(semantic_classes=3, semantic_label="mask.png")
    with pytest.raises(DataError, match=r"no sample has a label map mask.png; .*, or set task.semantic_classes=0"):
        open_training(data, task=branch)
    assert open_held_out(data, task=branch).num_samples == 1  # an evaluation needs none
    with pytest.raises(ConfigError, match=r"task\.num_classes=0: no dataset card describes the member mask.png"):
        SegmentationConfig(label="mask.png").complete({}, None)
