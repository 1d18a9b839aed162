"""Gradients that are summed in fp32, over micro-batches and ranks, while backward runs."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from swinv2_train.config.compose import compose
from swinv2_train.config.plan import make_plan
from swinv2_train.engine.deepspeed import Engine
from swinv2_train.engine.reduction import in_buckets
from swinv2_train.launch.ranks import join, leave
from tests.engine.apart import Apart

MICRO_BATCHES, STEPS, BUCKET = 4, 20, 200


class Net(nn.Module):
    """Layers with matrices that are decayed, vectors that are not, a parameter without use, and one above a bucket."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList([nn.Linear(12, 12), nn.Linear(12, 20), nn.Linear(20, 6), nn.Linear(6, 3)])
        self.unused = nn.Parameter(torch.ones(5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return x


class Trace:
    """Records the collectives of a block, with the end of backward among them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.events: list[str] = []
        for name in ("reduce_scatter_tensor", "all_reduce"):
            monkeypatch.setattr(dist, name, self._recorded(name, getattr(dist, name)))

    def _recorded(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def recorded(*arguments: Any, **keywords: Any) -> Any:
            tensor = arguments[1] if name == "reduce_scatter_tensor" else arguments[0]
            self.events.append(f"{name} {str(tensor.dtype).removeprefix('torch.')} {tensor.numel()}")
            return function(*arguments, **keywords)

        return recorded


def rank_work(result: str) -> None:
    """Train, and write the weights after 20 steps and the trace of one."""
    monkeypatch = pytest.MonkeyPatch()
    ranks = join("cpu", 1.0)
    config = compose(
        ["+experiment=simmim_demo", "engine=zero1_bf16_fp32_accumulation", f"optim.global_batch={MICRO_BATCHES * 2}",
         "engine.micro_batch=2", f"+engine.deepspeed.zero_optimization.reduce_bucket_size={BUCKET}",
         "optim.clip_norm=0.01"]
    )  # fmt: skip
    plan = make_plan(config, ranks.world_size, 100)
    engine = Engine(Net().to(torch.bfloat16), config, plan, ranks)
    norms, in_fp32, losses, own_losses = [], [], [], []

    def look(norm: float) -> bool:
        own = torch.cat(engine._reduction._own)
        in_fp32.append(bool((own != own.to(torch.bfloat16).float()).any()))
        return True

    for step in range(STEPS):
        if step == STEPS - 1:
            trace = Trace(monkeypatch)
        own_loss = torch.zeros(())
        for index in range(plan.accumulation):
            seed = step * MICRO_BATCHES + ranks.rank * plan.accumulation + index
            x = torch.randn(2, 12, generator=torch.Generator().manual_seed(seed)).to(torch.bfloat16)
            loss = engine.model(x).float().square().sum()
            engine.backward(loss * ranks.world_size)
            own_loss += loss.detach()
            assert all(parameter.grad is None for parameter in engine.module.parameters()), "freed when it is added"
            if step == STEPS - 1:
                trace.events.append(f"end of backward {index}")
            if index < plan.accumulation - 1:
                engine.micro_step()
        assert engine.step(0.01, look, loss=own_loss)
        norms.append(engine.grad_norm)
        losses.append(engine.loss)
        own_losses.append(float(own_loss))
    monkeypatch.undo()
    pieces = [[piece.name, piece.start, piece.weight.tolist()] for piece in engine.fragments()]
    found = {"pieces": pieces, "events": trace.events, "norms": norms, "in_fp32": all(in_fp32)}
    parts = ranks.gather({**found, "losses": losses, "own_losses": own_losses})
    if ranks.is_main:
        Path(result).write_text(json.dumps(parts))
    engine.close()
    leave()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[dict[str, Any]]]:
    """By number of ranks, what each rank found."""
    found = {}
    for world in (1, 2, 4):
        folder = tmp_path_factory.mktemp(f"{world}-ranks")
        with Apart(folder) as ranks:
            ranks.start_ranks(world, rank_work, str(folder / "result.json"))
            assert ranks.exit_codes(seconds=300) == [0] * world, ranks.output(0)
        found[world] = json.loads((folder / "result.json").read_text())
    return found


def weights(parts: list[dict[str, Any]]) -> torch.Tensor:
    pieces = sorted(piece for part in parts for piece in part["pieces"])
    return torch.tensor([value for _, _, values in pieces for value in values])


@pytest.mark.parametrize("world", [2, 4])
def test_the_number_of_ranks_changes_only_the_rounding(world: int, runs: dict[int, list[dict[str, Any]]]) -> None:
    """The same micro-batches have the same bf16 gradients, and their sums differ only by the order in fp32."""
    torch.testing.assert_close(weights(runs[world]), weights(runs[1]), rtol=1e-6, atol=1e-6)
    assert runs[world][0]["norms"] == pytest.approx(runs[1][0]["norms"], rel=1e-5)
    assert all(part["norms"] == runs[world][0]["norms"] for part in runs[world]), "a rank would clip differently"
    assert all(part["in_fp32"] for part in runs[world]), "all sums are bf16 numbers"


@pytest.mark.parametrize("world", [1, 2, 4])
def test_the_loss_is_the_sum_over_the_ranks_in_float64(world: int, runs: dict[int, list[dict[str, Any]]]) -> None:
    """The parts are fp32 numbers of a similar size, so their sum in float64 is exact."""
    expected = [math.fsum(values) for values in zip(*(part["own_losses"] for part in runs[world]), strict=True)]
    assert all(part["losses"] == expected for part in runs[world])
    assert expected == pytest.approx(runs[1][0]["losses"], rel=1e-5)


@pytest.mark.parametrize("world", [2, 4])
def test_reduced_while_the_last_backward_runs(world: int, runs: dict[int, list[dict[str, Any]]]) -> None:
    events = runs[world][0]["events"]
    assert all(part["events"] == events for part in runs[world]), "another order on another rank"
    accumulation = MICRO_BATCHES // world
    before = events[: events.index(f"end of backward {accumulation - 1}")]
    early = [event for event in before if event.startswith("reduce_scatter")]
    assert [event for event in before if event not in early] == [
        f"end of backward {i}" for i in range(accumulation - 1)
    ]
    assert before[len(before) - len(early) :] == early, "only in the last micro-batch"
    later = events[len(before) + 1 :]
    assert len(early) == 3
    # The last buffer has the parameter without a gradient.
    assert [event.split()[0] for event in later] == ["reduce_scatter_tensor", "all_reduce"]
    assert all(event.split()[1] == "float32" for event in events if event.startswith("reduce_scatter"))
    assert later[1] == "all_reduce float64 2", "nothing but the norm with the loss, and the gradients"


def test_one_rank_sends_nothing(runs: dict[int, list[dict[str, Any]]]) -> None:
    (part,) = runs[1]
    assert [event for event in part["events"] if not event.startswith(("end", "all_reduce float64 2"))] == []


def test_buckets_hold_whole_parameters_in_backward_order() -> None:
    parameters = [nn.Parameter(torch.zeros(size)) for size in (4, 1, 30, 1, 6, 1, 6, 1)]
    groups = [
        {"params": parameters[0::2], "names": ["a", "c", "e", "g"], "weight_decay": 0.1, "lr_scale": 1.0},
        {"params": parameters[1::2], "names": ["b", "d", "f", "h"], "weight_decay": 0.0, "lr_scale": 1.0},
    ]
    split = in_buckets(groups, parameters, 12)
    assert [group["names"] for group in split] == [["g", "e"], ["c"], ["h", "f", "d", "b"], ["a"]]
    assert [group["weight_decay"] for group in split] == [0.1, 0.1, 0.0, 0.1]
    assert split[1]["params"][0] is parameters[2]
    assert groups[0]["names"] == ["a", "c", "e", "g"], "the groups themselves stay as they are"
