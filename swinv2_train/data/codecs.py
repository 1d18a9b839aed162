"""torchvision's decoders of JPEG and WebP, without importing the rest of torchvision.

`import torchvision` imports torch's compiler as well, about 4 s of CPU time in every rank and data worker. The decoders
are operators in a separate library, which torch can load alone. If a version of torchvision names that library
differently, the package is imported after all, and loads it.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

_LIBRARIES = ("image_stable.so", "image.so")  # since torchvision 0.29, before
_UNCHANGED = 0  # torchvision.io.ImageReadMode: keep the channels of the file


def decode_jpeg(data: Tensor) -> Tensor:
    """(N,) uint8, the bytes of a file -> (C, H, W) uint8. Raises RuntimeError."""
    _load()
    return torch.ops.image.decode_jpeg(data, _UNCHANGED, False)


def decode_webp(data: Tensor) -> Tensor:
    """(N,) uint8, the bytes of a file -> (C, H, W) uint8. Raises RuntimeError."""
    _load()
    return torch.ops.image.decode_webp(data, _UNCHANGED)


@cache
def _load() -> None:
    spec = find_spec("torchvision")
    for folder in (spec.submodule_search_locations if spec else None) or ():
        for name in _LIBRARIES:
            if (library := Path(folder) / name).is_file():
                try:
                    torch.ops.load_library(library)
                except OSError:  # built for another torch: the import of torchvision reports it
                    break
                return
    import torchvision.io  # noqa: F401
