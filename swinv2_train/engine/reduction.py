"""Gradients of a step summed over the ranks in fp32, while backward still runs.

DeepSpeed's BF16_Optimizer (ZeRO stage 1 with bf16 weights and fp32 sums of gradients) keeps one flat fp32 buffer of
sums per parameter group, of which each rank owns a partition. On its own, it reduces all buffers after the last
backward: as bf16, through copies of everything, and to every rank. That takes 14 bytes per parameter at the peak and
sums with 8 significant bits. `GradientReduction` replaces this:

- A gradient is added to its buffer and freed as soon as backward has computed it.
- In the last micro-batch, a buffer is reduced as soon as all its gradients are there, in fp32 and in place. Each rank
  receives only the partition that it owns, so this sends as many bytes as the reduction in bf16 to all ranks.
- The norm is computed from the partitions. The loss of the step is summed over the ranks by the same collective.

So the groups must be small (`in_buckets`), and in the order in which backward reaches them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import nn


def in_buckets(groups: list[dict[str, Any]], order: Iterable[nn.Parameter], elements: int) -> list[dict[str, Any]]:
    """Split parameter groups into ones of at most `elements` elements, in the order in which backward reaches them.

    A larger parameter is a group of its own. The result is identical on every rank.

    Args:
        groups: groups of AdamW with `params` and `names`; other keys are copied.
        order: all their parameters, in the order of the forward pass.
    """
    members = {
        id(parameter): (index, name)
        for index, group in enumerate(groups)
        for parameter, name in zip(group["params"], group["names"], strict=True)
    }
    split: list[dict[str, Any]] = []
    open_buckets: dict[int, tuple[dict[str, Any], int]] = {}
    for parameter in reversed([each for each in order if id(each) in members]):
        index, name = members[id(parameter)]
        bucket, size = open_buckets.pop(index, (None, 0))
        if bucket is None or size + parameter.numel() > elements:
            if bucket is not None:
                split.append(bucket)
            bucket, size = {**groups[index], "params": [], "names": []}, 0
        bucket["params"].append(parameter)
        bucket["names"].append(name)
        open_buckets[index] = (bucket, size + parameter.numel())
    return split + [bucket for bucket, _ in open_buckets.values()]


class GradientReduction:
    """Sums of gradients of a BF16_Optimizer, over micro-batches and ranks. All ranks must do the same with it."""

    def __init__(self, optimizer: Any, is_last: Callable[[], bool]) -> None:
        """Take over the gradients of an optimizer that nothing else reduces.

        Args:
            optimizer: DeepSpeed's BF16_Optimizer, without immediate_grad_update.
            is_last: whether the backward that is running is that of the last micro-batch of a step.
        """
        self._is_last = is_last
        self._group = optimizer.dp_process_group
        self._world_size = dist.get_world_size(self._group)
        self._sums = optimizer.fp32_groups_gradients_flat
        self._own = optimizer.fp32_groups_gradient_flat_partition
        self._sizes = [len(parameters) for parameters in optimizer.bf16_groups]
        self._pending: list[dist.Work] = []
        self._loss = self._sums[0].new_zeros((), dtype=torch.float64)
        self._begin()
        self._hooks = [
            parameter.register_post_accumulate_grad_hook(partial(self._add, index, total))
            for index, parameters in enumerate(optimizer.bf16_groups)
            for parameter, total in zip(parameters, optimizer.fp32_groups_gradients[index], strict=True)
        ]
        # The optimizer computes the norm of what this returns, and multiplies it by the factor of the clipping.
        optimizer.get_grads_for_norm = self._gradients_for_norm

    def _begin(self) -> None:
        self._missing = list(self._sizes)
        self._reduced = 0

    @torch.no_grad()
    def _add(self, index: int, total: torch.Tensor, parameter: nn.Parameter) -> None:
        assert parameter.grad is not None
        total.add_(parameter.grad.reshape(-1))
        parameter.grad = None
        if self._is_last():
            self._missing[index] -= 1
            # In the order of the buffers, because collectives must have the same order on every rank.
            while self._reduced < len(self._missing) and not self._missing[self._reduced]:
                self._reduce_next()

    def _reduce_next(self) -> None:
        own, sums = self._own[self._reduced], self._sums[self._reduced]
        self._reduced += 1
        if self._world_size > 1:
            work = dist.reduce_scatter_tensor(own, sums, group=self._group, async_op=True)
            self._pending.append(work)

    @torch.no_grad()
    def finish(self, loss: torch.Tensor | None = None) -> None:
        """Wait until the partitions of this rank hold the mean over all ranks. Call it after the last backward.

        Args:
            loss: scalar, this rank's part of the loss of the step; None counts as 0.
        """
        self._loss = torch.zeros_like(self._loss) if loss is None else loss.double()
        while self._reduced < len(self._sums):  # parameters that the loss does not depend on
            self._reduce_next()
        for work in self._pending:
            work.wait()
        self._pending.clear()
        if self._world_size > 1:
            torch._foreach_mul_(self._own, 1.0 / self._world_size)
        self._begin()

    def _gradients_for_norm(self, *, for_clipping: bool = False) -> Any:
        if for_clipping:
            return self._own
        square = torch.stack(torch._foreach_norm(self._own)).square().sum()  # the padding is 0
        both = torch.stack([square.double(), self._loss])
        dist.all_reduce(both, group=self._group)
        self._loss = both[1]
        return [both[0].to(square.dtype).sqrt()], {}

    @property
    def loss(self) -> torch.Tensor:
        """Scalar float64: the loss of the step over all ranks, once the norm is computed."""
        return self._loss

    def close(self) -> None:
        """Remove the hooks from the parameters."""
        for hook in self._hooks:
            hook.remove()
