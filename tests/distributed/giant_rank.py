"""Lay out one rank of a 64-rank job of an experiment, parameters and optimizer shard, without allocating either.

Run by test_giant.py in a process of its own. DeepSpeed itself partitions, over tensors without storage and a process
group without other processes.
"""

from __future__ import annotations

import json
import os
import resource
import sys

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing._internal.distributed.fake_pg import FakeStore

from swinv2_train.config.compose import compose
from swinv2_train.config.plan import make_plan
from swinv2_train.engine.deepspeed import Engine
from swinv2_train.launch.ranks import Ranks
from swinv2_train.tasks.simmim import SimMIM

WORLD, RANK = 64, 5


def main(experiment: str) -> None:
    variables = {"RANK": RANK, "WORLD_SIZE": WORLD, "LOCAL_RANK": 0, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 29999}
    os.environ.update({key: str(value) for key, value in variables.items()})
    torch.distributed.init_process_group("fake", store=FakeStore(), rank=RANK, world_size=WORLD)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    config = compose([f"+experiment={experiment}"])
    plan = make_plan(config, WORLD, config.data.expected_samples)
    ranks = Ranks(RANK, WORLD, 0, torch.device("cpu"), None)  # type: ignore[arg-type]
    with FakeTensorMode(allow_non_fake_inputs=True):
        torch.set_default_dtype(torch.bfloat16)
        model = SimMIM(config, [0.5] * 3, [0.5] * 3).build_model()
        torch.set_default_dtype(torch.float32)
        # DeepSpeed would convert and move the parameters, which tensors without storage do not survive.
        type(model).bfloat16 = lambda self: self  # type: ignore[assignment,method-assign]
        type(model).to = lambda self, *args, **kwargs: self  # type: ignore[assignment,method-assign]
        engine = Engine(model, config, plan, ranks)
        owned = [(piece.weight.numel(), piece.exp_avg.numel()) for piece in engine.fragments()]
    print(
        json.dumps(
            {
                "parameters": sum(parameter.numel() for parameter in engine.module.parameters()),
                "dtypes": sorted({str(parameter.dtype) for parameter in engine.module.parameters()}),
                "weights": sum(weight for weight, _ in owned),
                "moments": sum(moment for _, moment in owned),
                "micro_batch": plan.micro_batch,
                "accumulation": plan.accumulation,
                "grown_gib": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20,
            }
        )
    )


if __name__ == "__main__":
    main(sys.argv[1])
