"""One file of weights: what the safetensors library reads from it is the checkpoint, and making it takes no memory."""

from __future__ import annotations

import errno
import json
import os
import tracemalloc
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load, load_file, save

from swinv2_train.checkpoint import consolidate, disk, pieces
from swinv2_train.checkpoint.consolidate import write_weights
from swinv2_train.checkpoint.errors import CheckpointError
from swinv2_train.checkpoint.layout import MANIFEST, manifest_text, read_manifest
from swinv2_train.checkpoint.tensor_file import read_header, write_safetensors
from swinv2_train.config.errors import ConfigError
from tests.checkpoint.ranks import SHAPES
from tests.checkpoint.written import values, write

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@pytest.mark.parametrize("slice_elements", [4, 1 << 22])
@pytest.mark.parametrize("ema", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_library_reads_every_weight(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, ema: bool, slice_elements: int
) -> None:
    monkeypatch.setattr(pieces, "SLICE_ELEMENTS", slice_elements)
    tensors = values()
    source = write(tmp_path, tensors=tensors)
    out = tmp_path / "weights.safetensors"
    written = write_weights(source, out, ema=ema, dtype=dtype)
    loaded = load_file(out)
    assert loaded.keys() == SHAPES.keys()
    for name, shape in SHAPES.items():
        expected = tensors[name]["ema" if ema else "weight"].view(shape).to(DTYPES[dtype])
        assert loaded[name].dtype == DTYPES[dtype]
        assert torch.equal(loaded[name], expected)
    assert written.size == out.stat().st_size
    with safe_open(out, framework="pt") as file:
        metadata = file.metadata()
    assert metadata["format"] == "pt"
    assert metadata["step"] == "10"
    assert metadata["weights"] == ("ema" if ema else "raw")
    assert json.loads(metadata["geometry"]) == read_manifest(source).metadata
    assert json.loads(metadata["versions"])["torch"]
    assert not list(tmp_path.glob(".*"))


def test_the_same_weights_give_the_same_file_whoever_saved_them(tmp_path: Path) -> None:
    shapes = dict(reversed(SHAPES.items()))
    tensors = values()
    sources = [write(tmp_path / "a", tensors=tensors), write(tmp_path / "b", tensors=tensors, shapes=shapes, cuts=())]
    first, second = (write_weights(path, path.parent / "x.safetensors") for path in sources)
    assert first == second


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(
    st.dictionaries(
        st.text(st.characters(codec="utf-8", exclude_characters='"\\'), min_size=1, max_size=8),
        st.tuples(st.sampled_from(sorted(DTYPES)), st.lists(st.integers(0, 4), max_size=3)),
        max_size=5,
    )
)
def test_any_set_of_tensors_is_a_valid_file(
    tmp_path_factory: pytest.TempPathFactory, tensors: dict[str, tuple[str, list[int]]]
) -> None:
    path = tmp_path_factory.mktemp("files") / "x.safetensors"
    made = {name: torch.randn(shape).to(DTYPES[dtype]) for name, (dtype, shape) in tensors.items()}
    data = [tensor.reshape(-1).view(torch.uint8).numpy().tobytes() for tensor in made.values()]
    write_safetensors(path, tensors, data, {"format": "pt"})
    content = path.read_bytes()
    loaded = load(content)
    assert loaded.keys() == made.keys()
    assert all(torch.equal(loaded[name], made[name]) for name in made)
    assert int.from_bytes(content[:8], "little") % 8 == 0
    with path.open("rb") as file:
        header = read_header(file)
    start = 8 + int.from_bytes(content[:8], "little")
    for name, stored in json.loads(content[8:start]).items():
        if name == "__metadata__":
            assert header.metadata == stored
        else:
            entry = header.entries[name]
            assert [entry.begin - start, entry.end - start] == stored["data_offsets"]
            assert (entry.dtype, list(entry.shape)) == (stored["dtype"], stored["shape"])


def test_the_header_that_the_library_writes_is_understood(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(save({"a": torch.arange(6.0).view(2, 3)}, {"format": "pt"}))
    with path.open("rb") as file:
        entry = read_header(file).entries["a"]
    assert (entry.dtype, entry.shape, entry.end - entry.begin) == ("F32", (2, 3), 24)
    assert path.stat().st_size == entry.end


def test_too_little_data_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"8 bytes instead of 12 for x"):
        write_safetensors(tmp_path / "x", {"a": ("fp32", [3])}, [b"12345678"])


@pytest.mark.parametrize("dtype", DTYPES)
def test_memory_does_not_grow_with_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str) -> None:
    shapes = {"big.weight": (2 << 10, 1 << 10), "small": (3,)}
    source = write(tmp_path, shapes=shapes, cuts=(0.4,), ema=False)
    monkeypatch.setattr(pieces, "SLICE_ELEMENTS", 1 << 14)
    converted = []
    real = torch.frombuffer

    def recording(data: bytearray, **options: torch.dtype) -> torch.Tensor:
        tensor = real(data, **options)
        converted.append(tensor.numel())
        return tensor

    monkeypatch.setattr(torch, "frombuffer", recording)
    tracemalloc.start()
    try:
        write_weights(source, tmp_path / "x.safetensors", dtype=dtype, verify=False)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20  # of 8 MiB of weights; torch's own memory does not count, hence the list
    assert max(converted, default=0) <= 1 << 14
    assert sum(converted) == (0 if dtype == "fp32" else (2 << 20) + 3)


def test_a_weight_too_large_for_fp16_is_refused(tmp_path: Path) -> None:
    tensors = values()
    tensors["encoder.bias"]["weight"][2] = 70000.0
    source = write(tmp_path, tensors=tensors)
    out = tmp_path / "x.safetensors"
    with pytest.raises(CheckpointError, match=r"encoder\.bias has values beyond the range of fp16"):
        write_weights(source, out, dtype="fp16")
    assert [path.name for path in tmp_path.iterdir()] == [source.name]
    write_weights(source, out, dtype="bf16")
    assert load_file(out)["encoder.bias"][2] == 70144.0  # the nearest bf16


def test_infinite_weights_are_copied_as_they_are(tmp_path: Path) -> None:
    tensors = values()
    tensors["encoder.bias"]["weight"][:2] = torch.tensor([float("inf"), float("nan")])
    out = tmp_path / "x.safetensors"
    write_weights(write(tmp_path, tensors=tensors), out, dtype="fp16")
    assert load_file(out)["encoder.bias"][0] == float("inf")
    assert load_file(out)["encoder.bias"][1].isnan()


def test_usage_errors_are_rejected_before_anything_is_read(tmp_path: Path) -> None:
    source = write(tmp_path, ema=False)
    taken = tmp_path / "taken.safetensors"
    taken.write_text("mine")
    for out, reason in (
        (taken, "already exists"),
        (tmp_path / "weights.pt", "must end in .safetensors"),
        (tmp_path / "none" / "x.safetensors", "none is not a directory"),
    ):
        with pytest.raises(ConfigError, match=reason):
            write_weights(source, out)
    with pytest.raises(ConfigError, match="holds no moving average"):
        write_weights(source, tmp_path / "x.safetensors", ema=True)
    assert taken.read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == [source.name, taken.name]


def _flip_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


def _cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def _no_header(path: Path) -> None:
    path.write_bytes(b"\xff" * path.stat().st_size)


def _rename_tensor(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b'"encoder', b'"uncoder').replace(b'"decoder', b'"uncoder'))


DAMAGE = {
    "flipped": (_flip_a_byte, "has been changed", None),
    "cut off": (_cut_off, "bytes instead of", r"is broken \(it is cut off: it has"),
    "no header": (_no_header, "has been changed", r"is broken \(its header would take"),
    "other names": (_rename_tensor, "has been changed", "lacks '"),
    "missing": (Path.unlink, "cannot be read", r"cannot be read \(No such file"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_named_and_leaves_nothing_behind(tmp_path: Path, kind: str) -> None:
    source = write(tmp_path)
    damage, verified, unverified = DAMAGE[kind]
    damage(source / "model" / "rank-00003-of-00004.safetensors")
    out = tmp_path / "x.safetensors"
    with pytest.raises(CheckpointError, match=verified) as caught:
        write_weights(source, out)
    assert str(source) in str(caught.value)
    if unverified:
        with pytest.raises(CheckpointError, match=unverified) as caught:
            write_weights(source, out, verify=False)
        assert str(source) in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == [source.name]
    write_weights(source, out, ema=True)  # reads other files


def test_a_gap_in_a_parameter_is_found_without_hashes(tmp_path: Path) -> None:
    source = write(tmp_path)
    manifest = read_manifest(source)
    del manifest.fragments[1]
    (source / MANIFEST).write_text(manifest_text(manifest))
    with pytest.raises(CheckpointError, match=r"join at element|of its"):
        write_weights(source, tmp_path / "x.safetensors", verify=False)


@pytest.mark.parametrize("failing", ["disk full", "interrupt", "space"])
def test_a_failure_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    source = write(tmp_path)
    out = tmp_path / "x.safetensors"
    if failing == "space":
        monkeypatch.setattr(disk.shutil, "disk_usage", lambda _: namedtuple("Usage", "total used free")(9, 8, 1))
    else:
        raised = KeyboardInterrupt() if failing == "interrupt" else OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        def fail(_: int) -> None:
            assert list(tmp_path.glob(".x.safetensors.*.partial"))
            raise raised

        monkeypatch.setattr(consolidate.os, "fsync", fail)
    expected = KeyboardInterrupt if failing == "interrupt" else CheckpointError
    with pytest.raises(expected) as caught:
        write_weights(source, out)
    if failing == "disk full":
        assert (
            str(caught.value)
            == f"{out} cannot be written (No space left on device; make room there, or choose another path)"
        )
    elif failing == "space":
        assert f"KiB must be written, and {tmp_path} has 0.0 KiB free: make room: " in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == [source.name]
