"""Every experiment takes two steps on two ranks with a data worker each: its own augmentation, loss, and engine.

Sizes and data are small. All runs share two processes, and the workers the server that these were forked from.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from swinv2_train.config.compose import compose, experiments
from swinv2_train.config.schema import Config
from swinv2_train.launch.status import read_status
from tests.detected import make_detected_data
from tests.engine.apart import trained_in_turn
from tests.filmed import make_filmed_data
from tests.runs import losses, make_labelled_data
from tests.segmented import make_segmented_data

pytestmark = pytest.mark.distributed
NAMES = [name for name, _ in experiments()]
SMALL = (
    "model.in_channels=3", "model.embed_dim=8", "model.depths=[1,1,2,1]", "model.num_heads=[1,1,2,2]", "model.window=2",
    "model.pretrained_window=0", "data.resolution=64", "data.num_workers=1", "optim.global_batch=8", "optim.steps=2",
    "engine.micro_batch=2", "init_from=null", "eval.every_steps=2", "eval.figure_every_steps=0", "launch.device=cpu",
    "tracking.tensorboard=false",
)  # fmt: skip
"""Overrides of the recipe."""
SEGMENTED = ("task.channels=8", "task.auxiliary_channels=8", "data.mean=[0.4,0.4,0.4]", "data.std=[0.2,0.2,0.2]")
"""More overrides of a recipe of segmentation."""
DETECTED = (
    "task.channels=8", "task.box_hidden=16", "task.mask_channels=8", "task.roi_samples=16", "task.rpn_samples=32",
    "task.proposals=40", "task.test_proposals=40", "task.anchor_scale=4", "task.outside_anchors=true",
    "task.short_sides=[32,48]", "task.long_side=64", "data.mean=[0.4,0.4,0.4]", "data.std=[0.2,0.2,0.2]",
)  # fmt: skip
"""More overrides of a recipe of detection."""
FILMED = ("model.temporal_window=2", "data.frames=4", "data.frame_stride=1")
"""More overrides of a recipe of videos."""
EVALUATED = ("simmim_tiny", "in1k_tiny_256", "ade20k_tiny_512", "coco_tiny_cascade", "k400_tiny")
"""One of each task: held-out samples go to other workers, which take time to start."""


def small(name: str, folder: Path) -> Config:
    """The complete config of an experiment at small sizes, with the shards for its task."""
    shards, more, between = folder / "shards", (), "-"
    if name.startswith(("ade20k_", "segment_")) or name == "own_segments":
        shards, more = folder / "scenes", SEGMENTED
    elif name.startswith(("coco_", "o365_", "detect_")):
        shards, more, between = folder / "objects", DETECTED, "/"
        if name.endswith("_cascade"):
            more += ("task.crop_sides=[24,40]", "task.crop_short_sides=[40,56]")
    elif name.startswith("k400_") or "video" in name:
        shards, more = folder / "videos", FILMED
    held_out = [f"data.eval_shards={shards}/eval{between}*.tar"] if name in EVALUATED else ["data.eval_shards=null"]
    config = compose([f"+experiment={name}", *SMALL, *more, f"data.shards={shards}/train{between}*.tar", *held_out])
    config.run.dir = str(folder / name)
    config.optim.epochs = config.optim.warmup_epochs = None
    config.optim.warmup_steps = 1
    if hasattr(config.task, "num_classes"):
        config.task.num_classes = 3
    if hasattr(config.task, "masks"):
        config.task.masks = config.task.masks is not False
        config.task.semantic_classes = 3 if config.task.semantic_classes else 0
    config.freeze()
    return config


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """The folder of all runs, and what the two ranks printed."""
    folder = tmp_path_factory.mktemp("recipes")
    make_labelled_data(folder / "shards")
    make_segmented_data(folder / "scenes")
    make_detected_data(folder / "objects")
    make_filmed_data(folder / "videos")
    return folder, trained_in_turn(folder, [small(name, folder) for name in NAMES], workers=True)


@pytest.mark.parametrize("name", NAMES)
def test_an_experiment_runs_on_two_ranks_with_a_worker_each(name: str, outputs: tuple[Path, list[str]]) -> None:
    folder, printed = outputs
    for output in printed:
        assert f"{name}: exit code 0" in output, output
    assert read_status(folder / name) == {"status": "finished", "step": 2}
    assert len(losses(folder / name)) == 2
