"""The training engine: the only module that imports DeepSpeed.

It converts the engine section of a config to a DeepSpeed config, starts DeepSpeed without compiling any operator, and
offers what the loop needs: backward, step, whether the step was applied, the gradient norm, the moving average of the
weights, and the fragments that checkpoints consist of.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from swinv2_train.checkpoint.fragment import Fragment
from swinv2_train.config.errors import ConfigError
from swinv2_train.config.plan import Plan
from swinv2_train.config.schema import Config
from swinv2_train.engine.fragments import (
    adam_steps,
    fragments,
    partitioned_fragments,
    publish,
    replicated_fragments,
    set_adam_steps,
    share_of,
)
from swinv2_train.engine.param_groups import parameter_groups
from swinv2_train.engine.reduction import GradientReduction, in_buckets
from swinv2_train.imports import lean_imports
from swinv2_train.launch.ranks import Ranks


def deepspeed_config(config: Config, plan: Plan) -> dict[str, Any]:
    """Return the DeepSpeed config of a run."""
    engine = config.engine
    settings: dict[str, Any] = {
        "train_batch_size": plan.global_batch,
        "train_micro_batch_size_per_gpu": plan.micro_batch,
        "gradient_accumulation_steps": plan.accumulation,
        "gradient_clipping": 0.0 if is_bare(config) else config.optim.clip_norm,
        "zero_optimization": {"stage": engine.zero_stage, "reduce_bucket_size": engine.bucket_elements},
        "steps_per_print": 10**9,
        "zero_allow_untested_optimizer": True,  # GatedAdamW is AdamW, but not by name
    }
    if engine.precision == "bf16":
        # The default of check_grad_overflow changed between releases; if it is off, a NaN reaches the weights.
        settings["bf16"] = {"enabled": True, "check_grad_overflow": True}
    elif engine.precision == "fp16":
        settings["fp16"] = {"enabled": True, "loss_scale": 0, "initial_scale_power": engine.fp16_initial_scale_power}
    if engine.grad_accum_dtype:
        settings["data_types"] = {"grad_accum_dtype": engine.grad_accum_dtype}
    elif engine.precision == "bf16" and engine.zero_stage == 0:
        settings["data_types"] = {"grad_accum_dtype": "bf16"}
    return _merge(settings, engine.deepspeed)


def is_bare(config: Config) -> bool:
    """Return whether DeepSpeed returns the bare AdamW: it then neither measures the gradient nor guards against NaN."""
    return config.engine.zero_stage == 0 and config.engine.precision == "fp32"


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _import_deepspeed(device: str) -> Any:
    # Naming the accelerator avoids a probe and a warning on machines without a GPU.
    os.environ.setdefault("DS_ACCELERATOR", device)
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    with lean_imports():
        import deepspeed

    deepspeed.utils.logger.setLevel(logging.WARNING)
    deepspeed.utils.logger.addFilter(_is_news)
    if device == "cpu":
        # Used only by inference, but init_distributed would compile it for about a minute without a message. Reading
        # the table of operators would first fill it, by running a compiler for each.
        vars(deepspeed.ops).setdefault("__compatible_ops__", {})["deepspeed_shm_comm"] = False
    _import_muon(deepspeed)
    return deepspeed


def _import_muon(deepspeed: Any) -> None:
    # `initialize` imports DeepSpeed's Muon, which applies torch.compile at import time. That costs four seconds of
    # every rank's start, most of them for TorchInductor, for an optimizer that is not used here.
    original = deepspeed.runtime.compiler.compile
    deepspeed.runtime.compiler.compile = lambda *_, **__: lambda function: function
    try:
        with contextlib.suppress(ImportError):  # this version of DeepSpeed does not have it
            importlib.import_module("deepspeed.runtime.zero.muon.original_muon")
    finally:
        deepspeed.runtime.compiler.compile = original


def _is_news(record: logging.LogRecord) -> bool:
    return "OVERFLOW!" not in record.getMessage()  # the run reports it itself, with the step


class GatedAdamW(torch.optim.AdamW):
    """AdamW that asks a gate before an update. When DeepSpeed calls it, the norm of the entire gradient is known.

    Both methods call the functions below torch's decorators, which import the compiler first: 3 s of CPU time in every
    process, for an optimizer that is not compiled here.
    """

    allow: Callable[[], bool] = staticmethod(lambda: True)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        torch.optim.Optimizer.add_param_group.__wrapped__(self, param_group)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        return torch.optim.AdamW.step.__wrapped__(self, closure) if self.allow() else None


class Engine:
    """A model under DeepSpeed. Its methods are collectives: all ranks must call them in the same order."""

    def __init__(self, model: nn.Module, config: Config, plan: Plan, ranks: Ranks) -> None:
        """Wrap `model`, whose parameters must already be on `ranks.device`. Those without a gradient are not changed.

        Raises:
            ConfigError: if the precision does not work on the device, or a name in `optim.lr_scales` is unknown.
        """
        device = ranks.device.type
        if config.engine.precision == "fp16" and device == "cpu":
            raise ConfigError("engine.precision", "fp16", "needs a GPU; use bf16 or fp32 on the CPU")
        settings = deepspeed_config(config, plan)
        self._library = deepspeed = _import_deepspeed(device)
        deepspeed.init_distributed(dist_backend="nccl" if device == "cuda" else "gloo", verbose=False)
        groups = parameter_groups(model, config.optim, config.model.depths)
        if config.engine.sums_in_fp32:  # DeepSpeed returns its BF16_Optimizer
            groups = in_buckets(groups, model.parameters(), config.engine.bucket_elements)
        # A client optimizer: DeepSpeed's own would compile a CUDA or C++ extension at start. The rate is 0 until the
        # first step, because some of DeepSpeed's wrappers take an empty step at start, which would decay the weights.
        self._adam = adam = GatedAdamW(
            groups,
            lr=0.0,
            betas=tuple(config.optim.betas),
            eps=config.optim.eps,
            fused=True if device == "cuda" else None,
        )
        with _quiet():
            self._deepspeed, self._optimizer, _, _ = deepspeed.initialize(model=model, optimizer=adam, config=settings)
        self._reduction = None
        if config.engine.sums_in_fp32:
            self._deepspeed.enable_backward_allreduce = False
            self._reduction = GradientReduction(self._optimizer, self._deepspeed.is_gradient_accumulation_boundary)
        set_adam_steps(self._optimizer, 0)  # that empty step must not count for AdamW's bias correction
        self._bare, self._clip_norm = is_bare(config), config.optim.clip_norm
        self.scale_exhausted = False
        """True if an fp16 gradient overflowed at the smallest loss scale: no update is possible any longer."""
        self.grad_norm = math.nan
        """Norm of the last step's gradient over all parameters and ranks, before clipping; inf or nan if an element was
        not finite."""
        self.loss = math.nan
        """Loss of the last step over all ranks; nan if `step` was not given this rank's part."""
        self._masters = [piece.weight for piece in fragments(self.module, self._optimizer)]
        self._average = [weight.clone() for weight in self._masters] if config.optim.ema_decay else None

    @property
    def model(self) -> nn.Module:
        """The model to call in training, with DeepSpeed's hooks around it."""
        return self._deepspeed

    @property
    def module(self) -> nn.Module:
        """The model itself."""
        return self._deepspeed.module

    def backward(self, loss: torch.Tensor) -> None:
        """Run backward for one micro-batch. `loss` is its part of the step's loss, times the number of ranks (DeepSpeed
        averages over ranks; it is configured not to divide by the accumulation)."""
        self._deepspeed.backward(loss, scale_wrt_gas=False)

    def micro_step(self) -> None:
        """Count a micro-batch that is not the last of its step."""
        self._deepspeed.step()

    def step(
        self,
        learning_rate: float,
        allow: Callable[[float], bool] = lambda norm: True,
        *,
        loss: torch.Tensor | None = None,
    ) -> bool:
        """Clip, update, and return whether the update was applied. Call it after the last micro-batch of a step.

        Args:
            learning_rate: rate of this step, before the factors of the parameter groups.
            allow: called with the norm of the entire gradient if that is finite; may reject the update, with the same
                result on every rank. `self.loss` is known at this time.
            loss: scalar on the device, this rank's part of the loss of the step: it is summed over all ranks on the
                device and fetched together with the norm. None if nobody asks for it.
        """
        total = self._begin_loss(loss)
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate * group["lr_scale"]
        self.grad_norm = self._clip_bare() if self._bare else math.inf  # if it is not finite, the gate is never asked
        verdict: list[bool] = []

        def gate() -> bool:  # called once per parameter group
            if not verdict:
                # Here DeepSpeed has just waited for the norm. Later, the device would finish the update first.
                self.loss = total()
                if not self._bare:
                    self.grad_norm = float(self._optimizer._global_grad_norm)
                verdict.append(math.isfinite(self.grad_norm) and allow(self.grad_norm))
            return verdict[0]

        self._adam.allow = gate
        try:
            self._deepspeed.step()
        except Exception as error:
            if "loss scale already at minimum" not in str(error):
                raise
            self.scale_exhausted = True
        if not verdict:
            self.loss = total()
        return not self.scale_exhausted and bool(self._deepspeed.was_step_applied()) and all(verdict)

    def _begin_loss(self, loss: torch.Tensor | None) -> Callable[[], float]:
        """Begin to sum the loss over the ranks, in float64; return a function that fetches the sum after the norm."""
        if self._reduction is not None:
            self._reduction.finish(loss)
        if loss is None:
            return lambda: math.nan
        if self._reduction is not None:
            reduction = self._reduction
            return lambda: float(reduction.loss)
        total = loss.to(torch.float64, copy=True)
        torch.distributed.all_reduce(total)
        return lambda: float(total)

    def _clip_bare(self) -> float:
        parameters = [parameter for parameter in self.module.parameters() if parameter.grad is not None]
        norm = torch.nn.utils.get_total_norm([parameter.grad for parameter in parameters])
        if self._clip_norm:
            torch.nn.utils.clip_grads_with_norm_(parameters, self._clip_norm, norm)
        return float(norm)

    @property
    def averages(self) -> bool:
        """True if the engine keeps a moving average of the weights."""
        return self._average is not None

    @torch.no_grad()
    def update_average(self, decay: float) -> None:
        """Update the average of the weights: average = decay * average + (1 - decay) * weights."""
        if self._average is not None:
            torch._foreach_lerp_(self._average, self._masters, 1.0 - decay)

    @contextlib.contextmanager
    def averaged(self, shared: type[BaseException]) -> Iterator[None]:
        """Give the model the averaged weights inside this block, and restore its own afterward, bitwise.

        Args:
            shared: exceptions that all ranks raise together. After any other exception the averaged weights stay,
                because restoring the model's own is a collective, which the other ranks would not reach.
        """
        assert self._average is not None
        own = [weight.clone() for weight in self._masters]
        self._take(self._average)
        try:
            yield
        except shared:
            self._take(own)
            raise
        self._take(own)

    @torch.no_grad()
    def _take(self, weights: list[torch.Tensor]) -> None:
        torch._foreach_copy_(self._masters, weights)
        self.publish()

    def fragments(self) -> Iterator[Fragment]:
        """Yield this rank's fragments of the trained fp32 weights, of their average, and of Adam's moments."""
        pieces = fragments(self.module, self._optimizer)
        if self._average is None:
            return pieces
        return (replace(piece, ema=average) for piece, average in zip(pieces, self._average, strict=True))

    def fragments_to_load(self) -> Iterator[Fragment]:
        """Yield all fragments of a checkpoint that this rank has: also frozen parameters and persistent buffers."""
        yield from self.fragments()
        yield from partitioned_fragments(self.module, self._optimizer)
        yield from replicated_fragments(self.module)

    def fragments_to_save(self, ranks: Ranks) -> Iterator[Fragment]:
        """Yield the fragments that this rank must write, each element on one rank; without ZeRO, the main rank has all.

        Raises:
            CheckpointError: on every rank, if a buffer has values that a checkpoint cannot store.
        """
        shared = bool(self._deepspeed.zero_optimization_stage())
        rank, world_size = (ranks.rank, ranks.world_size) if shared else (0, 1)
        fixed = list(share_of(replicated_fragments(self.module), rank, world_size))  # fails on all ranks or on none
        if shared or ranks.is_main:
            yield from self.fragments()
            yield from partitioned_fragments(self.module, self._optimizer)
            yield from fixed

    def publish(self) -> None:
        """Copy weights that were written to fragments into the model of every rank. A collective."""
        publish(self.module, self._optimizer)

    def scalars(self) -> dict[str, Any]:
        """Return the optimizer's scalars for a checkpoint, identical on every rank."""
        values: dict[str, Any] = {"adam_steps": adam_steps(self._optimizer)}
        scaler = getattr(self._optimizer, "loss_scaler", None)
        if scaler is not None and getattr(scaler, "dynamic", False):
            values["loss_scaler"] = {key: getattr(scaler, key) for key in SCALER_FIELDS}
        return values

    def load_scalars(self, values: dict[str, Any]) -> None:
        """Restore what `scalars` returned."""
        set_adam_steps(self._optimizer, values["adam_steps"])
        scaler = getattr(self._optimizer, "loss_scaler", None)
        if "loss_scaler" in values and scaler is not None and getattr(scaler, "dynamic", False):
            for key, value in values["loss_scaler"].items():
                setattr(scaler, key, value)

    def close(self) -> None:
        """Remove the model's hooks and DeepSpeed's process groups, so that this process can start another run."""
        if self._reduction is not None:
            self._reduction.close()
        self._deepspeed.destroy()
        self._library.comm.destroy_process_group()


SCALER_FIELDS = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence DeepSpeed during start: some lines are plain prints, and it warns of an optimizer it does not know."""
    library = logging.getLogger("DeepSpeed")
    level = library.level
    library.setLevel(logging.ERROR)
    try:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            yield
    finally:
        library.setLevel(level)
