"""Config section of SimMIM."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from swinv2_train.config.checks import clip_frames, resolution
from swinv2_train.config.errors import ConfigError, percent
from swinv2_train.config.model import count_parameters, stage_geometry, total_stride
from swinv2_train.config.tasks.base import OPTIONAL, Description, TaskConfig

if TYPE_CHECKING:
    from swinv2_train.config.schema import Config

PAPER = "https://arxiv.org/abs/2111.09886"


@dataclass
class SimMIMConfig(TaskConfig):
    """Masked image modeling (SimMIM, arXiv 2111.09886, with the target normalization of the SwinV2 recipe)."""

    IMPLEMENTATION = "swinv2_train.tasks.simmim:SimMIM"
    CLIPS = OPTIONAL
    TITLE = "SimMIM"
    PURPOSE = f"pretrained by masked image modeling ([SimMIM]({PAPER})); it has no classes"
    EXTRA_PARTS = "mask token and decoder"

    name: str = "simmim"
    """Name of the task."""
    mask_patch_size: int = 32
    """Side of a masked patch in pixels; a multiple of `model.patch_size`."""
    mask_ratio: float = 0.6
    """Fraction of patches that are masked, rounded up to a whole number of patches."""
    norm_target_window: int = 47
    """Side of the sliding window that normalizes the target, in pixels, an odd number; 0: the plain image."""

    def validate(self, config: Config) -> None:
        """Check masks and window against the model and the image size."""
        if self.mask_patch_size < 1 or self.mask_patch_size % config.model.patch_size:
            raise ConfigError(
                "task.mask_patch_size",
                self.mask_patch_size,
                f"must be a multiple of model.patch_size={config.model.patch_size}",
            )
        if not 0 < self.mask_ratio < 1:
            raise ConfigError(
                "task.mask_ratio", self.mask_ratio, f"must be a fraction above 0 and below 1{percent(self.mask_ratio)}"
            )
        window = self.norm_target_window
        if window and (window < 3 or window % 2 == 0):
            raise ConfigError("task.norm_target_window", window, "must be 0 (none) or an odd number of at least 3")
        height, width = resolution(config)
        patches = -(-height // self.mask_patch_size) * -(-width // self.mask_patch_size)
        if patches < 2:
            raise ConfigError(
                "data.resolution",
                config.data.resolution,
                f"holds a single mask patch of {self.mask_patch_size} pixels; nothing could be left visible",
            )

    def describe(self, config: Config) -> Description:
        """Return masks, target, and the parameters with the decoder."""
        window = self.norm_target_window
        target = f"target normalized in {window}-pixel windows" if window else "plain target"
        words = f"mask {self.mask_ratio:g} of {self.mask_patch_size}-pixel patches, {target}"
        if frames := clip_frames(config):
            words += f", the same in all {frames} frames of a clip"
        model = config.model
        last = stage_geometry(model, *resolution(config))[-1]
        decoder = (last.dim + 1) * self._pixels_per_token(config)
        parameters = count_parameters(model, resolution(config)) + model.embed_dim + decoder  # and the mask token
        return Description(words, "the decoder", parameters)

    def head_macs(self, config: Config) -> int:
        """Return those of the decoder."""
        last = stage_geometry(config.model, *resolution(config), clip_frames(config))[-1]
        return last.time * last.height * last.width * last.dim * self._pixels_per_token(config)

    @staticmethod
    def _pixels_per_token(config: Config) -> int:
        """Return the values that the decoder predicts from a token of the last stage."""
        model = config.model
        return max(1, model.temporal_patch) * total_stride(model) ** 2 * model.in_channels

    def head_bytes(self, config: Config, element: int) -> int:
        """Return those of the decoder's input, the masks of tokens and pixels, and the sign of the fp32 difference."""
        model, (height, width), frames = config.model, resolution(config), clip_frames(config)
        geometry = stage_geometry(model, height, width, frames)
        first, last = geometry[0], geometry[-1]
        decoder = element * last.time * last.height * last.width * last.dim
        pixels = (4 * model.in_channels * max(1, frames) + 1) * height * width
        return decoder + first.height * first.width + pixels
