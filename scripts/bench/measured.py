"""One training step of a task with random weights, as the benchmarks of the tasks measure it."""

from __future__ import annotations

import resource
import time
from typing import Any

import torch

from swinv2_train.config.schema import Config
from swinv2_train.data.batch import to_device
from swinv2_train.planner.activations import activations


def measured_step(config: Config, samples: int) -> dict[str, Any]:
    """Return the loss of a step of some images or clips, its gradient, the seconds of its parts, and memory in GiB."""
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    task = config.task.implementation()(config, [0.5] * 3, [0.25] * 3)
    model = task.build_model().to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.optim.lr)
    batch, factors = to_device(task.example_batch(samples), device), config.task.terms()
    weights = task.weights(batch)
    before = peak_gib()
    started = now()
    terms = task.loss(model, batch).terms
    computed = now()
    torch.stack([factors[name] * term / weights[name] for name, term in terms.items()]).sum().backward()
    differentiated = now()
    norm = torch.nn.utils.get_total_norm([parameter.grad for parameter in model.parameters()])
    optimizer.step()
    updated = now()
    sums = {name: float(term.detach()) for name, term in terms.items()}
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "loss": sum(factors[name] * total / weights[name] for name, total in sums.items()),
        "terms": {name: total / weights[name] for name, total in sums.items()},
        "gradient_norm": float(norm),
        "seconds": {
            "forward": computed - started,
            "backward": differentiated - computed,
            "update": updated - differentiated,
        },
        "saved_activations_gib_calculated": activations(config, samples, gpu=device.type == "cuda")[-1].saved / 2**30,
        "memory_gib": {"before": before, "peak": peak_gib()},
    }


def now() -> float:
    """Return the time at which all work so far is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def peak_gib() -> float:
    """Return the peak of the memory of the GPU, or of the resident memory of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
