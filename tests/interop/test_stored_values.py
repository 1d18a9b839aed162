"""A model of stored values (`data.scale`): its exports record the range, and the code in the README applies it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from swinv2_train.config.errors import ConfigError
from swinv2_train.data.image_input import read_image
from swinv2_train.interop.export import export
from swinv2_train.interop.input_check import made_pictures, prepared
from swinv2_train.interop.input_code import input_code, run_code
from swinv2_train.interop.load import LoadedModel, load_model
from tests.interop.made import write_model

RANGES = "data.scale=[[0,10],[-5.5,5],[250,330]]"


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    source = write_model(tmp_path_factory.mktemp("input") / "model.safetensors")
    return load_model(source, [RANGES, "data.nodata=-9999", "data.fill=[5,0,1e9]"])


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("mode", ["center", "squash"])
def test_the_lines_in_the_readme_make_the_input_of_the_model(
    loaded: LoadedModel, interpolation: str, mode: str
) -> None:
    loaded.config.data.augment.interpolation, loaded.config.data.crop_mode = interpolation, mode
    stored, ours = prepared(loaded, made_pictures(loaded, []))
    assert len(stored) == 4
    assert all(image.dtype == torch.float32 and float(image.min()) == -9999 for image in stored)
    stored[0][:, 20:25] = torch.nan  # the same for NaN, which is read from pixels and not from a file here
    shown = run_code(input_code(loaded))
    assert all(torch.allclose(shown(image), own, atol=1e-5) for image, own in zip(stored[1:], ours[1:], strict=True))
    assert bool(torch.isfinite(shown(stored[0])).all())


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["swinv2-train", "timm"])
def test_exports_record_the_range_and_are_read_back_with_it(loaded: LoadedModel, tmp_path: Path, layout: str) -> None:
    done = export(loaded, tmp_path / "out", layout)
    again = load_model(done.path)
    data = loaded.config.data
    assert (again.config.data.scale, again.config.data.nodata, again.config.data.fill) == (
        data.scale, data.nodata, data.fill,
    )  # fmt: skip
    card = (done.path / "README.md").read_text()
    assert "0 to 10, -5.5 to 5, 250 to 330 becomes 0 to 1, clipped; missing pixels (NaN, nodata -9999) become" in card
    assert "4 encoded images of stored values, as float32" in card
    assert done.compared.input.agrees is (layout == "swinv2-train")
    assert ("does not scale stored values" in card) is (layout != "swinv2-train")
    np.save(tmp_path / "image.npy", np.full((3, 70, 80), 5, np.float32))
    from swinv2_train.data.decode import DecodeOptions

    image = read_image(tmp_path / "image.npy", 3, DecodeOptions.of(again.config.data, again.mean))
    assert image.amax((1, 2)).tolist() == pytest.approx([0.5, 1.0, 0.0])
    with pytest.raises(ConfigError, match="takes stored values of any type"):
        export(loaded, tmp_path / "other", layout, bits=16)


def test_percentiles_need_the_card_that_finished_weights_do_not_have(tmp_path: Path) -> None:
    source = write_model(tmp_path / "model.safetensors")
    with pytest.raises(
        ConfigError, match=r"data\.scale=p1-p99: percentiles are measured on training shards.* set numbers"
    ):
        load_model(source, ["data.scale=p1-p99"])
