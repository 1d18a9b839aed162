"""Arrays of NumPy and GeoTIFFs as files to pack and as members of shards."""

from __future__ import annotations

import json
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from swinv2_train.config.schema import DataConfig
from swinv2_train.data.card import Card
from swinv2_train.data.contact_sheet import contact_sheet
from swinv2_train.data.decode import DecodeOptions
from swinv2_train.data.errors import BrokenSample, DataError
from swinv2_train.data.image_files import scan_folder
from swinv2_train.data.inspect import inspect
from swinv2_train.data.pack import PackOptions, pack
from swinv2_train.data.sample import Sample
from swinv2_train.data.shards import ShardSet
from tests.data.packed import SMALL, open_set
from tests.data.samples import jpeg, write_tar
from tests.data.scientific import geotiff, npy, npz, values


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def contents(out: Path) -> dict[str, bytes]:
    """Every member of the packed tars."""
    found = {}
    for path in sorted(out.glob("*.tar")):
        with tarfile.open(path) as tar:
            found.update({member.name: tar.extractfile(member).read() for member in tar})  # type: ignore[union-attr]
    return found


@pytest.mark.parametrize("kind", ["npy", "npz", "tif"])
def test_files_are_packed_unchanged_with_exact_statistics(tmp_path: Path, kind: str) -> None:
    arrays = [values(n, 3, "float32", 20 + n, 30) for n in range(7)]
    for array in arrays:
        array[:, 0, 0], array[:, 1, :2] = np.nan, -9999
    make = {"npy": npy, "npz": lambda array: npz(image=array), "tif": lambda array: geotiff(array, "0")}[kind]
    folder = write(tmp_path / "src", {f"{'ab'[n % 2]}/{n}.{kind}": make(array) for n, array in enumerate(arrays)})
    write(folder, {"a/notes.txt": b"text"})
    options = replace(SMALL, nodata=[-9999.0])
    report = pack(str(folder), tmp_path / "out", options, classes=True, eval_share=0.3)
    assert (report.broken, report.lost, report.cards["train"].num_samples > 3) == ([], False, True)
    packed = contents(tmp_path / "out")
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob(f"*.{kind}")}
    assert {name: data for name, data in packed.items() if name.endswith(kind)} == files  # tags and all
    again = pack(str(folder), tmp_path / "out", options, classes=True, eval_share=0.3)
    assert again.num_reused == again.num_shards
    shards = open_set(tmp_path / "out", "train-*.tar")
    checked = inspect(shards, nodata=[-9999.0])
    assert checked.complete
    assert shards.card is not None
    for found in (shards.card, checked.card, card_of(tmp_path / "out" / "train.dataset.json")):
        stats, seen = found.values_of(3), [arrays[int(shards.key(n)[-1])] for n in range(shards.num_samples)]
        stacked = np.concatenate([array.reshape(3, -1) for array in seen], axis=1).astype(np.float64)
        stacked[stacked == -9999] = np.nan
        assert stats is not None
        assert found.nodata == [-9999.0]
        for channel, row in zip(stats.channels, stacked, strict=True):
            assert (channel.count, channel.missing) == ((~np.isnan(row)).sum(), np.isnan(row).sum())
            assert (channel.mean, channel.std) == pytest.approx((np.nanmean(row), np.nanstd(row)), rel=1e-12)
    # Packed again from its shards, and drawn.
    pack(str(tmp_path / "out" / "train-*.tar"), tmp_path / "twice", options)
    assert contents(tmp_path / "twice").items() <= packed.items()
    assert contact_sheet(shards, tmp_path / "sheet.png", num_samples=4, nodata=(-9999.0,)) == 4


def card_of(manifest: Path) -> Card:
    return Card.from_json(json.loads(manifest.read_text())["card"])


def test_arrays_are_images_only_where_there_are_no_others(tmp_path: Path) -> None:
    array, photo = npy(values(0, 2, "float32")), jpeg(0)
    mixed = write(tmp_path / "mixed", {"a.npy": array, "b.jpg": photo})
    scan = scan_folder(mixed)
    assert ([Path(path).name for path in scan.images], scan.unread, scan.lost) == (["b.jpg"], {"npy": 1}, True)
    write(tmp_path, {"list.csv": b"path\nmixed/a.npy\nmixed/b.jpg\n"})
    with pytest.raises(DataError, match=r"names arrays \(.*a\.npy\) and images \(.*b\.jpg\): pack them separately"):
        pack(str(tmp_path / "list.csv"), tmp_path / "out", PackOptions())
    wrong = write(tmp_path / "wrong", {"a.npy": photo, "b.npy": array})
    assert [line["reason"] for line in pack(str(wrong), tmp_path / "out", PackOptions()).broken] == [
        "it is jpeg, and the source has arrays"
    ]


def test_sets_that_have_images_read_as_before_and_arrays_on_request(tmp_path: Path) -> None:
    array = values(0, 2, "float32")
    members = [
        ("a.jpg", jpeg(0)), ("a.npy", npy(array)), ("a.cls", b"1"), ("b.npy", npy(array)), ("c.jpg", jpeg(1)),
    ]  # fmt: skip
    tar = str(write_tar(tmp_path / "s.tar", members))
    plain = ShardSet.open(tar, tmp_path / "cache", warn=False)
    assert [plain.key(n) for n in range(plain.num_samples)] == ["a", "c"]
    assert plain.left_out(0).counts == {"no image": (1, "b.npy"), "other type:npy": (1, "a.npy")}
    chosen = ShardSet.open(tar, tmp_path / "cache", warn=False, image="npy")
    assert [chosen.key(n) for n in range(chosen.num_samples)] == ["a", "c"]
    assert chosen.read(0, ("image",)).data == npy(array)
    with pytest.raises(BrokenSample, match=r"it has no image npy \(data\.image, --image\), only jpg"):
        chosen.read(1, ("image",))


def test_shards_of_arrays_are_read_like_others(tmp_path: Path) -> None:
    arrays = [values(n, 2, "int16") for n in range(3)]
    members = [
        ("a.npy", npy(arrays[0])), ("a.cls", b"1"), ("a.mask.npy", npy(arrays[1])), ("b.npz", npz(x=arrays[1])),
        ("b.json", b"{}"), ("c.npy", npy(arrays[2])), ("c.npz", npz(x=arrays[0])), ("d.cls", b"0"),
    ]  # fmt: skip
    tar = str(write_tar(tmp_path / "s.tar", members))
    for _ in range(2):  # indexed, and from the index
        shards = ShardSet.open(tar, tmp_path / "cache", warn=False)
        assert [shards.key(n) for n in range(shards.num_samples)] == ["a", "b", "c"]
        assert shards.left_out(0).counts == {
            "shared key": (1, "c.npz"), "other type:npy": (1, "a.mask.npy"), "no image": (1, "d.cls"),
        }  # fmt: skip
        assert shards.several_images(0) == {("mask.npy", "npy"): 1, ("npy", "npz"): 1}
        options = DecodeOptions.of(DataConfig(scale=[-40000, 40000]), (0.5,))
        for number, array in enumerate(arrays):
            image = Sample(shards.read(number, ("image", "cls")), 2, options).image.numpy()
            assert image == pytest.approx((array + 40000.0) / 80000, abs=1e-6)
    shards.declare(("mask.npy",))
    assert shards.read(0, ("image", "mask.npy")).members.keys() == {"image", "mask.npy"}
    assert ShardSet.open(tar, tmp_path / "cache", warn=False, image="npz").read(2, ("image",)).data == npz(x=arrays[0])
