"""Messages of real runs on several ranks in a step, and a rollback of all of them together."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from swinv2_train.checkpoint.survey import read_state
from swinv2_train.engine.feed import StepInput
from swinv2_train.engine.loop import StepOutcome, Trainer
from swinv2_train.tasks.simmim import SimMIM
from swinv2_train.tasks.task import Losses
from tests.engine.apart import Apart
from tests.runs import losses, run_here, tiny_run

pytestmark = pytest.mark.distributed
RANKS, BATCH, BAD, QUIET = 3, 6, 11, 7
"""A batch whose loss is a spike, and a step without log, evaluation, and save before or after it."""
OPTIONS = (
    "optim.steps=14", f"optim.global_batch={BATCH}", f"optim.lr_reference_batch={BATCH}", "guard.policy=rollback",
    "guard.min_steps=8", "guard.window=8", "checkpoint.every_steps=9", "tracking.log_every_steps=9",
    "data.num_workers=0", "eval.every_steps=0", "eval.figure_every_steps=0",
)  # fmt: skip
CALLS = (
    "isend", "irecv", "send", "recv", "all_reduce", "barrier", "all_gather_object", "broadcast_object_list",
)  # fmt: skip


def train(overrides: list[str], counts_of: str) -> None:
    """Train as one rank, with a spike in one batch; write which calls of the control group one step makes."""
    calls: list[str] = []
    counted: dict[int, list[str]] = {}
    control: list[Any] = []

    def record(name: str) -> None:
        function = getattr(dist, name)

        def call(*arguments: Any, **keywords: Any) -> Any:
            if keywords.get("group") in control:
                calls.append(name)
            return function(*arguments, **keywords)

        setattr(dist, name, call)

    for name in CALLS:
        record(name)
    step, loss = Trainer.train_step, SimMIM.loss

    def counting(self: Trainer, current: StepInput) -> StepOutcome:
        control[:] = [self.ranks.control]
        outcome = step(self, current)
        counted[self.state.step] = list(calls)
        return outcome

    def planted(self: SimMIM, model: torch.nn.Module, batch: dict[str, Any]) -> Losses:
        factor = 30.0 if int(batch["position"][0]) // BATCH == BAD else 1.0
        return Losses.single(loss(self, model, batch).terms["loss"] * factor)

    Trainer.train_step, SimMIM.loss = counting, planted  # type: ignore[method-assign]
    code = run_here(overrides)
    before, after = counted.get(QUIET - 1, []), counted.get(QUIET, [])
    Path(f"{counts_of}-{os.environ['RANK']}").write_text(json.dumps({"code": code, "calls": after[len(before) :]}))


def test_a_step_sends_a_logarithmic_number_of_messages_and_ranks_roll_back_together(
    shards: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    with Apart(tmp_path) as ranks:
        ranks.start_ranks(RANKS, train, tiny_run(shards, run, *OPTIONS), str(tmp_path / "found"))
        assert ranks.exit_codes(300) == [0] * RANKS, ranks.output(0)
    everyone = [json.loads((tmp_path / f"found-{rank}").read_text()) for rank in range(RANKS)]
    assert [found["code"] for found in everyone] == [0] * RANKS
    calls = [found["calls"] for found in everyone]
    assert all(set(each) == {"isend", "irecv"} for each in calls), "the control group sees nothing but the sum"
    assert max(each.count("isend") for each in calls) == math.ceil(math.log2(RANKS))
    state = read_state(run / "checkpoints" / "step-00000014")["train"]
    assert (state["avoided_batches"], state["rollbacks"], state["skipped_steps"]) == ([BAD], 1, 0)
    assert len(losses(run)) == 14
