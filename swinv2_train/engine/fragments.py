"""The fragments of a model's tensors that this rank owns under ZeRO.

DeepSpeed keeps fp32 master weights and Adam moments in flat, padded, per-rank buffers whose layout depends on the
number of ranks. A `Fragment` identifies such a piece independently of the layout: by its parameter and the offset in
it. Checkpoints consist of fragments, so any number of ranks can read them.

This module and `reduction.py` contain every use of private attributes of DeepSpeed's optimizers, except for the norm of
the gradient. Here these are `_hp_mapping` and the flat groups (stages 1 and 2), `grad_position` and `ds_tensor` (stage
3), `fp32_groups` (stage 0 in 16 bits).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from swinv2_train.checkpoint.errors import CheckpointError
from swinv2_train.checkpoint.fragment import Fragment
from swinv2_train.models.state import persistent_buffers

MOMENTS = ("exp_avg", "exp_avg_sq")


def base_optimizer(optimizer: Any) -> torch.optim.Optimizer:
    """Return the AdamW inside DeepSpeed's wrapper (or the optimizer itself if it is not wrapped)."""
    return optimizer if isinstance(optimizer, torch.optim.Optimizer) else optimizer.optimizer


def _masters(optimizer: Any) -> Iterator[tuple[torch.Tensor, dict[str, Any]]]:
    """Yield the tensors that AdamW updates, each with a parameter group that it belongs to."""
    adam = base_optimizer(optimizer)
    if hasattr(optimizer, "grad_position"):  # stage 3 moves tensors in and out of its groups in a step
        for tensor in optimizer.fp32_partitioned_groups_flat:
            yield tensor, adam.param_groups[0]
        return
    for group in adam.param_groups:
        for tensor in group["params"]:
            yield tensor, group


def ensure_state(optimizer: Any) -> None:
    """Create Adam's moments if no step has been taken yet, so that every fragment exists."""
    state = base_optimizer(optimizer).state
    for tensor, group in _masters(optimizer):
        if not state[tensor]:
            on_device = group.get("fused") or group.get("capturable")
            state[tensor] = {
                "step": torch.zeros((), dtype=torch.float32, device=tensor.device if on_device else "cpu"),
                **{key: torch.zeros_like(tensor, memory_format=torch.preserve_format) for key in MOMENTS},
            }


def fragments(module: nn.Module, optimizer: Any) -> Iterator[Fragment]:
    """Yield this rank's fragments of all trained parameters, in the order of the module's parameters.

    Args:
        module: the model that was passed to DeepSpeed.
        optimizer: the optimizer that DeepSpeed returned, of any ZeRO stage and precision.
    """
    ensure_state(optimizer)
    named = [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]
    if hasattr(optimizer, "_lazy_init_hp_params_optimizer_state"):
        # DeepSpeed links the moments once, after the first group has stepped, and leaves those of later groups empty.
        optimizer._hp_optimizer_states_linked = False
        optimizer._lazy_init_hp_params_optimizer_state()
        yield from _linked(named)
    elif hasattr(optimizer, "grad_position"):
        yield from _stage3(named, optimizer)
    else:
        yield from _replicated(named, optimizer)


def partitioned_fragments(module: nn.Module, optimizer: Any) -> Iterator[Fragment]:
    """Yield this rank's parts of the frozen parameters that stage 3 has partitioned.

    DeepSpeed has no fp32 master weights for frozen parameters: these are views of the model's memory, in its dtype.
    """
    for name, parameter in module.named_parameters():
        if parameter.requires_grad or not hasattr(parameter, "ds_tensor"):
            continue
        own = parameter.ds_tensor.detach().view(-1)
        start = optimizer._get_param_partition_rank(parameter) * own.numel()
        owned = min(own.numel(), parameter.ds_numel - start)  # the last ranks contain padding
        if owned > 0:
            yield Fragment(name, tuple(parameter.ds_shape), start, own.narrow(0, 0, owned))


def replicated_fragments(module: nn.Module) -> Iterator[Fragment]:
    """Yield untrained tensors that every rank has completely: frozen parameters below stage 3, persistent buffers."""
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad and not hasattr(parameter, "ds_tensor"):
            yield Fragment(name, tuple(parameter.shape), 0, parameter.detach().view(-1))
    for name, buffer in persistent_buffers(module):
        yield Fragment(name, tuple(buffer.shape), 0, buffer.detach().view(-1), is_buffer=True)


def share_of(replicated: Iterable[Fragment], rank: int, world_size: int) -> Iterator[Fragment]:
    """Yield the part that a rank saves of tensors that every rank has: all, laid end to end, are cut into equal parts.

    Raises:
        CheckpointError: on every rank, if a buffer has values that fp32, the only dtype of a checkpoint, cannot
            represent.
    """
    pieces = list(replicated)
    for piece in pieces:
        _check_exact(piece)
    size, end = -(-sum(piece.weight.numel() for piece in pieces) // world_size), 0
    for piece in pieces:
        begin, end = end, end + piece.weight.numel()
        low, high = max(begin, rank * size), min(end, (rank + 1) * size)
        if low < high:
            yield replace(piece, start=low - begin, weight=piece.weight[low - begin : high - begin])


def _check_exact(piece: Fragment) -> None:
    if piece.weight.dtype in (torch.float32, torch.bfloat16, torch.float16):
        return
    if not torch.equal(piece.weight.float().to(piece.weight.dtype), piece.weight):
        raise CheckpointError(
            f"the buffer {piece.name} of {str(piece.weight.dtype).removeprefix('torch.')} has values that fp32 cannot "
            "hold, as which it would be saved; register it with persistent=False, or keep it in fp32"
        )


def _linked(named: list[tuple[str, nn.Parameter]]) -> Iterator[Fragment]:
    for name, parameter in named:
        mapping = parameter._hp_mapping
        if mapping is not None:
            moments = {key: mapping.get_optim_state_fragment(key) for key in MOMENTS}
            start = mapping.lp_fragment_address.start
            yield Fragment(name, tuple(parameter.shape), start, mapping.hp_fragment.detach(), **moments)


def _stage3(named: list[tuple[str, nn.Parameter]], optimizer: Any) -> Iterator[Fragment]:
    for name, parameter in named:
        parts = [optimizer._get_fp32_opt_state_partition(parameter, False, key)[0] for key in (None, *MOMENTS)]
        start = optimizer._get_param_partition_rank(parameter) * parts[0].numel()
        owned = min(parts[0].numel(), parameter.ds_numel - start)  # the last ranks contain padding
        if owned > 0:
            yield Fragment(
                name, tuple(parameter.ds_shape), start, *(part.detach().narrow(0, 0, owned) for part in parts)
            )


def _replicated(named: list[tuple[str, nn.Parameter]], optimizer: Any) -> Iterator[Fragment]:
    adam = base_optimizer(optimizer)
    masters = {}
    if hasattr(optimizer, "fp32_groups"):
        for low_group, high_group in zip(optimizer.fp16_groups, optimizer.fp32_groups, strict=True):
            masters.update({id(low): high for low, high in zip(low_group, high_group, strict=True)})
    for name, parameter in named:
        master = masters.get(id(parameter), parameter)
        state = adam.state[master]
        moments = {key: state[key].view(-1) for key in MOMENTS}
        yield Fragment(name, tuple(parameter.shape), 0, master.detach().view(-1), **moments)


@torch.no_grad()
def publish(module: nn.Module, optimizer: Any) -> None:
    """Copy the fp32 master weights to the model's own, on all ranks: the last step of loading a checkpoint."""
    if hasattr(optimizer, "update_lp_params"):
        optimizer.update_lp_params()
    elif hasattr(optimizer, "grad_position"):
        # Small parameters stay gathered between steps: release them, refill their partitions, and gather them again.
        kept = optimizer.persistent_parameters
        if kept:
            kept[0].partition(kept)
        for group in range(len(optimizer.fp32_partitioned_groups_flat)):
            optimizer._reassign_or_swap_out_partitioned_parameters(group)
        if kept:
            kept[0].all_gather(kept)
    elif hasattr(optimizer, "fp32_groups"):
        for low_group, high_group in zip(optimizer.fp16_groups, optimizer.fp32_groups, strict=True):
            for low, high in zip(low_group, high_group, strict=True):
                low.copy_(high)


def adam_steps(optimizer: Any) -> int:
    """Return the number of steps that AdamW has taken (skipped ones do not count)."""
    ensure_state(optimizer)
    state = base_optimizer(optimizer).state
    return max(int(state[tensor]["step"]) for tensor, _ in _masters(optimizer))


def set_adam_steps(optimizer: Any, steps: int) -> None:
    """Set AdamW's step count, which its bias correction depends on."""
    ensure_state(optimizer)
    state = base_optimizer(optimizer).state
    for tensor, _ in _masters(optimizer):
        state[tensor]["step"].fill_(steps)
