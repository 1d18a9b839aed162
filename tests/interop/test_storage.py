"""Other files than weights, damaged ones, and those that would run code each end in one sentence; none of it is run."""

from __future__ import annotations

import os
import pickle
import sys
import tarfile
import types
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from swinv2_train.checkpoint.errors import CheckpointError
from swinv2_train.config.errors import ConfigError
from swinv2_train.interop.names import FORMATS
from swinv2_train.interop.source import open_source
from tests.interop.files import (
    canonical,
    classifier,
    official_file,
    official_simmim_file,
    released_v1_file,
)
from tests.models.golden import golden_config


class Runs:
    """Does something when it is unpickled by somebody careless."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("zipped", [True, False])
def test_what_a_pickle_asks_for_is_never_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zipped: bool) -> None:
    package, module = types.ModuleType("yacs"), types.ModuleType("yacs.config")
    node = type("CfgNode", (dict,), {"__module__": "yacs.config"})
    module.CfgNode = node
    content = official_simmim_file()
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "yacs", package)
        patched.setitem(sys.modules, "yacs.config", module)
        config = node(MODEL=node(SWINV2=node(WINDOW_SIZE=12)), DATA=node(IMG_SIZE=192))
        config.__dict__["__immutable__"] = True
        more = {"config": config, "best": np.float64(83.5), "evil": Runs(tmp_path / "done")}
        path = tmp_path / "ckpt.pth"
        torch.save({**content, **more}, path, _use_new_zipfile_serialization=zipped)
    with open_source(tmp_path / "ckpt.pth") as source:
        assert not (tmp_path / "done").exists()
        assert f"{os.mkdir.__module__}.mkdir" in source.notes[0]
        assert "yacs.config.CfgNode" in source.notes[0]
        assert "yacs" not in sys.modules
        assert source.metadata["model"]["window"] == 12, "plain data of the config inside is read"
        for key in ("mask_token", "layers.3.blocks.1.mlp.fc2.bias"):
            assert torch.equal(source.tensor(key), content["model"][source.renamed[key]])


def test_a_module_in_a_file_of_the_old_format_writes_nothing(tmp_path: Path) -> None:
    """torch writes a patch file where the source of a pickled module has changed; the pickle may name the file."""

    def text(value: str) -> bytes:
        return b"X" + len(value.encode()).to_bytes(4, "little") + value.encode()

    state = b"N}(" + text("dump_patches") + b"\x88" + text("__name__") + text(f"{tmp_path}/planted") + b"u\x86"
    module = b"(" + text("module") + b"ctorch\nSize\n" + state + b"b" + text("source.py") + text("planted") + b"t"
    head = [pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, {})]
    (tmp_path / "file.pth").write_bytes(b"".join([*head, b"\x80\x02", module, b"Q.", pickle.dumps([], 2)]))
    with pytest.raises(CheckpointError, match=r"file\.pth"):
        open_source(tmp_path / "file.pth")
    assert [path.name for path in tmp_path.iterdir()] == ["file.pth"]


def cut(path: Path, share: float) -> Path:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    return path


OTHER_KINDS = ("tar", "text", "noise", "video", "image", "array")
"""Files that are not damaged weights, so a retry with the same file cannot succeed."""


def bad_file(directory: Path, kind: str) -> Path:
    path = directory / "weights.pth"
    if kind == "v1":
        torch.save(released_v1_file(), path)
    elif kind == "cut pth":
        torch.save(official_file(64, window=4), path)
        cut(path, 0.9)
    elif kind == "cut safetensors":
        path = directory / "model.safetensors"
        save_file(FORMATS["timm"].write(canonical(classifier()), golden_config()), path)
        cut(path, 0.9)
    elif kind == "no header":
        path = directory / "model.safetensors"
        path.write_bytes(b"\x10\0\0\0\0\0\0\0{not json at all")
    elif kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("readme.txt", "no weights")
    elif kind == "keys":
        torch.save({"epoch": 3, "optimizer": {}}, path)
    elif kind == "other model":
        torch.save({"conv1.weight": torch.zeros(3, 3)}, path)
    elif kind == "torchvision":
        torch.save({"features.1.0.attn.qkv.weight": torch.zeros(3, 3)}, path)
    elif kind == "cr":
        torch.save({"stages.0.blocks.0.attn.meta_mlp.fc1.weight": torch.zeros(3, 3)}, path)
    elif kind == "tar":
        with tarfile.open(path, "w") as archive:
            archive.add(__file__, "storages")
    elif kind == "list":
        torch.save([torch.zeros(3)], path)
    else:
        texts = {
            "empty": b"", "html": b"<!DOCTYPE html><html>Not found</html>", "text": b"see https://example.org\n",
            "lfs": b"version https://git-lfs.github.com/spec/v1\n", "noise": bytes(range(256)) * 4,
            "video": b"\0\0\0\x20ftypisom" + bytes(600), "image": b"\xff\xd8\xff\xe0" + bytes(600),
            "array": b"\x93NUMPY" + bytes(600), "opcode": b"\x80\x02" + bytes(600),
        }  # fmt: skip
        path = path.with_suffix(".mp4") if kind == "video" else path
        path.write_bytes(texts[kind])
    return path


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("v1", "contains a Swin Transformer V1"),
        ("cut pth", "is cut off or damaged"),
        ("cut safetensors", "is not a complete safetensors file: it is cut off: it has"),
        ("no header", "is not a complete safetensors file: its header is not JSON"),
        ("zip", "zip archive without weights"),
        ("keys", "holds no named tensors .it has epoch, optimizer"),
        ("other model", "is not a Swin Transformer V2: it lacks patch_embed.proj.weight"),
        ("torchvision", "torchvision's Swin"),
        ("cr", "swinv2_cr"),
        ("tar", "is a tar archive, not a file of weights"),
        ("list", "holds a list, not named tensors"),
        ("empty", "is empty"),
        ("html", "is a web page"),
        ("text", "is a text file"),
        ("lfs", "Git LFS pointer"),
        ("noise", "is not a file of weights: use one of safetensors, or one of torch.save"),
        ("video", r"is a video \(mp4\), not a file of weights"),
        ("image", r"is an image \(jpeg\), not a file of weights"),
        ("array", r"is an array \(npy\), not a file of weights"),
        ("opcode", "is broken or not a file of weights: its pickle has the unknown opcode 0"),
    ],
)
def test_a_wrong_file_is_one_sentence(tmp_path: Path, kind: str, sentence: str) -> None:
    path = bad_file(tmp_path, kind)
    with pytest.raises((ConfigError, CheckpointError), match=sentence) as caught:
        open_source(path)
    assert str(path) in str(caught.value)
    if kind in OTHER_KINDS:
        assert isinstance(caught.value, ConfigError)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["model.onnx", "model.pt2"])
def test_weights_are_not_read_from_an_exported_program(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\x08\x0a\x12")
    for path in (tmp_path, tmp_path / name):
        with pytest.raises(ConfigError, match=r"is a program .* cannot be read back; name the run or checkpoint"):
            open_source(path)
