"""SimMIM: hide patches of an image, reconstruct their pixels (arXiv 2111.09886; official code of Swin-Transformer).

The SwinV2 recipe normalizes the target by the mean and standard deviation of a sliding 47x47 window
(`norm_target_window`).

Clips of videos (`data.frames`) have the same patches masked in all frames, as tubes: else a masked patch could be
copied from the frame before. The target is normalized frame by frame.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from einops import repeat
from PIL import Image
from torch import nn

from swinv2_train.config.schema import Config
from swinv2_train.config.tasks import LOSS
from swinv2_train.config.validate import resolution
from swinv2_train.data.augment import eval_crop, train_image
from swinv2_train.data.batch import Batch, has_deep_images
from swinv2_train.data.clip_input import fixed_views, random_clip
from swinv2_train.data.sample import Sample
from swinv2_train.data.samples import VIDEO, VIDEO_FACTS
from swinv2_train.data.transform import Transform
from swinv2_train.models.heads import MaskedImageModel
from swinv2_train.tasks.measured import Measured
from swinv2_train.tasks.task import NORMALISER_EPSILON, Losses, Task
from swinv2_train.tracking.figures import film_strip, image_grid, to_pil

PLAIN_NOTE = "Masked patches are the model's, colors included; visible ones are the original's."
PANELS = ("original", "masked", "reconstruction")
LOCAL_NOTE = (
    "The target is normalized: the model predicts how pixels differ from their surroundings of {window}x{window}. "
    "In masked patches, mean color and contrast of these surroundings are therefore the original's, and only the "
    "structure is the model's. Visible patches are the original's."
)


def random_mask(rows: int, columns: int, ratio: float, rng: np.random.Generator) -> torch.Tensor:
    """Return a bool mask (rows, columns) of patches, with exactly ceil(ratio * rows * columns) of them masked."""
    mask = np.zeros(rows * columns, dtype=bool)
    mask[rng.permutation(rows * columns)[: math.ceil(ratio * rows * columns)]] = True
    return torch.from_numpy(mask.reshape(rows, columns))


def enlarge_mask(mask: torch.Tensor, factor: int, height: int, width: int) -> torch.Tensor:
    """Repeat every entry of a mask (B, h, w) `factor` times in each direction and crop to (B, height, width)."""
    return repeat(mask, "b h w -> b (h row) (w column)", row=factor, column=factor)[:, :height, :width]


def masked_pixels(mask: torch.Tensor, patch: int, height: int, width: int) -> int:
    """Return the number of pixels that a patch mask (B, h, w) covers in images of height x width, which may cut
    patches."""
    rows = torch.full((mask.shape[1],), patch)
    rows[-1] = height - patch * (mask.shape[1] - 1)
    columns = torch.full((mask.shape[2],), patch)
    columns[-1] = width - patch * (mask.shape[2] - 1)
    return int((mask * rows[:, None] * columns).sum())


def local_statistics(images: torch.Tensor, window: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and unbiased variance of a sliding window around every pixel, per channel.

    The window is cut at the border, and only pixels inside the image count. A box filter is separable, even with a cut
    border, so this costs 2 * window operations per pixel instead of window^2.

    Args:
        images: (B, C, H, W) float.
        window: odd side in pixels.

    Returns:
        (mean, variance), each (B, C, H, W).
    """

    def box(x: torch.Tensor, **kwargs: bool) -> torch.Tensor:
        half = window // 2
        rows = F.avg_pool2d(x, (window, 1), stride=1, padding=(half, 0), **kwargs)
        return F.avg_pool2d(rows, (1, window), stride=1, padding=(0, half), **kwargs)

    mean = box(images, count_include_pad=False)
    mean_of_squares = box(images.square(), count_include_pad=False)
    count = box(torch.ones_like(images[:1, :1]), count_include_pad=True) * window**2
    variance = (mean_of_squares - mean.square()) * (count / (count - 1))
    return mean, variance.clamp(min=0)


def normalise_target(images: torch.Tensor, window: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the images, or every frame of clips, normalized by their local statistics.

    Args:
        images: (B, C, H, W) or (B, C, T, H, W).

    Returns:
        (target, mean, standard deviation), each in the shape of the images.
    """
    mean, variance = (part.view_as(images) for part in local_statistics(images.flatten(1, -3), window))
    deviation = (variance + 1e-6).sqrt()
    return (images - mean) / deviation, mean, deviation


def caption(mean_loss: float, window: int, unit: str = "images") -> str:
    """Return the text below a figure: the loss, and where the colors of masked patches come from.

    Args:
        mean_loss: over the masked pixels of the images in the figure.
        window: `task.norm_target_window`.
        unit: the samples, in the plural.
    """
    source = LOCAL_NOTE.format(window=window) if window else PLAIN_NOTE
    return f"mean loss over the masked pixels of these {unit}: {mean_loss:.4f}\n{source}"


class SimMIMTransform(Transform):
    """Crop, flip, and mask: the entries `image` (C, H, W) as decoded and `mask` (h, w) bool over patches.

    Of a video, `image` is a clip (3, T, H, W): a random one in training, the one in the middle in evaluation.
    """

    def __init__(self, config: Config, *, training: bool) -> None:
        self.data = config.data
        self.size = resolution(config)
        self.training = training
        self.ratio = config.task.mask_ratio
        patch = config.task.mask_patch_size
        self.grid = (-(-self.size[0] // patch), -(-self.size[1] // patch))
        if self.data.frames:
            self.members = (VIDEO, VIDEO_FACTS)

    def __call__(self, sample: Sample, rng: np.random.Generator) -> dict[str, torch.Tensor]:
        return {"image": self._input(sample, rng), "mask": random_mask(*self.grid, self.ratio, rng)}

    def _input(self, sample: Sample, rng: np.random.Generator) -> torch.Tensor:
        data, size = self.data, self.size
        if data.frames:
            return random_clip(sample, size, data, rng) if self.training else fixed_views(sample, size, data, (1, 1))[0]
        if self.training:
            return train_image(sample, size, data.augment, rng)
        return eval_crop(sample.image, size, data.crop_pct, data.crop_mode, data.augment.interpolation)


class SimMIM(Task):
    """The SimMIM task."""

    def __init__(self, config: Config, mean: list[float], std: list[float]) -> None:
        super().__init__(config, mean, std)
        self.patch = config.task.mask_patch_size
        self.train_transform: Transform = SimMIMTransform(config, training=True)
        self.eval_transform: Transform = SimMIMTransform(config, training=False)

    @staticmethod
    def model_of(config: Config, size: tuple[int, int]) -> nn.Module:
        return MaskedImageModel(config.model, size)

    def weights(self, batch: Batch) -> dict[str, float]:
        """Return the number of masked pixels of a micro-batch, in all frames."""
        return {LOSS: float(self._masked_pixels(batch["mask"]))}

    def _masked_pixels(self, mask: torch.Tensor) -> int:
        """Return the number of pixels that masks (B, h, w) cover, in all frames."""
        return masked_pixels(mask, self.patch, *self.size) * max(1, self.frames)

    def _pixel_mask(self, mask: torch.Tensor) -> torch.Tensor:
        """(B, h, w) over patches -> over pixels, in a shape that broadcasts to the images."""
        pixels = enlarge_mask(mask, self.patch, *self.size)[:, None]
        return pixels[:, None] if self.frames else pixels

    def _forward(self, model: nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (normalized images, their reconstruction), both (B, C, H, W), of clips (B, C, T, H, W), fp32."""
        images = self.images(batch)
        token = self.config.model.patch_size
        tokens = (-(-self.size[0] // token), -(-self.size[1] // token))
        token_mask = enlarge_mask(batch["mask"], self.patch // token, *tokens)
        return images, model(images, token_mask, noise=self.noise(model, batch)).float()

    def target(self, images: torch.Tensor) -> torch.Tensor:
        """Return the reconstruction target for images or clips normalized by the dataset's statistics."""
        window = self.config.task.norm_target_window
        return normalise_target(images, window)[0] if window else images

    def summed_loss(self, images: torch.Tensor, reconstruction: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Return per sample (B,): |target - reconstruction| summed over masked pixels, averaged over channels."""
        difference = (self.target(images) - reconstruction).abs() * self._pixel_mask(mask)
        return difference.sum(dim=tuple(range(1, images.ndim))) / images.shape[1]

    def loss(self, model: nn.Module, batch: Batch) -> Losses:
        images, reconstruction = self._forward(model, batch)
        return Losses.single(self.summed_loss(images, reconstruction, batch["mask"]).sum())

    def measure(self, model: nn.Module, batch: Batch) -> Measured:
        """Return the masked loss: its sum, the number of masked pixels, and the number of samples."""
        images, reconstruction = self._forward(model, batch)
        valid = batch["valid"]
        total = float((self.summed_loss(images, reconstruction, batch["mask"]) * valid).sum())
        pixels = self._masked_pixels((batch["mask"] & valid[:, None, None]).cpu())
        return Measured({"total": total, "pixels": float(pixels), "samples": float(valid.sum())})

    def metrics(self, found: Measured) -> dict[str, float]:
        sums = found.sums
        return {
            "loss": float(sums["total"]) / (float(sums["pixels"]) + NORMALISER_EPSILON),
            "samples": float(sums["samples"]),
        }

    @torch.no_grad()
    def figure(self, model: nn.Module, batch: Batch) -> Image.Image:
        """Draw rows of original, masked, and reconstructed images, with the loss of each and the mean over them.

        A normalized target is converted back with the local statistics of the original to be viewable; visible pixels
        of the reconstruction are the original's. The caption reports both. Clips are drawn as film strips.
        """
        images, reconstruction = self._forward(model, batch)
        sums = self.summed_loss(images, reconstruction, batch["mask"]).tolist()
        pixels = [self._masked_pixels(mask[None].cpu()) for mask in batch["mask"]]
        window = self.config.task.norm_target_window
        if window:
            _, local_mean, deviation = normalise_target(images, window)
            reconstruction = reconstruction * deviation + local_mean
        mask = self._pixel_mask(batch["mask"])
        shape = (-1, *[1] * (images.ndim - 2))
        mean, std = (torch.tensor(values, device=images.device).view(shape) for values in (self.mean, self.std))
        original = images * std + mean
        hidden = torch.where(mask, 0.5, original)
        filled = torch.where(mask, reconstruction * std + mean, original)
        columns = [part.clamp(0, 1).cpu().numpy() for part in (original, hidden, filled)]
        means = (total / (count + NORMALISER_EPSILON) for total, count in zip(sums, pixels, strict=True))
        titles = [f"loss\n{mean_loss:.4f}" for mean_loss in means]
        unit = "clips" if self.frames else "images"
        footer = caption(sum(sums) / (sum(pixels) + NORMALISER_EPSILON), window, unit)
        if self.frames:
            return _strips(columns, titles, footer)
        deep = has_deep_images(batch)
        rows = [[to_pil(image, like=row[0], stretch=deep) for image in row] for row in zip(*columns, strict=True)]
        return image_grid(rows, column_titles=PANELS, row_titles=titles, footer=footer)

    def example_batch(self, batch_size: int) -> Batch:
        rng = np.random.default_rng(1)
        grid = self.train_transform.grid  # type: ignore[attr-defined]
        masks = [random_mask(*grid, self.config.task.mask_ratio, rng) for _ in range(batch_size)]
        return super().example_batch(batch_size) | {"mask": torch.stack(masks)}


def _strips(columns: Sequence[np.ndarray], titles: Sequence[str], footer: str) -> Image.Image:
    """Return a film strip for each panel of each clip, one below the other.

    Args:
        columns: for each panel the clips (B, 3, T, H, W) in [0, 1].
        titles: loss of each clip.
    """
    rows = [[film_strip(clip)] for clips in zip(*columns, strict=True) for clip in clips]
    names = [name if name != PANELS[-1] else f"{name}\n{title}" for title in titles for name in PANELS]
    return image_grid(rows, row_titles=names, footer=footer)
