"""Frozen parameters and buffers, in every ZeRO stage and precision: saved once, read by any number of ranks."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from swinv2_train.checkpoint.consolidate import write_weights
from swinv2_train.checkpoint.layout import MANIFEST
from swinv2_train.checkpoint.reshape import reshape
from swinv2_train.checkpoint.save import save
from swinv2_train.checkpoint.verify import verify
from swinv2_train.config.compose import compose
from swinv2_train.config.errors import ConfigError
from swinv2_train.config.plan import make_plan
from swinv2_train.config.schema import Config
from swinv2_train.engine.checkpoints import load
from swinv2_train.engine.deepspeed import Engine
from swinv2_train.engine.state import TrainState
from swinv2_train.launch.environment import free_port
from swinv2_train.launch.ranks import Ranks, join
from swinv2_train.models.precision import PRECISIONS
from tests.checkpoint.weights import load_weights
from tests.faults.nursery import Nursery

# Stage 3 replaces torch's linear function for the rest of the process, so it comes last.
LAYOUTS = [(precision, stage) for stage in (0, 1, 2, 3) for precision in ("fp32", "bf16")]
FROZEN, BUFFERS = ["first.bias", "first.weight"], ["count", "table"]


class Net(nn.Module):
    """A frozen layer, one that trains, and buffers of three kinds."""

    def __init__(self, *, seed: int, frozen: tuple[str, ...] = ("first",)) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first, self.second = nn.Linear(5, 7), nn.Linear(7, 3)
        self.register_buffer("table", torch.rand(3, 7))
        self.register_buffer("count", torch.tensor(4096 + seed))
        self.register_buffer("derived", torch.ones(2), persistent=False)
        for name in frozen:
            self.get_submodule(name).requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.tanh(self.first(x)) + self.table.mean(0)) * (self.count / 4096)


def opened(config: Config, layout: tuple[str, int], ranks: Ranks, **of_net: object) -> Engine:
    config.engine.precision, config.engine.zero_stage = layout
    config.engine.grad_accum_dtype = None
    net = Net(**of_net).to(PRECISIONS[layout[0]])  # type: ignore[arg-type]
    return Engine(net, config, make_plan(config, ranks.world_size, 100), ranks)


def step(engine: Engine, seed: int, ranks: Ranks) -> None:
    x = torch.randn(4, 5, generator=torch.Generator().manual_seed(seed))
    own = x[ranks.rank :: ranks.world_size].to(engine.module.table.dtype)
    engine.backward(engine.model(own).float().square().mean())
    assert engine.step(0.1)
    engine.update_average(0.75)


def held(engine: Engine) -> list[torch.Tensor]:
    parts = ("weight", "exp_avg", "exp_avg_sq", "ema")
    found = [getattr(piece, part) for piece in engine.fragments_to_load() for part in parts]
    return [tensor.clone() for tensor in found if tensor is not None]


def saved(engine: Engine, directory: Path, ranks: Ranks) -> Path:
    state = {"train": TrainState().to_dict(), "optimizer": engine.scalars()}
    pieces = engine.fragments_to_save(ranks)
    return save(directory, 2, fragments=pieces, state=state, metadata={"model": {}}, ranks=ranks).path


def loaded(config: Config, layout: tuple[str, int], path: Path, ranks: Ranks) -> Engine:
    """An engine of other weights that has loaded a checkpoint; its model computes what a plain one does."""
    engine = opened(config, layout, ranks, seed=9)
    load(path, engine, ranks)
    whole = load_weights(path)
    for piece in engine.fragments_to_load():
        expected = whole[piece.name].flatten()[piece.start : piece.start + piece.weight.numel()]
        assert torch.equal(piece.weight.float(), expected), piece.name
    plain = Net(seed=5)
    plain.load_state_dict(whole)
    x = torch.linspace(-1, 1, 10).view(2, 5)
    with torch.no_grad():
        dtype = PRECISIONS[layout[0]]
        torch.testing.assert_close(engine.model(x.to(dtype)).float(), plain.to(dtype)(x.to(dtype)).float())
    return engine


def check(layout: tuple[str, int], config: Config, ranks: Ranks, source: Path, out: Path) -> None:
    """Load what another number of ranks saved, train, save, train; the same again from the save is equal to the bit."""
    name = f"{layout[0]}-zero{layout[1]}"
    path = source / name / "step-00000002"
    engine = loaded(config, layout, path, ranks) if path.exists() else opened(config, layout, ranks, seed=0)
    for seed in (0, 1):
        step(engine, seed, ranks)
    path = saved(engine, out / name, ranks)
    manifest = verify(path)
    assert (manifest.frozen, manifest.buffers) == (FROZEN, BUFFERS)
    whole, initial = load_weights(path), dict(Net(seed=0).to(PRECISIONS[layout[0]]).state_dict())
    for key in (*FROZEN, *BUFFERS):
        assert torch.equal(whole[key], initial[key].float()), "not a bit of it has moved"
    owners = {record.rank for record in manifest.fragments if record.name in manifest.fixed}
    assert owners == set(range(ranks.world_size if layout[1] else 1)), "all share the work under ZeRO"
    for seed in (2, 3):
        step(engine, seed, ranks)
    expected = held(engine)
    engine._deepspeed.destroy()
    engine = loaded(config, layout, path, ranks)
    for seed in (2, 3):
        step(engine, seed, ranks)
    assert all(torch.equal(one, other) for one, other in zip(expected, held(engine), strict=True))
    engine._deepspeed.destroy()


def check_changes(config: Config, ranks: Ranks, out: Path) -> None:
    """Freezing more on a resume drops moments; training what was frozen is refused."""
    path = out / "bf16-zero1" / "step-00000002"
    engine = opened(config, ("bf16", 1), ranks, seed=9, frozen=())
    with pytest.raises(ConfigError, match=r"optim\.freeze.*first\.weight and 1 more.*init_from"):
        load(path, engine, ranks)
    engine._deepspeed.destroy()
    trained = opened(config, ("fp32", 1), ranks, seed=0, frozen=())
    step(trained, 0, ranks)
    path = saved(trained, out / "trained", ranks)
    assert not verify(path).frozen
    assert '"frozen"' not in (path / MANIFEST).read_text(), "earlier versions read what has nothing frozen"
    trained._deepspeed.destroy()
    engine = opened(config, ("fp32", 1), ranks, seed=9)
    lines = load(path, engine, ranks).lines
    assert any("first.bias and 1 more trained before and is frozen now" in line for line in lines)
    assert torch.equal(engine.module.first.weight, load_weights(path)["first.weight"])
    engine._deepspeed.destroy()


def rank_main(rank: int, world_size: int, port: int, source: Path, out: Path) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size), MASTER_PORT=str(port))
    os.environ["MASTER_ADDR"] = "127.0.0.1"
    config = compose(["+experiment=simmim_demo", "optim.global_batch=4", "optim.ema_decay=0.75", "data.num_workers=0"])
    ranks = join("cpu", 1.0)
    for layout in LAYOUTS:
        if layout[1] == 3 and world_size == 1:
            check_changes(config, ranks, out) if layout[0] == "fp32" else None
        check(layout, config, ranks, source, out)
    ranks.barrier()


def forked(count: int, work: Callable[[int], None]) -> None:
    """Call a function in N forks of this process, which has imported everything and has no threads yet."""
    children = []
    for rank in range(count):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                work(rank)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                os._exit(code)
        children.append(pid)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
    assert codes == [0] * count, codes


def main(root: Path) -> None:
    import deepspeed  # noqa: F401

    source = root / "none"
    for turn, world_size in enumerate((1, 2, 1)):
        port, out = free_port(), root / f"turn-{turn}"
        forked(world_size, lambda rank: rank_main(rank, world_size, port, source, out))  # noqa: B023
        source = out


@pytest.mark.slow
def test_frozen_parameters_and_buffers_on_any_number_of_ranks(nursery: Nursery, tmp_path: Path) -> None:
    code, output = nursery.run("tests.engine.test_frozen", [str(tmp_path)], tmp_path)
    assert code == 0, output
    path = tmp_path / "turn-1" / "bf16-zero3" / "step-00000002"
    one = reshape(path, tmp_path / "three", 3)
    assert all(torch.equal(value, load_weights(path)[name]) for name, value in load_weights(one).items())
    from safetensors.torch import load_file

    write_weights(one, tmp_path / "average.safetensors", ema=True)
    average, weights = load_file(tmp_path / "average.safetensors"), load_weights(path)
    assert {name for name in weights if torch.equal(average[name], weights[name])} == {*FROZEN, *BUFFERS}
    model_file = next((one / "model").iterdir())
    model_file.write_bytes(model_file.read_bytes()[:-1] + b"x")
    with pytest.raises(Exception, match="has been changed"):  # also for the average, whose frozen part is there
        write_weights(one, tmp_path / "again.safetensors", ema=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
