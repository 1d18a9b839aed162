"""Tables of features: the same bytes for any number of ranks and interruptions, in the order of the samples."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from swinv2_train.analysis import extract as module
from swinv2_train.analysis.extract import Extracted, FeatureOptions, extract
from swinv2_train.analysis.features import features_of
from swinv2_train.config.errors import ConfigError
from swinv2_train.data.errors import DataError
from swinv2_train.data.image_input import prepare, read_image
from swinv2_train.errors import RunError
from swinv2_train.interop.load import load_model
from tests.data.samples import jpeg, write_tar
from tests.engine.threads import on_ranks
from tests.evaluated import classifier, encoder, labelled_shards, with_label
from tests.runs import make_images

COUNT = 11


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("extract")
    classifier(folder / "model.safetensors")
    encoder(folder / "encoder.safetensors")
    labelled_shards(folder / "shards", COUNT, 3, broken=(4, 5))
    make_images(folder / "images" / "b", 3, 0)
    make_images(folder / "images" / "a", 2, 1)
    return folder


@pytest.fixture(autouse=True)
def _short_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PART_SAMPLES", 3)


def options(folder: Path, **more: Any) -> FeatureOptions:
    given = {"shards": str(folder / "shards"), "batch": 2, "workers": 0, "stages": (4,)}
    return FeatureOptions(str(folder / "model.safetensors"), **{**given, **more})


def extracted(request: FeatureOptions, out: Path, ranks: int = 1, **more: Any) -> Extracted:
    return on_ranks(ranks, lambda rank: extract(request, out, rank, **more))[0]


@pytest.fixture(scope="module")
def whole(folder: Path) -> bytes:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "PART_SAMPLES", 3)
        found = extracted(options(folder), folder / "whole.npz")
    assert (found.rows, found.continued, len(found.broken)) == (COUNT - 2, 0, 2)
    assert not (folder / "whole.npz.parts").exists()
    return (folder / "whole.npz").read_bytes()


def test_the_rows_are_the_samples_in_their_order(folder: Path, whole: bytes) -> None:
    assert whole
    with np.load(folder / "whole.npz", allow_pickle=False) as table:
        columns = {name: table[name] for name in table.files}
    used = [number for number in range(COUNT) if number not in (4, 5)]
    assert columns["index"].tolist() == used
    assert columns["name"].tolist() == [f"img{number:05d}" for number in used]
    assert set(columns["shard"]) == {"val-000000.tar"}
    assert columns["label"].tolist() == [number % 3 for number in used]
    assert columns["features"].dtype == columns["stage4"].dtype == np.float32
    assert np.allclose(columns["features"], columns["stage4"].mean(axis=(2, 3)), atol=1e-5)
    about = json.loads(str(columns["about"]))
    assert about["resolution"] == [32, 32]
    assert about["shapes"] == {"features": [128], "stage4": list(columns["stage4"].shape[1:])}
    assert [name for name, _ in about["broken"]] == ["val-000000.tar/img00004", "val-000000.tar/img00005"]


@pytest.mark.parametrize("ranks", [2, 5])
def test_any_number_of_ranks_writes_the_same_bytes(folder: Path, whole: bytes, tmp_path: Path, ranks: int) -> None:
    found = extracted(options(folder), tmp_path / "table.npz", ranks)
    assert found.rows == COUNT - 2
    assert (tmp_path / "table.npz").read_bytes() == whole


class Killed(BaseException):
    """The end of the process."""


def test_an_interrupted_extraction_continues_to_the_same_bytes(folder: Path, whole: bytes, tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        if done == 5:  # in the third part
            raise Killed

    out = tmp_path / "table.npz"
    np.savez(out, about=json.dumps({"checkpoint": "older"}))
    older = out.read_bytes()
    with pytest.raises(Killed):
        extracted(options(folder), out, progress=stop)
    assert out.read_bytes() == older
    parts = sorted(path.name for path in (tmp_path / "table.npz.parts").iterdir())
    assert parts == ["part-000000.npz", "part-000001.npz", "request.json"]

    with pytest.raises(
        ConfigError, match=r"table\.npz\.parts holds parts of another extraction, with another batch; rem"
    ):
        extracted(options(folder, batch=1), out)
    with pytest.raises(ConfigError, match="with another shapes"):
        extracted(options(folder, stages=()), out)
    seen: list[int] = []
    found = extracted(options(folder), out, 2, progress=lambda done, total: seen.append(total))
    assert found.continued == 6
    assert seen == [2, 2]  # the main rank's part of the other two
    assert out.read_bytes() == whole
    assert not (tmp_path / "table.npz.parts").exists()


def test_a_damaged_part_is_computed_again(folder: Path, whole: bytes, tmp_path: Path) -> None:
    out = tmp_path / "table.npz"

    def damage(done: int, total: int) -> None:
        if done == total:
            path = tmp_path / "table.npz.parts" / "part-000001.npz"
            path.write_bytes(path.read_bytes()[:-40])

    with pytest.raises(RunError, match=r"part-000001\.npz was damaged .* rerun the command"):
        extracted(options(folder), out, progress=damage)
    assert extracted(options(folder), out).continued == COUNT - 3
    assert out.read_bytes() == whole


def test_files_of_a_simmim_model_in_the_order_of_their_names(folder: Path, tmp_path: Path) -> None:
    weights = folder / "encoder.safetensors"
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff broken")
    request = FeatureOptions(
        str(weights), images=(str(folder / "images"), str(tmp_path / "broken.jpg")), batch=4, workers=0, max_samples=9
    )
    found = extracted(request, tmp_path / "table.npz")
    files = [
        f"{folder}/images/{name}" for name in ("a/0000.jpg", "a/0001.jpg", "b/0000.jpg", "b/0001.jpg", "b/0002.jpg")
    ]
    assert [name for name, _ in found.broken] == [str(tmp_path / "broken.jpg")]
    loaded = load_model(weights)
    images = [prepare(read_image(Path(file), 3, None), loaded.config, loaded.mean, loaded.std) for file in files]
    with np.load(tmp_path / "table.npz") as table:
        assert table["name"].tolist() == files
        assert "label" not in table.files
        expected = features_of(loaded.model, torch.stack(images))["features"].numpy()
        assert np.allclose(table["features"], expected, rtol=1e-4, atol=1e-5)


def test_broken_weights_leave_no_table(folder: Path, tmp_path: Path) -> None:
    with safe_open(folder / "model.safetensors", "pt") as file:
        tensors, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    name = next(name for name in tensors if name.endswith("patch_embed.norm.weight"))
    save_file({**tensors, name: torch.full_like(tensors[name], torch.nan)}, tmp_path / "nan.safetensors", metadata)
    with pytest.raises(RunError, match="are not finite: its weights are broken"):
        extracted(
            FeatureOptions(str(tmp_path / "nan.safetensors"), str(folder / "shards"), workers=0), tmp_path / "t.npz"
        )
    assert not (tmp_path / "t.npz").exists()


def test_labels_are_read_from_the_place_that_is_named(folder: Path, tmp_path: Path) -> None:
    members = []
    for number, label in enumerate(["owl", "cat", None, "owl"]):
        members += [(f"{number}.jpg", jpeg(number)), (f"{number}.json", json.dumps({"species": label}).encode())]
    write_tar(tmp_path / "shards" / "0.tar", members)
    named = classifier(tmp_path / "named.safetensors", 3, ["ant", "bee", "cat"])
    recorded = with_label(classifier(tmp_path / "recorded.safetensors", 2, ["cat", "owl"]), "species")
    own, error = "data.label=species", "the class 'owl' is not among the 3 classes"
    for model, overrides, labels in (
        (recorded, (), [1, 0, -1, 1]),
        (folder / "encoder.safetensors", (own,), [1, 0, -1, 1]),  # numbered by the data, in the order of the names
        (folder / "encoder.safetensors", (), [-1] * 4),
        (named, (own,), error),
        (with_label(named, "species"), (), [-1, 2, -1, -1]),  # shards without the labels of the training are fine
    ):
        request = FeatureOptions(str(model), str(tmp_path / "shards"), overrides=overrides, workers=0)
        if isinstance(labels, str):
            with pytest.raises(DataError, match=labels):
                extracted(request, tmp_path / "t.npz")
            continue
        found = extracted(request, tmp_path / "t.npz")
        with np.load(tmp_path / "t.npz") as table:
            assert table["label"].tolist() == labels
            about = json.loads(str(table["about"]))
        assert any(error in note for note in found.notes) == (model == named)
        if overrides or model == recorded:
            assert (about["label"], about["classes"]) == ("species", ["cat", "owl"])
        else:
            assert ("label" in about) == (model == named)
