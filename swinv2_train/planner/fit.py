"""Comparison of a run's peak with the memory of its GPUs, before anything slow begins.

The formulas count what certainly exists, so a run whose peak is larger than the memory cannot run. They overestimate a
run only if autograd saves less than they assume, see `upper_bound`; such a run gets a warning instead of an error.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from swinv2_train.config.errors import ConfigError
from swinv2_train.config.model import ModelConfig, attention_backends, checkpointing_periods
from swinv2_train.config.plan import Plan, make_plan
from swinv2_train.config.schema import Config
from swinv2_train.planner.memory import peak
from swinv2_train.text import counted

GIB = 2**30
Keys = dict[str, str]
"""Config keys with their values, as on a command line."""
EXTRA_GIB = (0.5, 1.5)
"""Estimate of what a GPU needs in addition: context, NCCL's buffers, cuBLAS, and the blocks of the allocator. Not
measured."""
WORDS = {
    "weights": "weights",
    "gradients": "gradients",
    "sums": "fp32 sums of gradients",
    "optimizer": "master weights and AdamW's moments",
    "average": "moving average",
    "buckets": "buckets and copies",
    "activations": "activations saved for backward",
    "recomputed": "activations of one recomputed block",
    "transient": "gradients of activations in one block",
}
"""Names of the parts of `Memory`."""
_KEY = "launch.gpu_memory_gib"
_LARGE_FRACTION = 4
"""A micro-batch below this fraction of the present one costs more speed than recomputation."""
_MOST_RANKS = 1024
_HARMLESS_KEYS = {"reduce_bucket_size", "overlap_comm"}
"""Keys of engine.deepspeed.zero_optimization that leave the formulas valid."""


@dataclass(frozen=True)
class Gpu:
    """A present GPU."""

    name: str
    memory: int
    """Its bytes, as the driver reports them."""


def check_fit(config: Config, plan: Plan, gpu: Gpu | None, frozen: int = 0) -> list[str]:
    """Return a warning if a run may not fit into the memory of its GPUs.

    Args:
        gpu: that with the least memory of those that the run uses; None if unknown. `launch.gpu_memory_gib` overrides
            it.
        frozen: number of parameters that are not trained.

    Raises:
        ConfigError: if it certainly does not fit.
    """
    given = config.launch.gpu_memory_gib
    if given is None and gpu is None:
        return []
    memory = gpu.memory if given is None else given * GIB
    needed = peak(config, plan, frozen=frozen)
    if needed.total + EXTRA_GIB[1] * GIB <= memory:
        return []
    name, largest = max(needed.parts().items(), key=lambda part: part[1])
    text = (
        f"a rank needs {_gib(needed.total)} of GPU memory when {needed.moment}, "
        f"of which {_gib(largest)} are {WORDS[name]}"
    )
    remedy = _remedy(config, plan, memory, frozen)
    place = f"the {_gib(memory)} of {gpu.name}" if given is None else f"{_KEY}={given:g}"
    bound = upper_bound(config)
    if needed.total > memory and not bound:
        if given is None:
            raise ConfigError("", "", f"{text}, more than {place}; {remedy}")
        raise ConfigError(_KEY, f"{given:g}", f"{text}; {remedy}")
    if needed.total > memory:
        return [f"{text}, more than {place}; with {bound} it may need less; if it does not fit, {remedy}"]
    low, high = EXTRA_GIB
    extra = f"with {low:g} to {high:g} GiB for context, NCCL, and allocator it may exceed {place}"
    return [f"{text}; {extra}; if it does, {remedy}"]


def _gib(size: float) -> str:
    return f"{size / GIB:.2f} GiB"


def upper_bound(config: Config) -> str:
    """Return the setting with which the formulas are only an upper bound; empty if they are exact."""
    if config.engine.compile:
        return "engine.compile=true"
    if config.optim.freeze:
        return "optim.freeze"
    if config.task.module is not None:
        return f"the model of task={config.task.name}"
    zero = config.engine.deepspeed.get("zero_optimization", {})
    others = [key for key in config.engine.deepspeed if key != "zero_optimization"]
    others += [f"zero_optimization.{key}" for key in zero if key not in _HARMLESS_KEYS]
    return f"engine.deepspeed.{others[0]}" if others else ""


def _remedy(config: Config, plan: Plan, memory: float, frozen: int) -> str:
    """Return the first change that makes a run fit by the formulas, with its peak."""
    changes = []
    for words, world, changed in _changes(config, plan):
        try:
            found = peak(changed, make_plan(changed, world, plan.num_samples), frozen=frozen)
        except ConfigError:  # such as a batch that does not divide
            continue
        changes.append((words, found.total))
    # With room for what a GPU needs in addition, or else without.
    for room in (EXTRA_GIB[1] * GIB, 0.0):
        for words, total in changes:
            if total + room <= memory:
                return f"use {words}, which needs {_gib(total)}"
    return f"no micro-batch, checkpointing, or engine makes it fit on up to {_MOST_RANKS} ranks; use a smaller model"


def _changes(config: Config, plan: Plan) -> Iterator[tuple[str, int, Config]]:
    """Yield changes of a run that need less memory: words, number of ranks, and config; the cheapest ones first."""
    micro, world = plan.micro_batch, plan.world_size
    smaller = [size for size in range(micro - 1, 0, -1) if (micro * plan.accumulation) % size == 0]

    def change(keys: Keys, size: int, model: ModelConfig, ranks: int = world) -> tuple[str, int, Config]:
        engine = replace(config.engine, micro_batch=size)
        if "engine" in keys:
            engine = replace(engine, zero_stage=2, grad_accum_dtype=None)
        given = {**({"engine.micro_batch": str(size)} if size != micro else {}), **keys}
        words = [f"{key}={value}" for key, value in given.items()] + (
            [counted(ranks, "rank")] if ranks != world else []
        )
        return " and ".join(words), ranks, replace(config, engine=engine, model=model)

    models = list(_models(config.model))
    yield from (change({}, size, config.model) for size in smaller if size * _LARGE_FRACTION >= micro)
    for keys, model in models:
        yield from (change(keys, size, model) for size in (micro, *smaller))
    yield from (change({}, size, config.model) for size in smaller)
    leanest = models[-1] if models else ({}, config.model)
    if config.engine.precision == "bf16" and config.engine.zero_stage < 2:
        for keys, model in (({}, config.model), leanest):
            yield from (change({**keys, "engine": "zero2_bf16"}, size, model) for size in (micro, *smaller))
    ranks = 2 * world
    while ranks <= _MOST_RANKS:
        yield from (change(leanest[0], size, leanest[1], ranks) for size in (micro, 1))
        if config.engine.precision == "bf16" and config.engine.zero_stage < 2:
            yield change({**leanest[0], "engine": "zero2_bf16"}, 1, leanest[1], ranks)
        ranks *= 2


def _models(model: ModelConfig) -> Iterator[tuple[Keys, ModelConfig]]:
    """Yield variants of a model with the same weights that need less memory, each with its keys."""
    keys: Keys = {}
    if set(checkpointing_periods(model)) != {1}:
        model, keys = replace(model, checkpointing=1), {"model.checkpointing": "1"}
        yield keys, model
    if set(attention_backends(model)) != {"sequential"}:
        yield {**keys, "model.attention": "sequential"}, replace(model, attention="sequential")
