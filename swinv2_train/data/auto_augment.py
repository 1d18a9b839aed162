"""RandAugment, AutoAugment, AugMix and 3-Augment by timm, color jitter by torchvision, with our randomness.

These libraries draw from the global generators of Python, numpy and torch. Here those are seeded from the sample's own
generator for the time of the call and put back afterwards.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from swinv2_train.data.errors import DataError


@contextlib.contextmanager
def seeded_globals(rng: np.random.Generator) -> Iterator[None]:
    """Make the global generators (torch's only on the CPU) depend only on `rng` inside; restore them afterward."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    seeds = rng.integers(0, 2**32, 3, dtype=np.uint32).tolist()
    random.seed(seeds[0])
    np.random.seed(seeds[1])
    # Not torch.manual_seed, which seeds the accelerators as well.
    torch.default_generator.manual_seed(seeds[2])
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])


@dataclass(frozen=True)
class ColourAugment:
    """An auto-augmentation policy, or color jitter: (3, H, W) uint8 -> (3, H, W) uint8.

    As timm's `create_transform` combines them: jitter if there is no policy, or in addition to 3-Augment. An instance
    holds settings alone and never changes, because it is sent to the workers, also after it was used.
    """

    policy: str | None
    """Policy in timm notation, such as rand-m9-mstd0.5-inc1; None: no policy."""
    jitter: float
    """Strength of the change of brightness, contrast, and saturation; 0: none."""
    size: tuple[int, int]
    """Height and width of the images; the policy's translations are a fraction of it."""
    mean: tuple[float, ...]
    """Per-channel mean in [0, 1] that the policy fills empty corners with."""
    interpolation: str
    """Fill color of the policy's rotations and shears."""

    def __call__(self, image: Tensor, rng: np.random.Generator, name: str) -> Tensor:
        """Raises DataError for an image that is not 8 bit with 3 channels; `name` is the sample's, for the message."""
        steps = _steps(self)
        if not steps:
            return image
        if image.dtype != torch.uint8 or image.shape[0] != 3:
            bits = 8 * image.element_size()
            raise DataError(
                f"sample {name} has {image.shape[0]} channels of {bits} bits, and task.auto_augment and "
                "task.color_jitter are for 3 channels of 8 bits: set task.auto_augment=null task.color_jitter=0"
            )
        with seeded_globals(rng):
            for step in steps:
                image = step(image)
        return image

    def clip(self, clip: Tensor, rng: np.random.Generator, name: str) -> Tensor:
        """Apply the same to every frame of a clip, (3, T, H, W) -> (3, T, H, W)."""
        if not _steps(self):
            return clip
        drawn, frames = rng.bit_generator.state, []
        for frame in clip.unbind(dim=1):
            rng.bit_generator.state = drawn  # the same numbers for every frame
            frames.append(self(frame, rng, name))
        return torch.stack(frames, dim=1)


@lru_cache(maxsize=8)
def _steps(settings: ColourAugment) -> tuple[Callable[[Tensor], Tensor], ...]:
    """Build the operations of an augmentation, once per process, and only where they run: timm takes seconds to import.

    They contain closures, which cannot be pickled, so they are kept here and not in the instance.
    """
    steps: list[Callable[[Tensor], Tensor]] = []
    if settings.policy is not None:
        steps.append(_on_pil(_policy(settings, settings.policy)))
    if settings.jitter and (settings.policy is None or "3a" in settings.policy):
        from torchvision.transforms import v2

        steps.append(v2.ColorJitter(settings.jitter, settings.jitter, settings.jitter))
    return tuple(steps)


def _policy(settings: ColourAugment, name: str) -> Callable[[Any], Any]:
    from PIL.Image import Resampling
    from timm.data import auto_augment

    options: dict[str, Any] = {
        "translate_const": int(min(settings.size) * 0.45),
        "img_mean": tuple(min(255, round(255 * value)) for value in settings.mean),
        "interpolation": Resampling[settings.interpolation.upper()],
    }
    if name.startswith("rand"):
        policy = auto_augment.rand_augment_transform(name, options)
        operations = policy.ops
    elif name.startswith("augmix"):
        policy = auto_augment.augment_and_mix_transform(name, options | {"translate_pct": 0.3})
        operations = policy.ops
    else:
        policy = auto_augment.auto_augment_transform(name, options)
        operations = [operation for part in policy.policy for operation in part]
    for operation in operations:
        if operation.aug_fn is auto_augment.posterize:
            operation.aug_fn = _posterize
    return policy


def _posterize(picture: Any, bits: int, **settings: Any) -> Any:
    """Do what timm does, but also for 0 bits: it requests them at the highest magnitude, and Pillow 13.0 rejects
    them."""
    from PIL import Image
    from timm.data import auto_augment

    return auto_augment.posterize(picture, bits, **settings) if bits else Image.new(picture.mode, picture.size)


def _on_pil(transform: Callable[[Any], Any]) -> Callable[[Tensor], Tensor]:
    def apply(image: Tensor) -> Tensor:
        from PIL import Image

        picture = transform(Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()))
        return torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous()

    return apply
