"""A run on stored values and labels of foreign shards: percentiles become numbers, which a resumed run keeps."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from swinv2_train.checkpoint.layout import list_checkpoints, read_manifest
from swinv2_train.config.compose import from_yaml
from swinv2_train.data.pack import PackOptions, pack
from swinv2_train.exit_codes import FINISHED, WRONG_USE
from tests.data.samples import write_tar
from tests.data.scientific import geotiff, npy, values
from tests.runs import losses, run_here, tiny_classification


def scene(number: int) -> np.ndarray:
    """(2, H, W) float32 with a constant offset per class, a corner without data, and a NaN."""
    planes = values(number, 2, "float32", 40, 48) + 100 * (number % 3)
    planes[:, :4, :4], planes[0, 20, 20] = -9999, np.nan
    return planes


STORED = [
    "model.in_channels=2", "data.resolution=32", "task.auto_augment=null", "task.color_jitter=0", "eval.every_steps=2",
    "eval.figure_every_steps=0", "optim.steps=2", "optim.warmup_steps=1", "optim.global_batch=4",
]  # fmt: skip


@pytest.mark.slow
def test_percentiles_become_numbers_that_a_resumed_run_keeps(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(12):
        path = tmp_path / "images" / "abc"[number % 3] / f"{number}.tif"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(geotiff(scene(number), "-9999"))
    pack(str(tmp_path / "images"), tmp_path / "s", PackOptions(), classes=True, eval_share=0.3)
    given = tiny_classification(tmp_path / "s", tmp_path / "run", *STORED, "task.num_classes=0", "data.mean=dataset")
    given += ["data.std=dataset"]
    assert run_here(given) == WRONG_USE
    assert (
        "data.scale=null: the images have values of float32: set the range of their values" in capsys.readouterr().err
    )
    assert run_here([*given, "data.scale=p2-p98"]) == FINISHED
    scale = from_yaml(tmp_path / "run" / "resolved.yaml").data.scale
    stacked = np.concatenate([scene(n).reshape(2, -1) for n in range(12)], axis=1)
    inside = np.where(stacked == -9999, np.nan, stacked)
    assert np.array(scale) == pytest.approx(np.nanpercentile(inside, (2, 98), axis=1).T, abs=30)
    recorded = read_manifest(list_checkpoints(tmp_path / "run" / "checkpoints")[0]).metadata
    assert recorded["data"]["scale"] == recorded["preprocess"]["scale"] == scale
    more = [*(item for item in given if not item.startswith("optim.steps")), "optim.steps=3"]
    assert run_here([*more, "data.scale=[0,300]"]) == WRONG_USE
    assert "data.scale=[0, 300]: the run in" in capsys.readouterr().err
    assert run_here([*more, "data.scale=p2-p98"]) == FINISHED
    assert from_yaml(tmp_path / "run" / "resolved.yaml").data.scale == scale
    assert len(losses(tmp_path / "run")) == 3


@pytest.mark.slow
def test_foreign_arrays_with_names_in_json_are_trained_on(tmp_path: Path) -> None:
    for split, count in (("train", 12), ("eval", 5)):
        members = []
        for number in range(count):
            label = {"cover": ("water", "forest", "city")[number % 3]}
            members += [(f"{number:02d}.npy", npy(scene(number))), (f"{number:02d}.json", json.dumps(label).encode())]
        write_tar(tmp_path / "s" / f"{split}-0.tar", members)
    stored = ["data.scale=[-100,300]", "data.nodata=-9999", "data.label=cover", "data.mean=[.5,.5]", "data.std=[.2,.2]"]
    given = tiny_classification(tmp_path / "s", tmp_path / "run", *STORED, "task.num_classes=0", *stored)
    assert run_here(given) == FINISHED
    recorded = read_manifest(list_checkpoints(tmp_path / "run" / "checkpoints")[0])
    assert recorded.metadata["classes"] == ["city", "forest", "water"]
    assert recorded.metadata["task"]["num_classes"] == 3
    assert len(losses(tmp_path / "run")) == 2
