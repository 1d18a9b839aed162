"""The engine itself, in every ZeRO stage and precision: a refused update changes nothing, the average is exact."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import nn

from swinv2_train.config.compose import compose
from swinv2_train.config.plan import make_plan
from swinv2_train.engine.deepspeed import Engine
from swinv2_train.launch.ranks import join, leave
from swinv2_train.models.precision import PRECISIONS
from tests.faults.nursery import Nursery

LAYOUTS = [("fp32", 0, "null"), ("fp32", 1, "null"), ("bf16", 0, "null"), ("bf16", 1, "null"), ("bf16", 1, "fp32"),
           ("bf16", 2, "null")]  # fmt: skip
DECAY = 0.75


class Net(nn.Module):
    """Two layers with different learning rates and weight decays, hence several parameter groups."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, 7), nn.Linear(7, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.tanh(self.first(x)))


@contextmanager
def opened(precision: str, stage: int, accumulate: str) -> Iterator[Engine]:
    options = [f"engine.precision={precision}", f"engine.zero_stage={stage}", f"engine.grad_accum_dtype={accumulate}"]
    config = compose(
        ["+experiment=simmim_demo", *options, "optim.global_batch=4", f"optim.ema_decay={DECAY}", "optim.clip_norm=0.5"]
    )
    ranks = join("cpu", 1.0)
    torch.manual_seed(0)
    engine = Engine(Net().to(PRECISIONS[precision]), config, make_plan(config, 1, 100), ranks)
    try:
        yield engine
    finally:
        engine.close()
        leave()


def backward(engine: Engine, seed: int) -> None:
    x = torch.randn(4, 5, generator=torch.Generator().manual_seed(seed)).to(engine.module.first.weight.dtype)
    engine.backward(engine.model(x).float().square().mean())


def held(engine: Engine) -> dict[str, list[torch.Tensor]]:
    pieces = list(engine.fragments())
    return {part: [getattr(p, part).clone() for p in pieces] for part in ("weight", "exp_avg", "exp_avg_sq", "ema")}


def equal(first: list[torch.Tensor], second: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def check(precision: str, stage: int, accumulate: str) -> None:
    """Steps with and without an update, and the average, of one layout."""
    with opened(precision, stage, accumulate) as engine:
        backward(engine, 0)
        assert engine.step(0.1)
        engine.update_average(DECAY)
        before, norms = held(engine), []
        backward(engine, 1)
        assert not engine.step(0.1, lambda norm: norms.append(norm) or False)
        assert len(norms) == 1, "the guard is asked once, however many parameter groups there are"
        assert norms[0] == engine.grad_norm > 0
        after = held(engine)
        assert all(equal(before[part], after[part]) for part in before), "a refused update changes nothing"

        backward(engine, 1)
        assert engine.step(0.1)
        assert engine.grad_norm == norms[0], "nothing of the refused gradient is left"
        engine.update_average(DECAY)
        stepped = held(engine)
        assert not equal(after["weight"], stepped["weight"])
        expected = [torch.lerp(old, new, 1 - DECAY) for old, new in zip(after["ema"], stepped["weight"], strict=True)]
        assert equal(expected, stepped["ema"])

        x = torch.ones(1, 5, dtype=PRECISIONS[precision])
        own = engine.model(x)
        with engine.averaged(KeyboardInterrupt):
            assert not torch.equal(engine.model(x), own)
            assert equal([piece.weight for piece in engine.fragments()], stepped["ema"])
        assert torch.equal(engine.model(x), own), "the model has its own weights back, to the bit"
        assert equal(held(engine)["weight"], stepped["weight"])


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "stage", "accumulate"), LAYOUTS)
def test_refused_updates_and_the_average(precision: str, stage: int, accumulate: str) -> None:
    check(precision, stage, accumulate)


@pytest.mark.slow
def test_refused_updates_and_the_average_in_stage_3(nursery: Nursery, tmp_path: Path) -> None:
    """ZeRO-3 replaces torch's linear function for the rest of the process, so it gets one of its own."""
    code, output = nursery.run("tests.engine.test_engine", ["fp32", "bf16"], tmp_path)
    assert code == 0, output


if __name__ == "__main__":
    for each in sys.argv[1:]:
        check(each, 3, "null")
