"""Bytes that one rank of a large job holds during a step, counted in a process without GPU, network, or much memory.

    python scripts/bench/step_memory.py --experiments simmim_giant --ranks 8 64 512 --out results.json

DeepSpeed, the optimizer, and the model run over tensors without storage (FakeTensorMode) and a process group without
other processes. A meter adds up the storages that operators return, and subtracts them when they are freed. By default
it counts model states, in steps of two micro-batches whose gradients come without a forward pass. With `--images N`
each micro-batch is a forward pass of N images and its backward, with the operators of a CPU; those of a GPU save less.
What a GPU adds is not counted: its context, NCCL's buffers, cuBLAS's workspaces, and the allocator's rounding and
fragmentation.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import resource
import subprocess
import sys
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from report import write_report
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

import swinv2_train.engine.deepspeed
from swinv2_train.config.compose import compose
from swinv2_train.config.plan import make_plan
from swinv2_train.config.schema import Config
from swinv2_train.engine.deepspeed import Engine, GatedAdamW
from swinv2_train.launch.ranks import Ranks
from swinv2_train.models.precision import PRECISIONS
from swinv2_train.models.trainable import apply_freeze
from swinv2_train.tasks.task import Task

RANK = 5
MOMENTS = ("backward", "held", "update", "between_steps")
"""Peak in forward and backward, at the end of backward, peak in the update, and between two steps."""


class FusedAdamW(GatedAdamW):
    """The variant that a rank with a GPU uses."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **{**keywords, "fused": True})


swinv2_train.engine.deepspeed.GatedAdamW = FusedAdamW


class Meter(TorchDispatchMode):
    """Counts the bytes of all storages that operators return, each once, until they are freed."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in tree_iter(result):
            if isinstance(tensor, torch.Tensor) and tensor.device.type != "meta":
                self._add(tensor.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._known:
            self._known.add(key)
            self.live += size
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._drop, key, size)

    def _drop(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size

    def take_peak(self) -> int:
        """Return the peak since the last call."""
        peak, self.peak = self.peak, self.live
        return peak


@contextmanager
def one_rank(world: int) -> Iterator[Ranks]:
    """Yield a rank of a job whose other ranks do not exist; collectives return at once."""
    variables = {"RANK": RANK, "WORLD_SIZE": world, "LOCAL_RANK": 0, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 29999}
    os.environ.update({key: str(value) for key, value in variables.items()})
    # FakeTensorMode asks at every operator, and each time torch opens a library of the driver.
    torch.cuda.is_available = functools.cache(torch.cuda.is_available)
    torch.distributed.init_process_group("fake", store=FakeStore(), rank=RANK, world_size=world)
    yield Ranks(RANK, world, 0, torch.device("cpu"), None)  # type: ignore[arg-type]
    torch.distributed.destroy_process_group()


def build(task: Task, config: Config) -> nn.Module:
    """Return the model of a task in its training dtype, without storage."""
    torch.set_default_dtype(PRECISIONS[config.engine.precision])
    model = task.build_model()
    torch.set_default_dtype(torch.float32)
    apply_freeze(model, config.optim.freeze)
    # DeepSpeed would convert and move the parameters, which tensors without storage do not survive.
    for name in ("bfloat16", "half", "to"):
        setattr(type(model), name, lambda self, *args, **kwargs: self)
    return model


def steps(config: Config, ranks: Ranks, images: int) -> dict[str, float]:
    """Return the bytes at the moments of a step of two micro-batches, with activations if `images` is not 0."""
    plan = make_plan(config, ranks.world_size, config.data.expected_samples or config.optim.global_batch)
    task = config.task.implementation()(config, [0.5] * 3, [0.5] * 3)
    batch = task.example_batch(images) if images else {}
    meter = Meter()
    with FakeTensorMode(allow_non_fake_inputs=True), meter:
        model = build(task, config)
        engine = Engine(model, config, plan, ranks)
        parameters = [parameter for parameter in engine.module.parameters() if parameter.requires_grad]
        found: dict[str, float] = {
            "parameters": sum(parameter.numel() for parameter in engine.module.parameters()),
            "owned": sum(piece.weight.numel() for piece in engine.fragments()),
        }
        # The second step is like all later ones: Adam's moments exist.
        for _ in range(2):
            meter.take_peak()
            for index in range(plan.accumulation):
                if images:
                    engine.backward(sum(task.loss(engine.model, batch).terms.values()))
                else:
                    # Autograd computes the gradients in the order in which a forward pass uses the parameters last.
                    engine.backward(torch.stack([parameter.sum() for parameter in parameters]).sum())
                if index < plan.accumulation - 1:
                    engine.micro_step()
            found["backward"], found["held"] = meter.take_peak(), meter.live
            with known_norm(engine):
                engine.step(1e-4)
            found["update"], found["between_steps"] = meter.take_peak(), meter.live
    return found


@contextmanager
def known_norm(engine: Engine) -> Iterator[None]:
    """Give the engine's optimizer a number as the norm of the gradient, because tensors without storage have none."""
    import deepspeed.runtime.bf16_optimizer as bf16
    import deepspeed.runtime.zero.stage_1_and_2 as zero

    bf16.get_global_norm_of_tensors = lambda *_, **__: 1.0
    bf16.is_invalid_grad_norm = lambda *_: False
    optimizer = type(engine._optimizer)
    if optimizer is zero.DeepSpeedZeroOptimizer:
        optimizer.scaled_global_norm = lambda *_, **__: 1.0
        optimizer.has_overflow = lambda *_, **__: False
        optimizer.unscale_and_clip_grads = lambda *_: None
    yield


def measure(experiment: str, world: int, images: int, overrides: list[str]) -> dict[str, float]:
    """Return the numbers of one rank of an experiment; call it once per process.

    They are in bytes, except `parameters` and `owned`, the elements of the model and of the rank's fp32 weights;
    `resident` is what the measurement itself has allocated.
    """
    micro = max(images, 1)
    two = [f"optim.global_batch={2 * micro * world}", f"engine.micro_batch={micro}"]
    config = compose([f"+experiment={experiment}", *two, *overrides])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with one_rank(world) as ranks:
        found = steps(config, ranks, images)
    return {**found, "resident": 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)}


def line(found: dict[str, float]) -> str:
    """Return bytes per parameter and the peak in GiB, for display."""
    shares = [found[name] / found["parameters"] for name in MOMENTS]
    return "  ".join([*(f"{share:7.2f}" for share in shares), f"{max(found[name] for name in MOMENTS) / 2**30:8.2f}"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiments", nargs="+", default=["simmim_giant"])
    parser.add_argument("--ranks", nargs="+", type=int, default=[8, 64, 512])
    parser.add_argument("--images", type=int, default=0, help="images of a micro-batch; 0: count no activations")
    parser.add_argument("--overrides", nargs="*", default=[], help="config keys, such as engine=zero1_bf16")
    parser.add_argument("--out", type=Path, help="JSON file for the result")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        found = measure(arguments.experiments[0], arguments.ranks[0], arguments.images, arguments.overrides)
        print(json.dumps(found))
        return
    print(f"{'bytes per parameter':20}  ranks  {'  '.join(name[:7].rjust(7) for name in MOMENTS)}  peak GiB")
    results = []
    for experiment in arguments.experiments:
        for world in arguments.ranks:
            again = [sys.executable, __file__, "--one", "--experiments", experiment, "--ranks", str(world)]
            command = [*again, "--images", str(arguments.images), "--overrides", *arguments.overrides]
            output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            found = json.loads(output.splitlines()[-1])
            results.append({"experiment": experiment, "ranks": world, **found})
            print(f"{experiment:20}  {world:5}  {line(found)}", flush=True)
    if arguments.out:
        write_report(arguments.out, ("torch", "deepspeed"), overrides=arguments.overrides, results=results)


if __name__ == "__main__":
    main()
