"""Lines of a dry run about memory: the parts at the peak of this run, and the sums for other numbers of ranks."""

from __future__ import annotations

from swinv2_train.config.errors import ConfigError
from swinv2_train.config.plan import Plan, make_plan
from swinv2_train.config.schema import Config
from swinv2_train.planner.fit import EXTRA_GIB, GIB, WORDS, upper_bound
from swinv2_train.planner.memory import evaluation_bytes, held, host_copy_bytes, peak

USUAL_WORLDS = (1, 8, 16, 32, 64, 128, 256, 512)


def memory_lines(config: Config, plan: Plan, frozen: int = 0) -> list[str]:
    """Return the parts of the peak of a rank, then a table of numbers of ranks.

    The kernels are those of a GPU, unless `launch.device` is cpu.

    Args:
        frozen: number of parameters that are not trained.
    """
    device = "CPU" if config.launch.device == "cpu" else "GPU"
    needed = peak(config, plan, frozen=frozen, gpu=device == "GPU")
    lines = [f"memory         {needed.total / GIB:.2f} GiB per rank at the peak, when {needed.moment}, on a {device}"]
    lines += [f"  {WORDS[name]:<45}  {size / GIB:6.2f} GiB" for name, size in needed.parts().items()]
    if device == "GPU":
        low, high = EXTRA_GIB
        lines.append(f"  {'context, NCCL, and allocator (an estimate)':<45}  {low:g} to {high:g} GiB more")
    if config.engine.zero_stage == 3:
        lines.append("  a lower bound: weights that stage 3 gathers for a while are not counted")
    if bound := upper_bound(config):
        lines.append(f"  an upper bound: with {bound} it may be less")
    return lines + _worlds(config, plan, frozen, gpu=device == "GPU")


def _worlds(config: Config, plan: Plan, frozen: int, *, gpu: bool) -> list[str]:
    parameters = config.task.describe(config).parameters
    evaluated, copied = (size(config, parameters, 1) > 0 for size in (evaluation_bytes, host_copy_bytes))
    titles = ["ranks", "samples x accumulation", "model states", "activations", "peak per rank"]
    titles += ["states in evaluation"] * evaluated + ["host memory of saves"] * copied
    lines = ["  " + "  ".join(titles)]
    for world in sorted({*USUAL_WORLDS, plan.world_size}):
        try:
            other = make_plan(config, world, plan.num_samples)
        except ConfigError:
            continue
        needed = peak(config, other, frozen=frozen, gpu=gpu)
        sizes = [needed.states, needed.total - needed.states, needed.total]
        if evaluated:
            between = held(config, parameters, world, frozen).states
            sizes.append(between + evaluation_bytes(config, parameters, world, frozen))
        sizes += [host_copy_bytes(config, parameters, world, frozen)] * copied
        batch = f"{other.micro_batch} x {other.accumulation}"
        cells = [str(world), batch, *(f"{size / GIB:.2f} GiB" for size in sizes)]
        row = "  ".join(cell.ljust(len(title)) for cell, title in zip(cells, titles, strict=True))
        lines.append(f"  {row.rstrip()}{'   <- this run' if world == plan.world_size else ''}")
    lines.append(
        "  at the peak, model states include gradients and buckets; activations include those that backward creates"
    )
    if evaluated:
        lines.append("  in evaluation: including the weights that are set aside while the moving average is evaluated")
    if copied:
        ranks = "every rank" if config.engine.zero_stage else "only the main rank"
        lines.append(
            f"  host memory of saves: the copy on {ranks} for background saves; checkpoint.background=false avoids it"
        )
    return lines
