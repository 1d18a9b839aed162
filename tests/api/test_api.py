"""The Python API: its page runs, images may have any form, and importing the package costs nothing."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import swinv2_train
from swinv2_train.api.model import Model
from swinv2_train.config.errors import ConfigError
from swinv2_train.data.errors import DataError
from swinv2_train.interop.load import load_model
from tests.documents import run_python
from tests.evaluated import classifier, encoder, labelled_shards
from tests.runs import make_images, make_shard

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "swinv2_train" / "api" / "README.md"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the results of the commands on the main page."""
    folder = tmp_path_factory.mktemp("api")
    classifier(folder / "runs" / "classes" / "model.safetensors", names=["cats", "dogs", "birds"])
    encoder(folder / "runs" / "mine" / "model.safetensors")
    labelled_shards(folder / "classes", 3, 3).rename(folder / "classes" / "eval-000000.tar")
    (folder / "shards").mkdir()
    for name in ("train", "eval"):
        make_shard(folder / "shards" / f"{name}-000000.tar", 8, len(name))
    make_images(folder / "images", 2, 0)
    return folder


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    return swinv2_train.load(folder / "runs" / "classes", device="cpu")


@pytest.mark.slow
def test_the_page_runs(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(folder)
    page = run_python(PAGE)
    capsys.readouterr()
    assert page["vectors"].shape == (3, 128)
    assert [tuple(each.shape) for each in (page["stage3"], page["stage4"])] == [(2, 64, 2, 2), (2, 128, 1, 1)]
    assert (folder / "runs" / "notebook" / "checkpoints").is_dir()
    assert page["config"].optim.lr == 1e-3
    assert page["found"].samples == 8
    losses = page["losses"]
    assert set(losses) >= {"loss_mask", "loss_box_reg", "loss_classifier", "loss_objectness"}
    gradients = [parameter.grad for parameter in page["model"].backbone.parameters()]
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)
    assert any(gradient.abs().max() > 0 for gradient in gradients)

    assert swinv2_train.train(page["config"]) == Path("runs/notebook")  # it is finished
    page["config"].optim.lr = 2e-3
    page["config"].model.window = 2
    with pytest.raises(ConfigError, match=r"run\.dir"):
        swinv2_train.train(page["config"])


def test_five_names_without_torch_until_they_are_used() -> None:
    script = """
import sys, swinv2_train
assert set(swinv2_train.__all__) <= set(dir(swinv2_train))
print(*swinv2_train.__all__, *(name for name in ("torch", "numpy", "hydra", "PIL") if name in sys.modules))
from swinv2_train import compose, evaluate, train
print("torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    names, imported = done.stdout.splitlines()
    assert names.split() == ["compose", "evaluate", "load", "open_shards", "train"]
    assert imported == "False"
    assert [getattr(swinv2_train, name).__name__ for name in names.split()] == names.split()
    with pytest.raises(AttributeError, match="has no attribute 'lod'"):
        swinv2_train.lod  # noqa: B018
    assert (ROOT / "swinv2_train" / "py.typed").is_file()


def forms(path: Path) -> dict[str, Any]:
    """The same image in every form; saved without loss, so that all have the same pixels."""
    picture = Image.open(path).convert("RGB")
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    array = np.array(picture)
    return {
        "bytes": stream.getvalue(),
        "pil": picture,
        "array": array,
        "tensor": torch.from_numpy(array).permute(2, 0, 1),
        "rgba": picture.convert("RGBA"),
        "listed": [picture],
    }


def test_images_in_any_form_have_the_same_features(model: Model, folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    Image.open(folder / "images" / "0000.jpg").save(path)
    expected = model.features(str(path))
    assert expected.shape == (1, 128)
    for name, image in forms(path).items():
        assert torch.allclose(model.features(image), expected, atol=1e-4), name
    batch = torch.cat([model.preprocess(path), model.preprocess(folder / "images" / "0001.jpg")])
    assert batch.shape == (2, 3, 32, 32)
    both = model.features(batch, batch=1)
    assert torch.equal(both[:1], expected)
    assert torch.equal(model.features(iter([path, folder / "images" / "0001.jpg"]), batch=1), both)
    deep = model.preprocess(np.array(Image.open(path).convert("RGB")).astype(np.uint16) * 257)
    assert torch.allclose(deep, batch[:1], atol=0.02)  # a step of 8 bits is 1 / 255 / 0.25
    gray = Image.open(path).convert("L")
    assert torch.equal(model.features(gray), model.features(np.array(gray)))
    palette = Image.open(path).convert("P")
    assert torch.equal(model.features(palette), model.features(palette.convert("RGB")))


def test_a_rotated_photograph_is_upright_from_any_form(model: Model, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6
    pixels = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    opened = Image.open(tmp_path / "a.png")
    assert torch.equal(model.preprocess(opened), model.preprocess(tmp_path / "a.png"))
    assert torch.equal(model.preprocess(opened), model.preprocess(np.rot90(pixels, -1).copy()))


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ("/nowhere.jpg", r"image /nowhere\.jpg: it cannot be read"),
        ([b"\xff\xd8\xff"], "image 0: "),
        (
            np.zeros((4, 4, 3)),
            r"image 0: its samples are float64: .*, as in load\(path, 'data.scale=\[0,1\]'\)",
        ),
        (torch.zeros(3, 4, 4), "image 0: its samples are float32: convert to 8 or 16 bit"),
        (np.zeros((4, 0, 3), np.uint8), r"image 0: its shape is \(4, 0, 3\)"),
        (Image.new("F", (4, 4)), "image 0: its samples are float32"),
        (Image.new("I", (4, 4)), "image 0: its samples are int32"),
        (np.zeros((4, 4, 5), np.uint8), "image 0: it has 5 channels, not 3"),
        ([], "there are no images"),
    ],
)
def test_images_that_cannot_be_used_are_named(model: Model, images: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        model.features(images)
    with pytest.raises(DataError, match=message):
        model.preprocess(images)


def test_stored_values_are_scaled_in_any_form(folder: Path, tmp_path: Path) -> None:
    model = swinv2_train.load(folder / "runs" / "classes", "data.scale=[0,10000]", device="cpu")
    array = np.random.default_rng(0).integers(0, 10000, (40, 40, 3)).astype(np.uint16)
    np.save(tmp_path / "a.npy", array)
    expected = model.preprocess(tmp_path / "a.npy")
    assert expected.abs().max() <= 2
    forms = {
        "uint16": array,
        "float32": array.astype(np.float32),
        "int32": array.astype(np.int32),
        "tensor": torch.from_numpy(array.astype(np.int16)).permute(2, 0, 1),
    }
    for name, image in forms.items():
        assert torch.equal(model.preprocess(image), expected), name
    gray = np.repeat(array[..., :1], 3, axis=2)
    plain = {
        "I": Image.fromarray(array[..., 0].astype(np.int32)),
        "F": Image.fromarray(array[..., 0].astype(np.float32)),
        "I;16": Image.fromarray(array[..., 0]),
    }
    for name, picture in plain.items():
        assert torch.equal(model.preprocess(picture), model.preprocess(gray)), name


def test_pictures_of_sixteen_bits_keep_them(model: Model, tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 1600).reshape(40, 40).astype(np.uint16)
    Image.fromarray(ramp).save(tmp_path / "a.png")
    expected = model.preprocess(tmp_path / "a.png")
    assert torch.equal(model.preprocess(Image.fromarray(ramp)), expected)
    Image.frombytes("I;16B", (40, 40), ramp.astype(">u2").tobytes()).save(tmp_path / "a.tif")
    assert torch.equal(model.preprocess(Image.open(tmp_path / "a.tif")), expected)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda model, path: model.features(path, batch=0), "batch=0: must be an integer of at least 1"),
        (lambda model, path: swinv2_train.load(path, device="tpu"), "device=tpu: must be one of auto, cuda, cpu"),
        (lambda model, path: swinv2_train.evaluate(path, "a.tar", precision="int8"), "precision=int8: must be one of"),
        (lambda model, path: swinv2_train.evaluate(path, "a.tar", batch=0), "batch=0: must be an integer"),
        (lambda model, path: swinv2_train.evaluate(path, "a.tar", foo=1), "unknown option foo; use one of which"),
        (lambda model, path: swinv2_train.open_shards("a.tar", scale="p1-p99"), "scale=p1-p99: must be numbers"),
        (lambda model, path: swinv2_train.open_shards("a.tar", scale=[2, 1]), "the first number must be below"),
    ],
)
def test_wrong_arguments_are_one_sentence(model: Model, folder: Path, call: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        call(model, folder / "runs" / "classes")
    assert message in str(caught.value)


def test_training_needs_the_main_thread() -> None:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as pool, pytest.raises(ConfigError, match="needs the main thread"):
        pool.submit(swinv2_train.train, None).result()


def test_a_model_is_that_of_its_weights(model: Model, folder: Path) -> None:
    loaded = load_model(folder / "runs" / "classes")
    images = model.preprocess(folder / "images" / "0000.jpg")
    with torch.no_grad():
        assert torch.allclose(model.probabilities(images), loaded.model(images).softmax(dim=1))
    assert (model.class_names, model.resolution, model.mean) == (["cats", "dogs", "birds"], (32, 32), [0.5] * 3)
    assert "classification model" in repr(model)
    other = swinv2_train.load(folder / "runs" / "mine", "data.resolution=64", "model.window=8", device="cpu")
    assert other.maps(images=folder / "images" / "0000.jpg", stages=(1,))[0].shape == (1, 16, 16, 16)
    with pytest.raises(ConfigError, match=r"is a simmim model, which has no classes; use features\(\) or maps\(\)"):
        other.probabilities(images)
    with pytest.raises(DataError, match=r"image 0: pass a file, bytes, a PIL image, .* not 3"):
        other.features([3])  # type: ignore[list-item]
    with pytest.raises(DataError, match="pass an image or an iterable of images, not 3"):
        model.probabilities(3)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="stages=5: must be numbers of stages, from 1 to 4"):
        other.maps(images, stages=(5,))
    with pytest.raises(DataError, match=r"it has 64 channels, not 3: arrays have the layout \(H, W, C\); pass image"):
        other.features(np.zeros((3, 64, 64), np.uint8))
    with pytest.raises(DataError, match=r"tensors have the layout \(C, H, W\); pass image.permute\(2, 0, 1\)"):
        other.features(torch.zeros((64, 48, 3), dtype=torch.uint8))


def test_shards_are_a_sequence(folder: Path, tmp_path: Path) -> None:
    shards = swinv2_train.open_shards([folder / "classes" / "eval-000000.tar"])
    assert len(shards) == 3
    assert [sample.key for sample in shards] == [f"img{number:05d}" for number in range(3)]
    assert shards[-1].key == shards[2].key == shards[2:][0].key
    assert shards[-1].labels == (2,)
    assert shards[0].image.dtype == torch.uint8
    assert shards.class_names is None
    with pytest.raises(IndexError):
        shards[3]
    unlabeled = swinv2_train.open_shards(folder / "shards" / "eval-*.tar")
    assert unlabeled[0].labels == ()
    scaled = swinv2_train.open_shards(folder / "shards" / "eval-*.tar", scale=[0, 510])
    assert torch.allclose(scaled[0].image, unlabeled[0].image / 510, atol=1e-6)
    with pytest.raises(DataError, match="nowhere"):
        swinv2_train.open_shards(tmp_path / "nowhere.tar")
    with pytest.raises(DataError, match="no sample has this label"):
        swinv2_train.open_shards(folder / "shards" / "eval-*.tar", label="species")


def test_labels_may_be_names_in_another_place(tmp_path: Path) -> None:
    encoded = io.BytesIO()
    Image.new("RGB", (8, 8)).save(encoded, "PNG")
    with tarfile.open(tmp_path / "birds.tar", "w") as tar:
        for key, species in (("a", "wren"), ("b", "crow"), ("c", "wren"), ("d", None)):
            text = json.dumps({"species": species}).encode()
            for name, data in ((f"{key}.png", encoded.getvalue()), (f"{key}.json", text)):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    birds = swinv2_train.open_shards(tmp_path / "birds.tar", label="species")
    assert birds.class_names == ["crow", "wren"]
    assert [sample.labels for sample in birds] == [(1,), (0,), (1,), ()]


def test_configs_are_those_of_the_command(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match=r"did you mean optim\.lr"):
        swinv2_train.compose("+experiment=simmim_demo", "optim.lrr=1")
    with pytest.raises(ConfigError, match=r"optim\.lr is set 2 times"):
        swinv2_train.compose("+experiment=simmim_demo", "optim.lr=1", "optim.lr=2")
    config = swinv2_train.compose(
        "+experiment=simmim_demo", f"data.shards={folder}/shards/train-*.tar", "data.eval_shards=null",
        "eval.every_steps=0", "checkpoint.keep_best=0", "launch.dry_run=true", "launch.device=cpu",
        f"run.dir={folder}/runs/dry",
    )  # fmt: skip
    assert swinv2_train.train(config) == folder / "runs" / "dry"
    assert "simmim_demo" in capsys.readouterr().out
    assert not (folder / "runs" / "dry").exists()
    config.optim.steps = -1
    with pytest.raises(ConfigError, match=r"optim\.steps"):
        swinv2_train.train(config)
