"""Resources of a run: address space, shared memory for the batches of its workers, and disk for its checkpoints."""

from __future__ import annotations

import resource
import shutil
from collections.abc import Sequence
from pathlib import Path

import psutil
import torch
from torch import nn

from swinv2_train.checkpoint.disk import human
from swinv2_train.checkpoint.layout import list_checkpoints
from swinv2_train.config.errors import ConfigError
from swinv2_train.config.plan import Plan
from swinv2_train.config.schema import Config
from swinv2_train.data.batch import Ragged
from swinv2_train.data.card import Card
from swinv2_train.data.shards import ShardSet
from swinv2_train.data.workers import ENLARGE, SHARED_MEMORY
from swinv2_train.engine.build import prefetched
from swinv2_train.errors import RunError
from swinv2_train.models.state import persistent_buffers
from swinv2_train.models.trainable import count_trained
from swinv2_train.planner.fit import Gpu, check_fit
from swinv2_train.planner.memory import checkpoint_bytes
from swinv2_train.tasks.build import measured_together
from swinv2_train.tasks.task import Task
from swinv2_train.text import counted

_ADDRESSES = 2**30
"""Bytes of address space that threads and communication need beyond the usage of a process at its start."""


def check_address_space() -> None:
    """Check that a limit on the address space (ulimit -v) leaves room for the threads of a run.

    C++ libraries wait forever, or end the process, if one of their threads cannot start.

    Raises:
        RunError: if it does not.
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    used = psutil.Process().memory_info().vms
    if limit != resource.RLIM_INFINITY and limit - used < _ADDRESSES:
        raise RunError(
            f"the address space of this process is limited to {human(limit)} (ulimit -v), of which {human(used)} are "
            f"used before the run begins; it needs at least {human(_ADDRESSES)} more: raise the limit, such as with "
            "ulimit -v unlimited"
        )


def shared_memory_needed(
    config: Config, plan: Plan, task: Task, card: Card | None = None, held_out: ShardSet | None = None
) -> int:
    """Return the maximum bytes of batches that the workers of one rank keep in shared memory.

    During an evaluation, the training workers keep their batches. Without a GPU, the batches of the current step and of
    the next one stay there as well; with one, they are copied to pinned memory.

    Args:
        card: that of the training shards; images of unknown depth count as 8-bit.
        held_out: shards of the evaluations, if there are any.
    """
    batches = config.data.num_workers * plan.micro_batch
    kept = batches * prefetched(config, plan)
    if batches and not torch.cuda.is_available():
        kept += 2 * plan.accumulation * plan.micro_batch
    needed = kept * _sample_bytes(task, card)
    if held_out is not None and config.eval.every_steps and batches:
        count = min(config.eval.max_samples or held_out.num_samples, held_out.num_samples)
        own, inputs = -(-count // plan.world_size), config.task.eval_inputs
        kept = config.data.num_workers * measured_together(config.task, plan.micro_batch) * config.data.prefetch_batches
        needed += min(own, kept) * inputs * _sample_bytes(task, held_out.card)
    return needed


def _sample_bytes(task: Task, card: Card | None) -> int:
    """Return the bytes of a sample in a batch; a single 16-bit image widens its entire batch, and scaled values are
    float32."""
    entries = task.example_batch(1)
    sample = {key: value.nbytes for key, value in entries.items() if isinstance(value, (torch.Tensor, Ragged))}
    wide = 4 if task.config.data.scale is not None else 2 if card is not None and 16 in card.bits else 1
    for key in task.train_transform.images:
        sample[key] = sample.get(key, 0) * wide
    return sum(sample.values())


def check_shared_memory(config: Config, needed: int, hosts: Sequence[tuple[str, int | None]]) -> None:
    """Check that the batches of all workers fit into the shared memory of each host.

    Args:
        needed: bytes for one rank.
        hosts: for each rank, the name of its host and the free bytes there (see `free_shared_memory`).

    Raises:
        ConfigError: if they do not.
    """
    for host, free in dict(hosts).items():
        ranks = sum(name == host for name, _ in hosts)
        if free is not None and free < needed * ranks:
            hint = (
                f"the workers of {ranks} {'rank' if ranks == 1 else 'ranks'} keep {human(needed * ranks)} of "
                f"batches in {SHARED_MEMORY}, and {host} has {human(free)} free there; lower data.num_workers "
                f"or data.prefetch_batches={config.data.prefetch_batches}, or enlarge it {ENLARGE}"
            )
            raise ConfigError("data.num_workers", config.data.num_workers, hint)


def check_gpu_memory(config: Config, plan: Plan, everyone: Sequence[tuple[str, int | None]], frozen: int) -> list[str]:
    """Return a warning if the run may not fit into the GPUs of its ranks, or into `launch.gpu_memory_gib`.

    Args:
        everyone: for each rank, the name of its device and the bytes of its GPU; None without one.
        frozen: number of parameters that are not trained.

    Raises:
        ConfigError: if it certainly does not.
    """
    gpus = [Gpu(name, memory) for name, memory in everyone if memory is not None]
    return check_fit(config, plan, min(gpus, key=lambda gpu: gpu.memory, default=None), frozen)


def checkpoint_size(config: Config, model: nn.Module) -> int:
    """Return the bytes of a checkpoint of this model, its buffers included."""
    trained, total = count_trained(model)
    buffers = sum(buffer.numel() for _, buffer in persistent_buffers(model))
    return checkpoint_bytes(config, total, total - trained) + 4 * buffers


def disk_warning(config: Config, steps_left: int, size: int, directory: Path) -> str | None:
    """Return a warning if the checkpoints that a run keeps do not fit on its disk; None if they do.

    The disk may be enlarged or cleaned up during the run, so this is not an error.

    Args:
        steps_left: number of steps to the end of the run.
        size: bytes of one checkpoint.
        directory: directory of the checkpoints.
    """
    policy = config.checkpoint
    try:
        disk = shutil.disk_usage(directory)
        held = sum(path.stat().st_size for one in list_checkpoints(directory) for path in one.rglob("*"))
    except OSError:
        return None
    if not disk.total:  # some network file systems report 0
        return None
    last, step_wise = max(1, policy.keep_last), policy.keep_every_steps
    saves = 1 + (steps_left // policy.every_steps if policy.every_steps else 0)
    kept = min(last + policy.keep_best + (steps_left // step_wise if step_wise else 0), saves)
    # A new one is written before the oldest is removed; existing ones beyond the policy make room.
    needed = (kept + (saves > kept)) * size
    room = disk.free + held
    if room >= needed:
        return None
    counts = [f"checkpoint.keep_last={policy.keep_last}"]
    counts += [f"keep_best={policy.keep_best}"] if policy.keep_best else []
    counts += [f"keep_every_steps={step_wise}"] if step_wise else []
    fewer = "lower keep_last or keep_best, raise keep_every_steps, " if kept > 1 and room >= 2 * size else ""
    return (
        f"{directory} has {human(disk.free)} free, and the run will need up to {human(needed)} there, of which "
        f"{human(min(held, needed))} are written: {human(size)} for each of {counted(kept, 'checkpoint')} "
        f"({', '.join(counts)}) and for the one being written; saves will fail unless you make room: {fewer}remove "
        "other files on this disk, or move the run (run.dir)"
    )
