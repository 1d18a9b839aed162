"""Bytes that a run needs, from the number of its parameters. Activations and buffers of collectives are not counted."""

from __future__ import annotations

from swinv2_train.config.schema import Config


def state_bytes(config: Config, parameters: int, world_size: int, frozen: int = 0) -> float:
    """Return the bytes of parameters, gradients, optimizer state, and moving average on a rank, by the ZeRO stage
    (arXiv 1910.02054). Of `parameters`, the `frozen` ones have no gradient, state, or average.

    Master weights, two Adam moments, and the average are fp32. Buffers of collectives and activations are not counted.
    """
    engine = config.engine
    low = 4 if engine.precision == "fp32" else 2
    gradient = 4 if engine.grad_accum_dtype == "fp32" else low
    # Even in fp32, the ZeRO stages keep a separate master copy.
    optimizer = 8 if engine.precision == "fp32" and engine.zero_stage == 0 else 12
    average = 4 if config.optim.ema_decay else 0
    shards = [1 if engine.zero_stage < stage else world_size for stage in (3, 2, 1)]
    trained = parameters - frozen
    return parameters * low / shards[0] + trained * (gradient / shards[1] + (optimizer + average) / shards[2])


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
