"""Runs of detection on one rank and on two, with every precision and ZeRO stage: exact on resume, and equal.

All runs on a number of ranks share its processes, those of ZeRO stage 3 last: DeepSpeed then replaces the linear layer
of torch by its own, which rounds differently, for the rest of a process.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from swinv2_train.config.compose import compose
from swinv2_train.config.schema import Config
from tests.checkpoint.weights import load_weights
from tests.detected import DETECTORS, make_detected_data, tiny_detection
from tests.engine.apart import trained_in_turn
from tests.runs import comparable, losses, metrics

pytestmark = pytest.mark.distributed
MORE = {"htc": ("data.eval_shards=null",), "boxes": ("data.eval_shards=null", "data.num_workers=2"), "mask_rcnn": ()}
"""Further settings of the detectors."""


@dataclass(frozen=True)
class Cell:
    """A run of three steps, with a checkpoint after two."""

    precision: str
    stage: int
    ranks: int
    kind: str

    @property
    def name(self) -> str:
        return f"{self.kind}-{self.precision}-stage-{self.stage}-ranks-{self.ranks}"

    def config(self, folder: Path, *more: str, suffix: str = "") -> Config:
        """The complete config. A rank alone has larger micro-batches than one of two."""
        config = compose(tiny_detection(
            folder / "data", folder / f"{self.name}{suffix}", *DETECTORS[self.kind], *MORE[self.kind],
            "task.num_classes=3", f"engine.precision={self.precision}", f"engine.zero_stage={self.stage}",
            "optim.steps=3", f"engine.micro_batch={2 // self.ranks}", "eval.figure_every_steps=0", *more,
        ))  # fmt: skip
        config.run.name = f"{self.name}{suffix}"
        config.task.masks = config.task.masks is not False
        config.freeze()
        return config


EQUAL = (Cell("fp32", 1, 2, "htc"), Cell("fp32", 2, 2, "mask_rcnn"), Cell("fp32", 3, 2, "htc"))
"""Runs on two ranks that follow the same run on one."""
RESUMED = (
    Cell("fp32", 1, 1, "htc"), Cell("fp32", 2, 2, "mask_rcnn"), Cell("fp32", 3, 1, "htc"), Cell("bf16", 1, 2, "boxes"),
    Cell("bf16", 2, 1, "htc"), Cell("bf16", 3, 2, "mask_rcnn"),
)  # fmt: skip
"""Every pair of precision, stage, and number of ranks; fp16 needs a GPU."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directories of all runs, and of those that continue one from its second step."""
    folder = tmp_path_factory.mktemp("runs")
    make_detected_data(folder / "data")
    cells = dict.fromkeys((*EQUAL, *(replace(each, ranks=1) for each in EQUAL), *RESUMED))
    for ranks in (1, 2):
        configs = []
        for cell in sorted((each for each in cells if each.ranks == ranks), key=lambda each: each.stage):
            configs.append(cell.config(folder))
            if cell in RESUMED:
                source = (f"resume.source={folder / cell.name}", "resume=step:2")
                configs.append(cell.config(folder, *source, suffix="-resumed"))
        for printed in trained_in_turn(folder / f"ranks-{ranks}", configs, ranks=ranks, workers=True):
            assert printed.count("exit code 0") == len(configs), printed
    return folder


@pytest.mark.parametrize("cell", RESUMED, ids=lambda cell: cell.name)
def test_a_resumed_run_ends_like_its_twin(runs: Path, cell: Cell) -> None:
    resumed, twin = runs / f"{cell.name}-resumed", runs / cell.name
    ours, expected = ([row for row in comparable(path) if row["step"] == 3] for path in (resumed, twin))
    assert ours == expected
    assert "lr" in ours[0]
    weights, others = (load_weights(path / "checkpoints" / "step-00000003") for path in (resumed, twin))
    assert weights.keys() == others.keys()
    assert all(torch.equal(weights[name], others[name]) for name in others)


@pytest.mark.parametrize("cell", EQUAL, ids=lambda cell: cell.name)
def test_two_ranks_follow_one(runs: Path, cell: Cell) -> None:
    """With other micro-batches; a rank may have no object in a step.

    Precision depends only on the order of the scores and on overlaps of half and more, which rounding does not change
    here: so the metrics are equal.
    """
    one = runs / replace(cell, ranks=1).name
    assert losses(runs / cell.name) == pytest.approx(losses(one), rel=1e-6)
    ours, twin = ([row for row in metrics(path) if "eval/box_ap" in row] for path in (runs / cell.name, one))
    assert ours == twin
    assert len(twin) == (2 if cell.kind == "mask_rcnn" else 0)
