"""The ranks of a job: how a process finds the others, and the few things they tell each other outside of training.

Control messages (flags, counts, small objects) go over a gloo group of their own, on the host, so that they never wait
for the accelerator. Gradients and parameters are DeepSpeed's business.
"""

from __future__ import annotations

import datetime
import os
import socket
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from swinv2_train.config.errors import ConfigError

_ALONE = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
"""DeepSpeed looks for an MPI job unless it finds all of these, also where the process group is there already."""


def under_launcher() -> bool:
    """Whether a launcher (deepspeed, torchrun) has started this process as one rank of a job."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def free_port() -> int:
    """A TCP port that nobody listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@dataclass
class Ranks:
    """This process among the others."""

    rank: int
    world_size: int
    local_rank: int
    device: torch.device
    control: dist.ProcessGroup

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def barrier(self) -> None:
        """Wait until every rank is here."""
        dist.barrier(group=self.control)

    def sum(self, values: list[float]) -> list[float]:
        """Numbers added up over all ranks."""
        tensor = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(tensor, group=self.control)
        return tensor.tolist()

    def gather(self, value: Any) -> list[Any]:
        """One small object of every rank, in rank order, on every rank."""
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value, group=self.control)
        return values

    def broadcast(self, value: Any) -> Any:
        """The main rank's small object, on every rank."""
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self.control)
        return box[0]


def pick_device(wanted: str) -> str:
    """`cuda` or `cpu` for `launch.device`."""
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return wanted


def _set_default_timeout(timeout: datetime.timedelta) -> None:
    # DeepSpeed clones the world group with `new_group(ranks)`, which takes torch's default timeout and not the one
    # given to init_process_group; a hang there would go unnoticed for half an hour.
    from torch.distributed import constants, distributed_c10d

    for module in (constants, distributed_c10d):
        for name in ("default_pg_timeout", "default_pg_nccl_timeout"):
            if hasattr(module, name):
                setattr(module, name, timeout)


def join(device: str, timeout_minutes: float) -> Ranks:
    """Join the ranks that a launcher has started, or be the only one.

    Args:
        device: `cuda` or `cpu`.
        timeout_minutes: limit on the rendezvous and on every collective.
    """
    timeout = datetime.timedelta(minutes=timeout_minutes)
    _set_default_timeout(timeout)
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    backend = "nccl" if device == "cuda" else "gloo"
    torch_device = torch.device(device, local_rank) if device == "cuda" else torch.device("cpu")
    if device == "cuda":
        if local_rank >= torch.cuda.device_count():
            raise ConfigError(
                "LOCAL_RANK", local_rank, f"this machine has {torch.cuda.device_count()} GPUs; start one rank per GPU"
            )
        torch.cuda.set_device(torch_device)
    if under_launcher():
        store, rank, world_size = next(dist.rendezvous("env://", timeout=timeout))
        # torchrun keeps its store over a restart; a prefix per attempt keeps the new ranks from reading the addresses
        # of the dead ones.
        store = dist.PrefixStore("attempt" + os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), store)
    else:
        store, rank, world_size = dist.HashStore(), 0, 1
        os.environ.update(_ALONE)
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=timeout)
    control = dist.new_group(backend="gloo", timeout=timeout)
    return Ranks(rank, world_size, local_rank, torch_device, control)


def leave() -> None:
    """Take this process out of the job."""
    if dist.is_initialized():
        dist.destroy_process_group()
    if {key: os.environ.get(key) for key in _ALONE} == _ALONE:  # or the next run here would look for a launcher
        for key in _ALONE:
            del os.environ[key]
