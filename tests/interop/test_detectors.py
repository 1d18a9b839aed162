"""Detectors start from any weights and from detectors of other classes, with or without masks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from swinv2_train.config.model import ModelConfig
from swinv2_train.interop.source import open_source
from swinv2_train.interop.transfer import Transfer, plan_transfer
from swinv2_train.models.detection import Detector
from tests.interop.made import CLASSES, SMALL, write_model
from tests.models.detection.made import section


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("sources")
    write_model(place / "classes.safetensors")
    write_model(place / "boxes.safetensors", detection=section("cascade", masks=False))
    write_model(place / "agnostic.safetensors", detection=section("htc", semantic_classes=0))
    return place


def into(path: Path, names: list[str], kind: str = "cascade", **fields: Any) -> Transfer:
    """The plan of a detector that starts from a file."""
    config, task = ModelConfig(**SMALL), section(kind, num_classes=len(names), **fields)
    with torch.device("meta"):
        built = Detector(config, task, len(names), (64, 64))
    shapes = {name: tuple(parameter.shape) for name, parameter in built.named_parameters()}
    return plan_transfer(open_source(path), shapes, config, None, resolution=(64, 64), class_names=names, task=task)


def test_a_detector_takes_the_backbone_of_a_classifier(sources: Path) -> None:
    transfer = into(sources / "classes.safetensors", CLASSES)
    assert {row.key.partition(".")[0] for row in transfer.of("new")} == {"norms", "pyramid", "rpn", "heads"}
    name = "layers.2.blocks.1.mlp.fc1.weight"
    assert torch.equal(transfer.tensor(f"backbone.{name}"), transfer.source.tensor(name))


def test_class_rows_go_by_name_and_masks_start_new(sources: Path) -> None:
    """From boxes of some classes to boxes and masks of others, as from Objects365 to COCO."""
    transfer, rows = into(sources / "boxes.safetensors", ["kind 5", "sky", "kind 0"]), [5, None, 0]
    for stage in range(3):
        for part in ("classes.weight", "classes.bias", "class_boxes.weight", "class_boxes.bias"):
            name = f"heads.box_heads.{stage}.{part}"
            there, here = transfer.source.tensor(name), transfer.tensor(name)
            for number, row in enumerate(rows):
                assert torch.equal(here[number], torch.zeros_like(there[0]) if row is None else there[row]), name
    for name in ("heads.box_heads.2.background.weight", "heads.box_heads.1.linears.0.weight", "rpn.conv.weight"):
        assert torch.equal(transfer.tensor(name), transfer.source.tensor(name))
    new = [row.key for row in transfer.of("new")]
    assert new
    assert all(key.startswith("heads.mask_heads.") for key in new)
    assert transfer.head is not None
    assert transfer.head.lines(CLASSES)[1] == "head row 1 (sky): new, zeros"


def test_one_box_for_all_classes_is_taken_for_any_classes(sources: Path) -> None:
    transfer = into(sources / "agnostic.safetensors", ["sky"] * 1, "htc", semantic_classes=4)
    name = "heads.box_heads.1.boxes.weight"
    assert torch.equal(transfer.tensor(name), transfer.source.tensor(name))
    assert {row.key.partition(".")[0] for row in transfer.of("new") if "classes" not in row.key} == {"semantic"}
    other = into(sources / "agnostic.safetensors", CLASSES, "htc", semantic_classes=0, class_agnostic=False)
    assert {row.key for row in other.of("dropped")} == {
        f"heads.box_heads.{stage}.boxes.{part}" for stage in range(3) for part in ("weight", "bias")
    }
