"""Values of the keys that accept only a few, for validation and for the completion of command lines."""

from __future__ import annotations

from typing import Any

from swinv2_train.config.checks import one_of
from swinv2_train.config.model import ATTENTION_BACKENDS, NORM_PLACEMENTS, POSITION_BIASES, SIMILARITIES, WINDOW_RULES

CHOICES: dict[str, tuple[Any, ...]] = {
    "model.attention": ATTENTION_BACKENDS,
    "model.norm_placement": NORM_PLACEMENTS,
    "model.similarity": SIMILARITIES,
    "model.position_bias": POSITION_BIASES,
    "model.window_rule": WINDOW_RULES,
    "data.augment.interpolation": ("bilinear", "bicubic"),
    "data.crop_mode": ("center", "squash", "native"),
    "task.decoder": ("upernet", "fpn", "linear"),
    "task.resize": ("short", "native"),
    "task.inference": ("whole", "slide"),
    "task.detector": ("mask_rcnn", "cascade", "htc"),
    "task.box_head": ("4conv1fc", "2fc"),
    "task.head_norm": ("group", "none"),
    "task.box_loss": ("giou", "smooth_l1"),
    "task.scaling": ("jitter", "short"),
    "optim.schedule": ("cosine", "linear", "multistep", "constant"),
    "engine.zero_stage": (0, 1, 2, 3),
    "engine.precision": ("bf16", "fp16", "fp32"),
    "engine.grad_accum_dtype": (None, "fp32", "bf16"),
    "guard.policy": ("skip", "rollback", "stop", "off"),
    "checkpoint.best_mode": (None, "min", "max"),
    "tracking.wandb": ("disabled", "offline", "online"),
    "resume.mode": ("auto", "never"),
    "launch.device": ("auto", "cuda", "cpu"),
    "init.which": ("newest", "best"),
}


def check_choice(key: str, value: Any) -> None:
    """Raise ConfigError if a key of `CHOICES` has none of its values."""
    one_of(key, value, CHOICES[key])
