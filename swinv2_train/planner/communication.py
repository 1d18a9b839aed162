"""Model of the time of a step: computation, and the communication that it cannot hide.

The model assumes that ranks compute at `MFU` of their peak, that a collective needs its wire bytes over the bus
bandwidth of an all-reduce, and that it hides behind a fraction (`USABLE`) of the computation at the same time.
None of it was measured on a cluster; use it to compare settings.
"""

from __future__ import annotations

from dataclasses import dataclass

from swinv2_train.config.model import checkpointed_blocks
from swinv2_train.config.plan import Plan
from swinv2_train.config.schema import Config
from swinv2_train.planner.activations import ELEMENT_BYTES
from swinv2_train.planner.flops import training_flops
from swinv2_train.planner.peak import PEAKS

MFU = 0.35
"""Model FLOPs utilization while a rank computes. No measurement of SwinV2 on an A100 is known; published transformers
reach 33 to 52% (arXiv 2104.04473, NVIDIA NeMo's ViT)."""
MFU_BAND = (0.25, 0.45)
USABLE = 0.8
"""Fraction of a computation that a collective can hide behind."""
HOP_SECONDS = 40e-6
"""Estimate of the time of a message between the CPUs of two ranks."""
_REFERENCE = PEAKS[r"A100[- ].*"]


@dataclass(frozen=True)
class Network:
    """Network of a job."""

    bus: float
    """Bus bandwidth of an all-reduce over all ranks, in bytes per second."""
    hop: float = HOP_SECONDS
    """Seconds per message of a control sum."""


@dataclass(frozen=True)
class StepTime:
    """Seconds of an optimizer step."""

    compute: float
    exposed: float
    """Communication of gradients and weights that computation does not hide."""
    control: float
    """Sum of control numbers over all ranks, as far as computation does not hide it."""

    @property
    def total(self) -> float:
        """Seconds of the entire step."""
        return self.compute + self.exposed + self.control

    @property
    def lost(self) -> float:
        """Fraction of the step in which a rank does not compute."""
        return 1 - self.compute / self.total


@dataclass(frozen=True)
class _Work:
    """Computation and transfers of a step."""

    micro: float
    """Seconds of one micro-batch."""
    accumulation: int
    backward: float
    """Fraction of a micro-batch that is its backward pass, recomputation included."""
    weights: float
    """Wire seconds of an all-gather of the weights; a reduce-scatter in the same precision takes as long."""
    exchange: float
    """Seconds of a sum of a few numbers, by recursive doubling over the CPUs."""
    ring: float
    """Seconds of the same over a ring."""

    @property
    def control(self) -> float:
        """Seconds of a step's sum that are not hidden: the host begins it while the device is in the last backward."""
        return _beyond(self.exchange, self.backward * self.micro)


def _work(config: Config, plan: Plan, network: Network, mfu: float, peak_flops: float, frozen: int = 0) -> _Work:
    ranks = plan.world_size
    micro = training_flops(config) * plan.micro_batch / (peak_flops * mfu)
    blocks = [again for stage in checkpointed_blocks(config.model) for again in stage]
    recomputed = sum(blocks) / len(blocks)
    trained = config.task.describe(config).parameters - frozen
    wire = (ranks - 1) / ranks * ELEMENT_BYTES[config.engine.precision] * trained / network.bus
    doublings = ranks.bit_length() - 1
    messages = doublings + (0 if ranks == 1 << doublings else 2)  # see `launch/doubling.py`
    exchange, ring = messages * network.hop, 2 * (ranks - 1) * network.hop
    return _Work(micro, plan.accumulation, (2 + recomputed) / (3 + recomputed), wire, exchange, ring)


def step_time(
    config: Config,
    plan: Plan,
    network: Network,
    *,
    mfu: float = MFU,
    peak_flops: float | None = None,
    frozen: int = 0,
) -> StepTime | None:
    """Return the time of a step under the engine of a config; None for ZeRO stage 3, which is not modeled.

    - Sums in fp32: a reduce-scatter in fp32 during the last backward, an all-gather of the weights after the update.
    - ZeRO stages 0 and 1: an all-reduce after the last backward; stage 1 then gathers the weights.
    - ZeRO stage 2: an all-reduce of every micro-batch, and the all-gather.

    Args:
        mfu: model FLOPs utilization while a rank computes.
        peak_flops: FLOPs per second of a rank's device; None: `tracking.peak_tflops`, or an A100.
        frozen: number of parameters that are not trained, so not exchanged either.
    """
    engine = config.engine
    if engine.zero_stage == 3:
        return None
    work = _work(config, plan, network, mfu, peak_flops or reference_flops(config), frozen)
    if engine.sums_in_fp32:
        exposed = _beyond(2 * work.weights, work.backward * work.micro) + work.weights
    else:
        times = plan.accumulation if engine.zero_stage == 2 else 1
        exposed = 2 * work.weights * times + (work.weights if engine.zero_stage else 0)
    return StepTime(work.micro * work.accumulation, exposed, work.control)


def without_overlap(config: Config, plan: Plan, network: Network, mfu: float = MFU) -> StepTime:
    """Return the time of a step that reduces and gathers in the precision of the run, both after the last backward, and
    waits for two control sums over a ring, as an earlier version did."""
    work = _work(config, plan, network, mfu, reference_flops(config))
    return StepTime(work.micro * work.accumulation, 3 * work.weights, 2 * work.ring)


def with_late_gather(config: Config, plan: Plan, network: Network, mfu: float = MFU) -> StepTime:
    """Return the time of a step whose all-gather also overlaps, with the next forward pass. No engine does this."""
    work = _work(config, plan, network, mfu, reference_flops(config))
    reduced = _beyond(2 * work.weights, work.backward * work.micro)
    gathered = _beyond(work.weights, (1 - work.backward) * work.micro)
    return StepTime(work.micro * work.accumulation, reduced + gathered, work.control)


def _beyond(wire: float, compute: float) -> float:
    return max(0.0, wire - USABLE * compute)


def reference_flops(config: Config) -> float:
    """Return the FLOPs per second that the model assumes: `tracking.peak_tflops`, or those of an A100."""
    known = config.tracking.peak_tflops
    return 1e12 * (known or getattr(_REFERENCE, config.engine.precision) or _REFERENCE.fp32)


def communication_lines(config: Config, plan: Plan, frozen: int = 0) -> list[str]:
    """Return the line of a dry run about communication; none without `launch.bus_gb_s`. Arguments as in `step_time`."""
    if config.launch.bus_gb_s is None:
        return []
    if plan.world_size == 1:
        return ["communication  none: there is one rank"]
    network = Network(config.launch.bus_gb_s * 1e9)
    found = [step_time(config, plan, network, mfu=mfu, frozen=frozen) for mfu in (MFU, *MFU_BAND)]
    times = [time for time in found if time is not None]
    if not times:
        return ["communication  not modeled for ZeRO stage 3"]
    middle, low, high = times
    peak = "tracking.peak_tflops" if config.tracking.peak_tflops else "an A100"
    return [
        f"communication  {middle.lost:.0%} of a step of {middle.total:.2f} s is lost to it, modeled for "
        f"launch.bus_gb_s={config.launch.bus_gb_s:g} and {MFU:.0%} MFU of {peak} "
        f"({low.lost:.0%} for {MFU_BAND[0]:.0%}, {high.lost:.0%} for {MFU_BAND[1]:.0%})"
    ]
