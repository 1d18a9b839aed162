"""Config section `data`: the shards, and how their images are read, prepared, and augmented."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from swinv2_train.config.section import Section


@dataclass
class AugmentConfig(Section):
    """Training crop and flips of every task."""

    scale: list[float] = field(default_factory=lambda: [0.67, 1.0])
    """Fraction of the image area that a random crop covers, as [low, high]."""
    ratio: list[float] = field(default_factory=lambda: [0.75, 4 / 3])
    """Aspect ratio of a random crop, as [low, high]."""
    hflip: float = 0.5
    """Probability of a horizontal flip."""
    vflip: float = 0.0
    """Probability of a vertical flip (for images without a fixed "up", such as satellite or microscope images)."""
    interpolation: str = "bilinear"
    """bilinear (official SimMIM recipe) or bicubic (official supervised recipes), in training and evaluation."""
    transform: str | None = None
    """Transform of a module in `imports` that makes the training image instead of the crop and the flips."""


@dataclass
class DataConfig(Section):
    """Shards, and how they are read."""

    shards: Any = ""
    """Training shards: a path, a brace pattern such as photos-{000000..000012}.tar, a directory, a URL, or a list."""
    eval_shards: Any = ""
    """Shards held out from training; empty: no evaluation."""
    resolution: Any = 192
    """Side of the input in pixels, or [height, width]."""
    frames: int = 0
    """Frames of a clip, a multiple of `model.temporal_patch`; 0: the shards contain images."""
    frame_stride: int = 2
    """Distance of two frames of a clip, in frames of the video."""
    mean: Any = "imagenet"
    """Per-channel mean in [0, 1]: a list, `imagenet`, or `dataset` (from the dataset card)."""
    std: Any = "imagenet"
    """Per-channel standard deviation in [0, 1]: a list, `imagenet`, or `dataset`."""
    expected_samples: int | None = None
    """Number of samples that a recipe assumes; converts epochs to steps if no shards are available (dry runs)."""
    order: str | None = None
    """lanes: every host reads its own part of the data set. groups: the order of earlier versions, in which every host
    reads all of it. null: lanes, or on resume the order that the run began with."""
    lanes: int | None = None
    """Parts of the order that are shuffled apart from each other, and that the ranks share out; 1: no parts.

    They divide half of the samples in a step (`optim.global_batch / task.repeats / 2`). null: as many as possible, up
    to 64. With fewer lanes than hosts, some hosts read the same samples.
    """
    shuffle_samples: int = 131072
    """Approximate number of samples that are shuffled among themselves at a time, over all lanes; blocks of samples are
    shuffled over the entire set."""
    block_samples: int | None = None
    """Samples in a row that stay together until they are shuffled, and that are fetched by one request from a server.

    null: 16; with the order `groups`, a 32nd of `data.shuffle_samples`.
    """
    num_workers: int = 4
    """Decoding processes per rank; 0 decodes in the training process."""
    prefetch_batches: int = 4
    """Minimum number of micro-batches that each worker keeps ready; all workers together hold at least one step."""
    image: str | None = None
    """Member to read from samples with several images, such as left.png, or with an array next to an image, such as
    npy; null: the alphabetically first image without a dot."""
    label: str | None = None
    """Source of the label: a member such as label.cls, or a field of the member json, such as species or meta.species
    (json:species, or info.json:species for another member).

    Values are class numbers or names; the first start reads all labels once, counts the classes, and keeps the
    result next to the index. null: `labels` in json, else the member cls; the dataset card counts the classes.
    """
    scale: Any = None
    """Stored values that become 0 and 1: [low, high], a list with such a pair for every channel, or percentiles of the
    dataset card, such as p1-p99. Values beyond them are clipped, and batches are float32.

    null: images must be unsigned integers of 8 or 16 bits, whose full range becomes 0 to 1.
    """
    nodata: Any = None
    """With `scale`: stored value of pixels without data, or one per channel; null: the tag GDAL_NODATA of a GeoTIFF.
    NaN and infinite values never are data."""
    fill: Any = "mean"
    """With `scale`: value of pixels without data: `mean` (zero after normalization), or a stored value, or one per
    channel."""
    background: Any = None
    """Color behind transparent pixels: white, black, mean (of `data.mean`), or numbers from 0 to 1; drop: ignore alpha.

    null: white, or on resume the color that the run began with. Nothing is transparent if the model reads the alpha
    channel (`model.in_channels=4`).
    """
    max_pixels: int = 200_000_000
    """Largest image that is decoded, in pixels (more than 4 channels count proportionally); larger ones are broken."""
    crop_decoding: bool = True
    """Decode only the part of a JPEG that a training crop needs, if a C compiler and libjpeg-turbo's headers are there.

    The pixels are the same without it. Off with `task.repeats` above 1, which decodes an image once for all its copies.
    """
    scaled_decoding: bool = False
    """Decode training crops of JPEGs at 1/2, 1/4, or 1/8 of their size if at least twice the input size remains.

    Faster for images that are much larger than the input, with slightly other pixels than PIL's. Needs `crop_decoding`.
    It has no effect on stored values (`scale`).
    """
    max_broken_share: float = 0.01
    """Stop the run if more than this fraction of the samples read so far (counted as at least 1000) was broken."""
    cache_dir: str = "~/.cache/swinv2_train/shards"
    """Directory of the cache of remote shards."""
    cache_gib: float = 50.0
    """Upper bound on the cache of remote shards, per host, in GiB."""
    connections: int = 8
    """Requests at a time by which each rank reads remote shards ahead."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """Training crop."""
    crop_pct: float = 0.875
    """Evaluation: fraction of the resized image's side that the center crop covers (official: 224/256)."""
    crop_mode: str = "center"
    """Evaluation: center (resize the short side, crop the center), squash (resize to the input size, no crop), or
    native (crop the center of the image at its own size; smaller ones are enlarged to the input size)."""
