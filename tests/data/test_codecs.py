"""The decoders are torchvision's, and neither they nor what a data worker imports bring torch's compiler along."""

from __future__ import annotations

import io
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import io as torchvision_io

from swinv2_train.data import codecs

DECODERS = {"JPEG": "decode_jpeg", "WEBP": "decode_webp"}


def encoded(kind: str, mode: str = "RGB") -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize((70, 50)).convert(mode).save(file, kind)
    return file.getvalue()


@pytest.mark.parametrize(("kind", "mode"), [("JPEG", "RGB"), ("JPEG", "L"), ("WEBP", "RGB"), ("WEBP", "RGBA")])
@pytest.mark.parametrize("libraries", [codecs._LIBRARIES, ("renamed.so",)])
def test_files_are_decoded_as_by_torchvision(
    kind: str, mode: str, libraries: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if its library has a name that is not known here."""
    monkeypatch.setattr(codecs, "_LIBRARIES", libraries)
    codecs._load.cache_clear()
    data = torch.frombuffer(bytearray(encoded(kind, mode)), dtype=torch.uint8)
    image = getattr(codecs, DECODERS[kind])(data)
    expected = getattr(torchvision_io, DECODERS[kind])(data)
    assert torch.equal(image, expected)
    assert image.stride() == expected.stride()


@pytest.mark.slow
def test_a_data_worker_imports_neither_torchvision_nor_the_compiler() -> None:
    program = (
        "import gc, sys; import swinv2_train.data.workers as workers; __import__(workers._PRELOADED)\n"
        "assert gc.isenabled()\n"
        "from swinv2_train.data.decode import decode\n"
        "from swinv2_train.data.geometry import resize\n"
        "image = decode(sys.stdin.buffer.read()); resize(image, (8, 8), 'bicubic')\n"
        "print(*(name for name in ('torchvision', 'torch._dynamo') if name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], input=encoded("JPEG"), stdout=subprocess.PIPE, check=True)
    assert done.stdout == b"\n"
