"""One rank of a 64-rank job of the model that fits on no machine here."""

from __future__ import annotations

import json
import sys

import pytest
import torch

from swinv2_train.config.compose import compose
from tests.runs import run_command

pytestmark = pytest.mark.distributed


def test_one_rank_of_64_owns_one_64th_of_the_optimizer() -> None:
    code, output = run_command([sys.executable, "-m", "tests.distributed.giant_rank", "simmim_giant"])
    assert code == 0, output
    layout = json.loads(output.splitlines()[-1])
    config = compose(["+experiment=simmim_giant"])
    parameters = config.task.describe(config).parameters
    assert layout["parameters"] == parameters
    assert layout["dtypes"] == [str(torch.bfloat16)]
    assert layout["weights"] == layout["moments"] == pytest.approx(parameters / 64, rel=1e-5)
    assert layout["micro_batch"] * layout["accumulation"] * 64 == config.optim.global_batch
    assert layout["grown_gib"] < 1.0, "the layout was allocated"
