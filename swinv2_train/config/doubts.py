"""Warnings for settings that can be run but were probably not intended, each with the likely intention.

`validate` rejects settings that cannot be right. The settings here may be useful in a rare experiment.
"""

from __future__ import annotations

from typing import Any

from swinv2_train.config.model import set_temporal_windows, temporal_windows
from swinv2_train.config.plan import Plan
from swinv2_train.config.schema import Config
from swinv2_train.text import counted

_HIGHEST_RATE = 0.1
"""AdamW moves every weight by about the learning rate; no published transformer recipe comes near this value."""
_MANY_EPOCHS = 5000
_EARLY_SHARE = 0.05
_USUAL_SHARE = 0.875
"""The official SimMIM recipe lowers the rate after 700 of 800 epochs."""


def doubts(config: Config, plan: Plan) -> list[str]:
    """Return a warning for every setting of a run that was probably not intended."""
    return [*_rates(config, plan), *_milestones(config, plan), *_clips(config), *config.task.doubts(config)]


def doubts_of_data(config: Config, card: Any) -> list[str]:
    """Return a warning for every setting that does not fit the training data.

    Args:
        card: dataset card of the training shards (`data.card.Card`); None without one.
    """
    return [*_short_videos(config, card), *config.task.data_doubts(card)]


def _short_videos(config: Config, card: Any) -> list[str]:
    data, videos = config.data, card.videos if card is not None else None
    span = (data.frames - 1) * data.frame_stride + 1
    if not data.frames or videos is None or videos.shortest >= span:
        return []
    number, exact = videos.shorter_than(span)
    which = f"{'' if exact else 'at least '}{number:,} of {counted(videos.videos, 'video', ',')} of data.shards"
    longer = f" to {videos.longest:,}" if videos.longest > videos.shortest else ""
    lengths = f"the videos have {videos.shortest:,}{longer} frames"
    clip = f"a clip of {span:,} frames (data.frames={data.frames}, data.frame_stride={data.frame_stride})"
    return [
        f"{which} {'is' if number == 1 else 'are'} shorter than {clip}; {lengths}, and short ones start again from "
        "their first frame: lower data.frame_stride or data.frames"
    ]


def _rates(config: Config, plan: Plan) -> list[str]:
    optim = config.optim
    lines = []
    if plan.peak_lr > _HIGHEST_RATE:
        given = f"optim.lr={optim.lr:g} for optim.lr_reference_batch={optim.lr_reference_batch} samples"
        lines.append(f"the peak learning rate is {plan.peak_lr:.4g} ({given}); AdamW diverges at such rates")
    if optim.weight_decay > 1:
        lines.append(f"optim.weight_decay={optim.weight_decay:g} is decoupled from the gradient; usual: 0.01 to 0.3")
    if optim.eps > 1e-3:
        lines.append(f"optim.eps={optim.eps:g} is added to the root of a mean square; usual: 1e-8")
    if optim.layer_decay < 0.3:
        lines.append(f"optim.layer_decay={optim.layer_decay:g} all but freezes the first blocks; usual: 0.65 to 1")
    if 0 < optim.ema_decay < 0.5:
        lines.append(
            f"optim.ema_decay={optim.ema_decay:g} averages less than two steps; "
            f"for a weight of {optim.ema_decay:g} of the new step set optim.ema_decay={1 - optim.ema_decay:g}"
        )
    if optim.epochs is not None and optim.epochs > _MANY_EPOCHS:
        lines.append(
            f"optim.epochs={optim.epochs:g} means {counted(plan.total_steps, 'step')}; "
            f"for a number of steps set optim.epochs=null optim.steps={optim.epochs:g}"
        )
    return lines


def _milestones(config: Config, plan: Plan) -> list[str]:
    optim = config.optim
    if optim.schedule != "multistep":
        return []
    length, unit = (optim.steps, "steps") if optim.steps is not None else (optim.epochs, "epochs")
    usual = f"such as optim.milestones=[{int(_USUAL_SHARE * (length or 0))}], in {unit}"
    lines = []
    late = [mark for mark, step in zip(optim.milestones, plan.milestones, strict=True) if step >= plan.total_steps]
    if late:
        lines.append(
            f"optim.milestones: {_numbers(late)} {unit} are not before the end of the run, {length:g} {unit}, so the "
            f"rate is not multiplied by optim.gamma={optim.gamma:g} there; set milestones before the end, {usual}"
        )
    early = [
        mark
        for mark, step in zip(optim.milestones, plan.milestones, strict=True)
        if step < max(plan.warmup_steps, _EARLY_SHARE * plan.total_steps)
    ]
    if early:
        lines.append(
            f"optim.milestones: {_numbers(early)} {unit} are in the warm-up or at the very beginning of the run, "
            f"{length:g} {unit}; the marks are in the unit of the run's length, {usual}"
        )
    return lines


def _clips(config: Config) -> list[str]:
    if config.model.temporal_patch:
        return []
    plain, model, stride = Config(), config.model, config.data.frame_stride
    changed = {
        f"model.temporal_window={model.temporal_window}": temporal_windows(model) != temporal_windows(plain.model),
        f"model.pretrained_temporal_window={model.pretrained_temporal_window}": any(set_temporal_windows(model)),
        f"data.frame_stride={stride}": stride != plain.data.frame_stride,
    }
    return [
        f"{setting} has no effect on a model of images (model.temporal_patch=0)"
        for setting, is_set in changed.items()
        if is_set
    ]


def _numbers(values: list[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)
