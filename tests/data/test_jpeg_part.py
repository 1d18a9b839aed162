"""Parts of JPEGs are those of the entire image, bit for bit, and a machine that cannot compile says why."""

from __future__ import annotations

import io
import os
import random
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from swinv2_train.data import jpeg_part
from swinv2_train.data.decode import decode
from swinv2_train.data.errors import BrokenSample
from swinv2_train.data.jpeg_part import HEADERS, Box, decode_part
from tests.data.damaged_images import damaged, intact
from tests.data.samples import encoded, pixels

KINDS = [
    *({"subsampling": s, "progressive": p} for s in (0, 1, 2) for p in (False, True)),
    {"subsampling": 2, "restart_marker_blocks": 3},
    {"channels": 1},
    {"channels": 1, "progressive": True},
]


@pytest.fixture(scope="module", autouse=True)
def _compiled() -> None:
    if reason := jpeg_part.prepare():
        pytest.skip(reason)


def grainy(seed: int, height: int, width: int, channels: int = 3) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(0, 25, (height, width, channels))
    return np.clip(pixels(seed, height, width, channels) + noise, 0, 255).astype(np.uint8)


def a_box(rng: random.Random, height: int, width: int) -> Box:
    tall, wide = rng.randint(1, height), rng.randint(1, width)
    return rng.randint(0, height - tall), rng.randint(0, width - wide), tall, wide


def under(image: Tensor, box: Box) -> Tensor:
    top, left, height, width = box
    return image[:, top : top + height, left : left + width]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_every_part_of_every_kind_is_that_of_the_entire_image(kind: dict[str, int]) -> None:
    """Also of images smaller than one block, and at the edges, where upsampling has no neighbors."""
    rng = random.Random(str(kind))
    options = dict(kind)
    channels = options.pop("channels", 3)
    for number in range(40):
        height, width = rng.randint(1, 120), rng.randint(1, 160)
        data = encoded(grainy(number, height, width, channels), quality=rng.choice([30, 75, 95]), **options)
        whole = decode(data)
        for box in ((0, 0, height, width), a_box(rng, height, width), a_box(rng, height, width)):
            part = decode_part(data, box)
            assert part is not None
            assert torch.equal(part, under(whole, box)), (height, width, box)
            assert part.permute(1, 2, 0).is_contiguous()


def test_the_pixels_are_those_of_pil() -> None:
    data = encoded(grainy(5, 240, 320), quality=90)
    with Image.open(io.BytesIO(data)) as image:
        whole = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    for box in ((0, 0, 240, 320), (33, 47, 150, 201), (239, 319, 1, 1)):
        assert torch.equal(decode_part(data, box), under(whole, box))


@pytest.mark.parametrize("box", [(0, 0, 25, 32), (-1, 0, 5, 5), (20, 30, 5, 3), (0, 0, 0, 4), (24, 0, 1, 1)])
def test_a_part_outside_of_the_image_is_left_to_others(box: Box) -> None:
    assert decode_part(encoded(pixels(1)), box) is None


def test_files_that_are_not_plain_are_left_to_others() -> None:
    box = (0, 0, 8, 8)
    plain = encoded(pixels(1, 48, 64), quality=90)
    assert decode_part(plain, box) is not None
    assert decode_part(plain + b"trailing bytes", box) is not None
    assert decode_part(encoded(pixels(1, 48, 64), mode="CMYK"), box) is None
    deep = imagecodecs.jpeg8_encode(pixels(1, 48, 64, dtype=np.uint16) >> 4, bitspersample=12)
    assert decode_part(deep, box) is None
    scan = plain.index(b"\xff\xda")
    assert decode_part(plain[:-2] + b"\xff\xc4\x00\x03\x00\xff\xd9", box) is None, "a segment after the scan"
    for data in (b"", b"\xff", plain[: scan + 4], plain[:-2], plain[2:], encoded(pixels(1), "PNG")):
        assert decode_part(data, box) is None


@pytest.mark.parametrize("progressive", [False, True])
def test_a_file_that_ends_early_is_never_accepted(progressive: bool) -> None:
    """A part at the top needs only the first bytes, but the same sample must be broken on every machine."""
    data = encoded(grainy(3, 40, 56), quality=85, progressive=progressive)
    for end in range(len(data)):
        assert decode_part(data[:end], (0, 0, 3, 5)) is None, end


@pytest.mark.slow
def test_damaged_files_are_decoded_alike_or_left_to_others() -> None:
    rng, outcomes = random.Random(0), Counter()
    for number in range(800):
        data = damaged("jpeg", number, seed=11)
        try:
            whole = decode(data)
        except BrokenSample:
            whole = None
        height, width = (48, 64) if whole is None else whole.shape[-2:]
        box = a_box(rng, height, width)
        part = decode_part(data, box)
        outcomes[whole is not None, part is not None] += 1
        if part is not None:
            assert whole is not None, number
            assert torch.equal(part, under(whole, box)), number
    assert outcomes[True, True] > 300
    assert outcomes[False, False] > 100


@pytest.mark.slow
def test_at_a_fraction_of_the_size_the_pixels_are_those_of_pil() -> None:
    rng = random.Random(1)
    for number in range(60):
        height, width = rng.randint(8, 150), rng.randint(8, 200)
        data = encoded(grainy(number, height, width), quality=85, subsampling=number % 3, progressive=number % 5 == 0)
        denominator = (2, 4, 8)[number // 3 % 3]
        with Image.open(io.BytesIO(data)) as image:
            image.draft(None, (width // denominator, height // denominator))
            small = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        assert small.shape[-2:] == (-(-height // denominator), -(-width // denominator))
        box = a_box(rng, *small.shape[-2:])
        assert torch.equal(decode_part(data, box, denominator), under(small, box)), (height, width, denominator, box)


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(jpeg_part, "CACHE", str(tmp_path / "cache"))
    for function in (jpeg_part.prepare, jpeg_part._compiled):
        function.cache_clear()
    yield tmp_path / "cache"
    monkeypatch.undo()
    for function in (jpeg_part.prepare, jpeg_part._compiled):
        function.cache_clear()


@pytest.mark.slow
def test_it_is_compiled_once_for_the_user_alone(empty_cache: Path) -> None:
    data = intact("jpeg")[0]
    assert decode_part(data, (0, 0, 4, 4)) is None, "only `prepare` compiles"
    assert jpeg_part.prepare() == ""
    assert decode_part(data, (0, 0, 4, 4)) is not None
    assert [path.name for path in empty_cache.iterdir()] == [jpeg_part.library().name]
    assert empty_cache.stat().st_mode & 0o777 == 0o700
    made = jpeg_part.library().stat()
    jpeg_part.prepare.cache_clear()
    assert jpeg_part.prepare() == ""
    assert jpeg_part.library().stat().st_mtime_ns == made.st_mtime_ns


@pytest.mark.slow
def test_a_library_that_others_can_change_is_not_loaded_but_made_again(empty_cache: Path) -> None:
    assert jpeg_part.prepare() == ""
    jpeg_part.library().chmod(0o777)
    jpeg_part.prepare.cache_clear()
    jpeg_part._compiled.cache_clear()
    assert decode_part(intact("jpeg")[0], (0, 0, 4, 4)) is None
    assert jpeg_part.prepare() == ""
    assert jpeg_part.library().stat().st_mode & 0o777 == 0o700


@pytest.mark.slow
def test_a_damaged_library_is_made_again_whatever_the_umask_is(empty_cache: Path) -> None:
    empty_cache.mkdir()
    jpeg_part.library().write_bytes(b"\x7fELF")
    assert decode_part(intact("jpeg")[0], (0, 0, 4, 4)) is None
    before = os.umask(0o002)
    try:
        assert jpeg_part.prepare() == ""
    finally:
        os.umask(before)
    assert decode_part(intact("jpeg")[0], (0, 0, 4, 4)) is not None


def test_a_user_without_a_home_directory_decodes_entire_images(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home(self: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", no_home)
    for function in (jpeg_part.prepare, jpeg_part._compiled):
        function.cache_clear()
    assert "cannot be used (Could not determine home directory.)" in jpeg_part.prepare()
    assert decode_part(intact("jpeg")[0], (0, 0, 4, 4)) is None
    for function in (jpeg_part.prepare, jpeg_part._compiled):
        function.cache_clear()


@pytest.mark.slow
def test_without_a_compiler_or_headers_the_reason_has_the_remedy(
    empty_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "part.c"
    source.write_text("#include <no_such_header.h>\n")
    with monkeypatch.context() as patch:
        patch.setattr(jpeg_part, "SOURCE", source)
        assert "no_such_header.h: No such file" in jpeg_part.prepare()
        jpeg_part.prepare.cache_clear()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert jpeg_part.prepare() == f"there is no C compiler; {HEADERS}"
    jpeg_part.prepare.cache_clear()
    (tmp_path / "cc").symlink_to(shutil.which("false", path="/bin:/usr/bin"))
    assert jpeg_part.prepare() == f"{tmp_path / 'cc'} failed (no message); {HEADERS}"
    assert not list(empty_cache.iterdir())


@pytest.mark.slow
def test_other_pixels_than_those_of_torchvision_are_refused(
    empty_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "part.c"
    text = jpeg_part.SOURCE.read_text()
    source.write_text(text.replace("info.scale_num = 1;", "info.scale_num = 1; info.dct_method = JDCT_IFAST;"))
    assert source.read_text() != text
    monkeypatch.setattr(jpeg_part, "SOURCE", source)
    assert jpeg_part.prepare() == "the pixels of this machine's libjpeg-turbo differ from those of torchvision"
    assert not list(empty_cache.iterdir())
