"""Parts of JPEGs, decoded by libjpeg-turbo through a C file that is compiled on this machine.

torchvision and PIL decode entire images, but a training crop covers a part. libjpeg-turbo can skip the rest, which no
maintained wheel offers. `jpeg_part.c` calls it; `prepare` compiles that file once per user with the system's compiler
and headers. Where that is impossible, entire images are decoded: the pixels are the same, bit for bit.
"""

from __future__ import annotations

import ctypes
import hashlib
import io
import os
import platform
import re
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from textwrap import shorten

import numpy as np
import torch
from torch import Tensor

from swinv2_train.data.codecs import decode_jpeg

SOURCE = Path(__file__).with_name("jpeg_part.c")
CACHE = "~/.cache/swinv2_train/decoder"
HEADERS = "install a C compiler and the headers of libjpeg-turbo (Debian and Ubuntu: gcc libjpeg-dev)"
"""Remedy if the file cannot be compiled."""
_SECONDS = 120
_LONGEST_REASON = 160
_FUNCTION = "swinv2_jpeg_part"

Box = tuple[int, int, int, int]
"""Top, left, height, and width."""
Decoder = Callable[[bytes, Box, int], Tensor | None]


class Unavailable(Exception):  # noqa: N818 -- a reason, not an error
    """The compiled decoder cannot be used, with the reason."""


def decode_part(data: bytes, box: Box, denominator: int = 1) -> Tensor | None:
    """Return a part of a JPEG as it is stored, (C, height, width) uint8 with 1 or 3 channels, channels last in memory.

    None if the decoder is not compiled, or if it leaves this file to others: CMYK, 12 bit, damaged files.

    Args:
        box: in pixels of the scaled image.
        denominator: 1, 2, 4, or 8: the image is decoded at this fraction of its size, rounded up.
    """
    decoder = _compiled()
    return None if decoder is None else decoder(data, box, denominator)


@cache
def prepare() -> str:
    """Compile the decoder if this user's cache does not have it yet. Return why it cannot be used; empty if it can."""
    try:
        path = library()
        try:
            _check(_load(path))
        except Unavailable:  # it is not there, or it was damaged, or it was made with another libjpeg
            path.unlink(missing_ok=True)
            _build(path)
    except Unavailable as reason:
        return str(reason)
    except (OSError, RuntimeError) as error:  # no home directory, or one that may not be read
        return f"{CACHE} cannot be used ({error})"
    finally:
        _compiled.cache_clear()
    return ""


def library() -> Path:
    """Return the path of the compiled decoder: one for each version of the C file, environment, processor, and C
    library."""
    kind = (platform.machine(), sys.platform, sys.prefix, *platform.libc_ver())
    digest = hashlib.sha256("\0".join(kind).encode() + SOURCE.read_bytes()).hexdigest()[:16]
    return Path(CACHE).expanduser() / f"jpeg_part-{digest}.so"


@cache
def _compiled() -> Decoder | None:
    """Return the decoder if an earlier `prepare` has compiled it. Data workers only load it."""
    try:
        return _load(library())
    except (Unavailable, OSError, RuntimeError):
        return None


def _build(path: Path) -> None:
    compiler = shutil.which(os.environ.get("CC", "cc")) or shutil.which("gcc")
    if compiler is None:
        raise Unavailable(f"there is no C compiler; {HEADERS}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryDirectory(dir=path.parent) as directory:
            made = Path(directory) / path.name
            _compile(compiler, made)
            made.chmod(0o700)  # whatever the umask says
            _check(_load(made))
            os.replace(made, path)  # other processes may build it at the same time
    except OSError as error:
        raise Unavailable(f"{path.parent} cannot be written to ({error.strerror})") from error


def _compile(compiler: str, out: Path) -> None:
    # A conda environment has its own libjpeg-turbo, which is not in the compiler's path.
    prefix = Path(sys.prefix)
    paths = []
    if (prefix / "include" / "jpeglib.h").exists():
        paths = [f"-I{prefix / 'include'}", f"-L{prefix / 'lib'}", f"-Wl,-rpath,{prefix / 'lib'}"]
    command = [compiler, "-O2", "-shared", "-fPIC", str(SOURCE), "-o", str(out), *paths, "-ljpeg"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS)
    except (OSError, subprocess.SubprocessError) as error:
        raise Unavailable(f"{compiler} does not run ({type(error).__name__})") from error
    if done.returncode:
        lines = done.stderr.splitlines()
        told = next((line for line in lines if "error" in line.lower()), lines[0] if lines else "no message")
        told = re.sub(r"^.*?error: ", "", told)
        raise Unavailable(f"{compiler} failed ({shorten(told, _LONGEST_REASON, placeholder=' ...')}); {HEADERS}")


def _load(path: Path) -> Decoder:
    try:
        found = path.stat()
        if found.st_uid != os.getuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise Unavailable(f"{path} can be written to by other users: remove it")
        function = getattr(ctypes.CDLL(str(path)), _FUNCTION)
    except (OSError, AttributeError) as error:
        raise Unavailable(f"{path} cannot be loaded ({error}): remove it") from error
    function.argtypes = [ctypes.c_char_p, ctypes.c_size_t, *[ctypes.c_int] * 5, ctypes.c_void_p]
    function.restype = ctypes.c_int

    def decoder(data: bytes, box: Box, denominator: int) -> Tensor | None:
        height, width = box[2:]
        out = torch.empty(height * width * 3, dtype=torch.uint8)
        channels = function(data, len(data), denominator, *box, out.data_ptr())
        return out[: height * width * channels].view(height, width, channels).permute(2, 0, 1) if channels else None

    return decoder


def _check(decoder: Decoder) -> None:
    """Compare the pixels with those of torchvision: this machine's libjpeg might round differently."""
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (12, 15, 3), dtype=np.uint8)
    image = Image.fromarray(pixels).resize((90, 72), Image.Resampling.BICUBIC)
    for subsampling in (0, 1, 2):
        file = io.BytesIO()
        image.save(file, "JPEG", quality=90, subsampling=subsampling)
        data = file.getvalue()
        top, left, height, width = box = (21, 35, 30, 37)
        part = decoder(data, box, 1)
        whole = decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8))
        if part is None or not torch.equal(part, whole[:, top : top + height, left : left + width]):
            raise Unavailable("the pixels of this machine's libjpeg-turbo differ from those of torchvision")
