"""Text of a dry run: what a run would do, without torch."""

from __future__ import annotations

from collections.abc import Sequence

from swinv2_train.config.checks import clip_frames
from swinv2_train.config.model import (
    ModelConfig,
    attention_backends,
    checkpointing_periods,
    count_parameters,
    extra_norm_text,
    stage_geometry,
)
from swinv2_train.config.plan import Plan
from swinv2_train.config.schema import Config
from swinv2_train.config.validate import resolution
from swinv2_train.planner.communication import communication_lines
from swinv2_train.planner.flops import forward_macs, training_flops
from swinv2_train.planner.memory_text import memory_lines
from swinv2_train.text import counted


def count_words(number: float) -> str:
    """Return a count for display: 27.6 M, 3.00 B."""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g} {unit}" if number / size >= 100 else f"{number / size:.2f} {unit}"
    return f"{number:.0f}"


def _schedule(config: Config, plan: Plan) -> str:
    optim = config.optim
    end = {
        "cosine": f"cosine to {plan.min_lr:.4g}",
        "linear": f"linear to {plan.min_lr:.4g}",
        "multistep": f"times {optim.gamma:g} at step {', '.join(map(str, plan.milestones))}",
        "constant": "constant",
    }[optim.schedule]
    scaled = f"{optim.lr:.4g} per {optim.lr_reference_batch}" if optim.lr_reference_batch else "not scaled"
    scaled += f", times {optim.lr_scale:g}" if optim.lr_scale != 1 else ""
    steps = counted(plan.warmup_steps, "warm-up step")
    return f"{plan.peak_lr:.4g} ({scaled}), {steps} from {plan.warmup_lr:.4g}, then {end}"


def _stages(config: Config) -> list[str]:
    frames = clip_frames(config)
    lines = ["  stage  blocks  channels  heads  tokens    window   shift    attention   checkpointing"]
    backends, periods = attention_backends(config.model), checkpointing_periods(config.model)
    for index, stage in enumerate(stage_geometry(config.model, *resolution(config), frames)):
        period = periods[index]
        policy = "none" if period == 0 else "every block" if period == 1 else f"every {period} blocks"
        along_time = zip((stage.time, stage.time_window, stage.time_shift, stage.time_padded), strict=True)
        sides = ((stage.height, stage.width), stage.window, stage.shift, stage.padded)
        tokens, window, shift, whole = (
            "x".join(map(str, (*time, *pair) if frames else pair)) for time, pair in zip(along_time, sides, strict=True)
        )
        padded = "" if whole == tokens else f"  (padded to {whole})"
        lines.append(
            f"  {index + 1:<5}  {stage.depth:<6}  {stage.dim:<8}  {stage.num_heads:<5}  {tokens:<8}"
            f"  {window:<7}  {shift:<7}  {backends[index]:<10}  {policy}{padded}"
        )
    return lines


def _variant(model: ModelConfig) -> str:
    """Return the differences of the blocks from the paper's Swin V2, with stochastic depth and extra norms."""
    default = ModelConfig()
    parts = [f"drop path {model.drop_path:g}"]
    if norms := extra_norm_text(model):
        parts.append(f"extra norm {norms}")
    for key in ("norm_placement", "similarity", "position_bias", "window_rule"):
        if getattr(model, key) != getattr(default, key):
            parts.append(f"{key.replace('_', ' ')} {getattr(model, key)}")
    return "; ".join(parts)


def _utilization(config: Config) -> str:
    """Return the reference of the model FLOPs utilization in the log."""
    peak = config.tracking.peak_tflops
    if config.optim.freeze:
        return "no MFU is logged with optim.freeze"
    if peak is not None:
        return f"the MFU in the log is relative to tracking.peak_tflops={peak:g}"
    return "the MFU in the log is relative to the GPU's known peak, or to tracking.peak_tflops"


def describe(config: Config, plan: Plan, samples_from: str, frozen: int = 0, training: Sequence[str] = ()) -> str:
    """Return everything that follows from a config.

    Args:
        samples_from: origin of the number of samples, for display.
        frozen: number of parameters that are not trained.
        training: trained parameters and their rates, in lines; empty if everything is trained at the same rate.
    """
    model, optim, engine = config.model, config.optim, config.engine
    height, width = resolution(config)
    backbone = count_parameters(model, (height, width))
    task = config.task.describe(config)
    frames = clip_frames(config)
    macs, kind = forward_macs(model, (height, width), frames), "clip" if frames else "image"
    shape = f"{counted(frames, 'frame')}, " if frames else ""
    ranks = counted(plan.world_size, "rank")
    batch = f"{counted(plan.micro_batch, 'sample')} x {plan.accumulation} accumulation x {ranks}"
    lines = [
        f"run            {config.run.name} in {config.run.dir} (resume={config.resume.mode}, seed {config.seed})",
        f"model          {model.name}: {count_words(backbone)} parameters in the backbone ({backbone}), "
        f"{count_words(task.parameters)} with {task.head}",
        f"input          {shape}{model.in_channels} channels, {height}x{width} pixels, "
        f"{macs / 1e9:.1f} GMACs forward per {kind} in the backbone",
        f"compute        {training_flops(config) / 1e9:.4g} GFLOPs per {kind}, forward and backward; "
        f"{_utilization(config)}",
        *_stages(config),
        f"blocks         {_variant(model)}",
        f"task           {config.task.name}: {task.words}",
        f"data           {counted(plan.num_samples, 'sample')} ({samples_from})",
        f"global batch   {plan.global_batch} = {batch}",
        f"length         {counted(plan.total_steps, 'step')} = {counted(plan.epochs, 'epoch', '.4g')}",
        f"schedule       {_schedule(config, plan)}",
        f"optimizer      AdamW betas {optim.betas[0]:g}, {optim.betas[1]:g}, eps {optim.eps:g}, "
        f"weight decay {optim.weight_decay:g}, layer decay {optim.layer_decay:g}, clip {optim.clip_norm:g}",
        *(f"training       {line}" for line in training),
        f"engine         DeepSpeed ZeRO stage {engine.zero_stage}, {engine.precision}, "
        f"gradients accumulated in {engine.grad_accum_dtype or engine.precision}",
        *memory_lines(config, plan, frozen),
        *communication_lines(config, plan, frozen),
    ]
    return "\n".join(lines)
