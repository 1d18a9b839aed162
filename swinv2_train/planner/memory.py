"""Bytes that a rank needs on its device at every moment of a step, by formula, and on the host and on disk.

A step has several moments with different tensors. Its peak is the moment with the largest sum:

- when backward reaches the head: all activations are saved, and no gradient of this micro-batch exists yet;
- when backward reaches a block: the activations of later blocks are freed, those of the block are there, recomputed if
  it is checkpointed, and their gradients; engines other than the one with sums in fp32 hold the gradients of all later
  blocks, and from the second micro-batch on of all parameters;
- in the update, which needs fp32 copies of gradients under some engines;
- in an evaluation of the moving average, which sets the weights aside.

`scripts/bench/step_memory.py` counts the same with DeepSpeed itself; the tests compare both within 3%. A GPU needs more
than this: its context, NCCL's buffers, and the blocks of the allocator, see `fit.EXTRA_GIB`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

from swinv2_train.config.checks import resolution
from swinv2_train.config.model import NUM_STAGES, block_parameters, count_parameters, mlp_width
from swinv2_train.config.plan import Plan
from swinv2_train.config.schema import Config
from swinv2_train.planner.activations import ELEMENT_BYTES, Reached, activations


@dataclass(frozen=True)
class Memory:
    """Bytes on the device of a rank at one moment."""

    moment: str
    """Name of the moment, for display."""
    weights: float
    """Weights in the precision of the run."""
    gradients: float = 0.0
    """Gradients as backward computes them, in the same precision."""
    sums: float = 0.0
    """Sums of gradients in fp32."""
    optimizer: float = 0.0
    """Master weights and both moments of AdamW."""
    average: float = 0.0
    """Moving average of the weights; in an evaluation of it also the weights that it replaces."""
    buckets: float = 0.0
    """Buffers of collectives and copies for the update."""
    activations: float = 0.0
    """Tensors that autograd has saved for backward."""
    recomputed: float = 0.0
    """The same of one checkpointed block, computed again."""
    transient: float = 0.0
    """Tensors that backward of one block creates."""

    @property
    def states(self) -> float:
        """Bytes that do not depend on the micro-batch."""
        return self.weights + self.gradients + self.sums + self.optimizer + self.average + self.buckets

    @property
    def total(self) -> float:
        """Bytes of all parts."""
        return self.states + self.activations + self.recomputed + self.transient

    def parts(self) -> dict[str, float]:
        """Return the bytes of each part that is not 0, by name."""
        named = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "moment"}
        return {name: size for name, size in named.items() if size}


def held(config: Config, parameters: int, world_size: int, frozen: int = 0) -> Memory:
    """Return the bytes that a rank holds between two steps, by the ZeRO stage (arXiv 1910.02054).

    Master weights, two Adam moments, and the average are fp32. Of `parameters`, the `frozen` ones have only weights.
    """
    engine, trained = config.engine, parameters - frozen
    element = ELEMENT_BYTES[engine.precision]
    shards = world_size if engine.zero_stage else 1
    # Even in fp32, the ZeRO stages keep a separate master copy.
    optimizer = 8 if engine.precision == "fp32" and engine.zero_stage == 0 else 12
    return Memory(
        "between two steps",
        weights=element * parameters / (world_size if engine.zero_stage == 3 else 1),
        sums=4 * trained if engine.sums_in_fp32 else 0,
        optimizer=optimizer * trained / shards,
        average=4 * trained / shards if config.optim.ema_decay else 0,
    )


def moments(config: Config, plan: Plan, *, frozen: int = 0, gpu: bool = True) -> list[Memory]:
    """Return the memory of a rank at every moment of a step, and of an evaluation of the moving average.

    Args:
        frozen: number of parameters that are not trained.
        gpu: True for the kernels of a GPU, False for those of a CPU.
    """
    parameters, world = config.task.describe(config).parameters, plan.world_size
    base = held(config, parameters, world, frozen)
    found = [
        replace(
            _backward(config, plan, base, reached, parameters - frozen),
            moment=f"its backward reaches {reached.place}",
            activations=reached.saved,
            recomputed=reached.recomputed,
            transient=reached.transient,
        )
        for reached in activations(config, plan.micro_batch, gpu=gpu)
    ]
    found += _after_backward(config, base, parameters - frozen, world)
    aside = evaluation_bytes(config, parameters, world, frozen)
    return [*found, replace(base, moment="it evaluates the average", average=base.average + aside)] if aside else found


def peak(config: Config, plan: Plan, *, frozen: int = 0, gpu: bool = True) -> Memory:
    """Return the memory of a rank at the moment when it is largest; arguments as for `moments`."""
    return max(moments(config, plan, frozen=frozen, gpu=gpu), key=lambda memory: memory.total)


def _backward(config: Config, plan: Plan, base: Memory, reached: Reached, trained: int) -> Memory:
    """Add the gradients and buckets when backward reaches a place."""
    engine, world = config.engine, plan.world_size
    element, bucket = ELEMENT_BYTES[engine.precision], engine.bucket_elements
    overlapping = element * min(bucket, trained) * engine.overlaps  # one bucket fills while another is reduced
    largest = element * min(_largest(config, reached), trained)
    if engine.sums_in_fp32:
        return replace(base, gradients=largest)
    if engine.zero_stage >= 2:
        # Sums of the rank's partition, the micro-batch's part of them, and a bucket with its copy.
        wide = engine.grad_accum_dtype == "fp32" and element < 4
        sums, new = (4 * trained / world if wide else 0), element * trained / world
        return replace(
            base, gradients=new if wide else 2 * new, sums=sums, buckets=2 * element * bucket + largest + overlapping
        )
    sums = 4 * trained if engine.grad_accum_dtype == "fp32" and element < 4 else 0
    present = trained if plan.accumulation > 1 else min(_later(config, reached) + largest / element, trained)
    buckets = element * bucket + overlapping if engine.zero_stage else 0
    return replace(base, gradients=element * present, sums=sums, buckets=buckets)


def _after_backward(config: Config, base: Memory, trained: int, world: int) -> list[Memory]:
    """Return the end of the reduction, in which a rank collects its partition of the gradients, and the update."""
    engine, element = config.engine, ELEMENT_BYTES[config.engine.precision]
    update, whole = replace(base, moment="it updates the weights"), element * trained
    if engine.sums_in_fp32:
        return [update]
    if engine.zero_stage == 0:  # reduced in buckets after backward, then widened
        copies = 4 * trained if element < 4 else element * min(engine.bucket_elements, trained) * (world > 1)
        return [replace(update, gradients=whole, buckets=copies)]
    # The partition of the gradients, flattened, and widened.
    update = replace(update, gradients=whole / world, buckets=(element + (4 if element < 4 else 0)) * trained / world)
    if engine.zero_stage >= 2:
        return [update]
    sums = 4 * trained if engine.grad_accum_dtype == "fp32" and element < 4 else 0
    kept = element * min(_kept(config, trained, world), trained)
    collected = replace(base, moment="it collects its gradients", gradients=whole, sums=sums, buckets=kept)
    return [collected, update]


def _kept(config: Config, trained: int, world: int) -> float:
    """Return the elements of the gradients that overlap the rank's partitions, of the rank with the most.

    DeepSpeed keeps a gradient entirely if a part of it is in the rank's partition of its parameter group. Layer decay
    makes a group of every block, so every rank keeps one or two matrices of every block.
    """
    if config.optim.layer_decay == 1:
        return trained / world
    model, found = config.model, []
    for rank in range(world):
        kept = 0.0
        for stage, depth in enumerate(model.depths):
            dim = model.embed_dim * 2**stage
            hidden = dim * mlp_width(model, dim)
            matrices, start, whole = (3 * dim * dim, dim * dim, hidden, hidden), 0, 4 * dim * dim + 2 * hidden
            for size in matrices:
                overlaps = start * world < (rank + 1) * whole and (start + size) * world > rank * whole
                kept += depth * size * overlaps
                start += size
        found.append(kept)
    return max(found)


def _largest(config: Config, reached: Reached) -> int:
    """Return the elements of the largest gradient that backward computes at a place: of the head, or of an MLP."""
    if reached.stage == NUM_STAGES:
        return config.task.describe(config).parameters - count_parameters(config.model, resolution(config))
    dim = config.model.embed_dim * 2**reached.stage
    return dim * mlp_width(config.model, dim)


def _later(config: Config, reached: Reached) -> int:
    """Return the number of parameters whose gradients exist when backward reaches a place."""
    if reached.stage == NUM_STAGES:
        return 0
    model, blocks = config.model, block_parameters(config.model, resolution(config))
    earlier = sum(depth * size for depth, size in zip(model.depths[: reached.stage], blocks, strict=False))
    earlier += (reached.block + 1) * blocks[reached.stage]
    earlier += sum(8 * (model.embed_dim * 2**stage) ** 2 for stage in range(reached.stage))  # merging
    return config.task.describe(config).parameters - earlier


def evaluation_bytes(config: Config, parameters: int, world_size: int, frozen: int = 0) -> float:
    """Return the additional bytes on a rank while the moving average is evaluated or drawn with: its own weights in
    fp32, which are set aside."""
    looks = config.data.eval_shards and (config.eval.every_steps or config.eval.figure_every_steps)
    if not (config.optim.ema_decay and config.eval.ema and looks):
        return 0.0
    return 4 * (parameters - frozen) / (world_size if config.engine.zero_stage else 1)


def checkpoint_bytes(config: Config, parameters: int, frozen: int = 0) -> int:
    """Return the bytes of the tensors of a checkpoint, all in fp32: the weights, and for trained ones two moments and,
    if there is one, the average."""
    return 4 * parameters + (12 if config.optim.ema_decay else 8) * (parameters - frozen)


def host_copy_bytes(config: Config, parameters: int, world_size: int, frozen: int = 0) -> float:
    """Return the bytes of host memory for the copy of background saves, on each rank that writes: all ranks, but
    without ZeRO only the main rank."""
    if not config.checkpoint.background:
        return 0.0
    held = checkpoint_bytes(config, parameters, frozen)
    return held / (world_size if config.engine.zero_stage else 1)
