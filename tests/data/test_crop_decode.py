"""A training crop is the same however much of its image was decoded for it."""

from __future__ import annotations

import io
import math
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torch import Tensor

from swinv2_train.config.compose import compose
from swinv2_train.config.errors import ConfigError
from swinv2_train.config.schema import AugmentConfig
from swinv2_train.data import jpeg_part
from swinv2_train.data.augment import train_image
from swinv2_train.data.crop_decode import JpegFrame
from swinv2_train.data.decode import DecodeOptions
from swinv2_train.data.errors import BrokenSample
from swinv2_train.data.geometry import Crop, draw_crop
from swinv2_train.data.loader import SampleSource, Share, TrainLoader
from swinv2_train.data.order import SampleOrder
from swinv2_train.data.raw_sample import RawSample
from swinv2_train.data.sample import Sample
from swinv2_train.data.shards import ShardSet
from swinv2_train.data.transform import Transform
from swinv2_train.data.workers import Workers
from tests.data.crops import train_crop
from tests.data.damaged_images import damaged
from tests.data.samples import encoded, pixels, write_shards

WHOLE, PARTS = DecodeOptions(parts=False), DecodeOptions()
SCALED = DecodeOptions(scaled=True)
CONFIG = AugmentConfig(scale=[0.1, 1.0], vflip=0.5)
PHOTO = pixels(1, 192, 256)


@pytest.fixture(params=["compiled", "not compiled"])
def decoder(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A machine with the compiled decoder, and one without."""
    if request.param == "compiled":
        if reason := jpeg_part.prepare():
            pytest.skip(reason)
    else:
        monkeypatch.setattr(jpeg_part, "CACHE", str(tmp_path))
    jpeg_part._compiled.cache_clear()
    yield request.param
    jpeg_part._compiled.cache_clear()


def sample(data: bytes, options: DecodeOptions, channels: int | None = 3) -> Sample:
    return Sample(RawSample("a", "jpg", {"image": data}), channels, options)


def cropped(data: bytes, options: DecodeOptions, seed: int, channels: int | None = 3) -> Tensor | str:
    try:
        return train_image(sample(data, options, channels), (24, 24), CONFIG, np.random.default_rng(seed))
    except BrokenSample as error:
        return error.reason


def exif(orientation: int) -> bytes:
    data = Image.Exif()
    data[0x112] = orientation
    return data.tobytes()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_upright_crops_of_turned_images(orientation: int, decoder: str) -> None:
    data = encoded(pixels(2, 61, 90), quality=90, exif=exif(orientation))
    for seed in range(12):
        crop = draw_crop(sample(data, PARTS).size, (24, 24), CONFIG, np.random.default_rng(seed))
        assert torch.equal(cropped(data, PARTS, seed), crop.image(sample(data, PARTS).image, "bilinear"))
        part, inside = sample(data, PARTS).part(crop)
        assert part.shape[-2:] == (crop.box[2:] if decoder == "compiled" else crop.source)
        assert inside.source == tuple(part.shape[-2:])


@pytest.mark.parametrize("channels", [None, 1, 3])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP"])
def test_channels_are_adapted_in_a_part_as_in_the_image(kind: str, channels: int | None, decoder: str) -> None:
    for stored in (1, 3):
        data = encoded(pixels(3, 40, 50, stored), kind)
        expected = cropped(data, WHOLE, 4, channels)
        assert isinstance(expected, Tensor)
        assert torch.equal(cropped(data, PARTS, 4, channels), expected)
    assert cropped(encoded(pixels(3), "JPEG"), PARTS, 0, 4) == "it has 3 channels, not 4"


@pytest.mark.slow
def test_damaged_files_give_the_same_crop_or_the_same_reason(decoder: str) -> None:
    outcomes: Counter[type] = Counter()
    for number in range(300):
        data = damaged("jpeg", number, seed=5)
        found, expected = cropped(data, PARTS, number), cropped(data, WHOLE, number)
        outcomes[type(expected)] += 1
        if isinstance(expected, Tensor):
            assert isinstance(found, Tensor), (number, found)
            assert torch.equal(found, expected), number
        else:
            assert found == expected, number
    assert min(outcomes.values()) > 50


def test_an_image_above_the_limit_is_broken(decoder: str) -> None:
    small = replace(PARTS, max_pixels=100)
    assert cropped(encoded(PHOTO), small, 0) == cropped(encoded(PHOTO), replace(WHOLE, max_pixels=100), 0)
    assert "above the limit of 100 pixels" in cropped(encoded(PHOTO), small, 0)


@pytest.mark.slow
def test_a_decoded_image_is_not_decoded_again() -> None:
    one = sample(encoded(PHOTO), PARTS)
    crop = draw_crop(one.size, (24, 24), CONFIG, np.random.default_rng(0))
    assert one.part(crop)[0].shape[-2:] != one.image.shape[-2:]
    assert one.part(crop)[0] is one.image
    several = DecodeOptions.of(compose([]).data, [0.5] * 3, repeats=2)
    one = sample(encoded(PHOTO), several)
    assert one.part(crop)[0] is one.part(crop)[0]


@pytest.mark.parametrize(
    ("source", "part", "result", "expected"),
    [
        ((1200, 1600), (768, 768), (192, 192), 2),
        ((1200, 1600), (767, 1600), (192, 192), 1),  # 383 rows would remain, less than twice 192
        ((1200, 1600), (769, 900), (192, 192), 2),
        ((1200, 1600), (1200, 1600), (192, 192), 2),
        ((3024, 4032), (1536, 3000), (192, 192), 4),
        ((3024, 4032), (3024, 4032), (64, 64), 8),
        ((3024, 4032), (3024, 4032), (8, 8), 8),
        ((375, 500), (375, 500), (192, 192), 1),
    ],
)
def test_an_image_is_reduced_only_if_twice_the_result_remains(
    source: tuple[int, int], part: tuple[int, int], result: tuple[int, int], expected: int
) -> None:
    crop = Crop(source, (0, 0, *part), result, result)
    assert JpegFrame(source, 1).scale(crop, SCALED) == expected
    assert JpegFrame(source, 1).scale(crop, PARTS) == 1
    assert JpegFrame(source, 1).scale(crop, replace(SCALED, parts=False)) == 1


def test_a_mirrored_side_is_reduced_only_if_it_divides() -> None:
    crop = Crop((1001, 1600), (0, 0, 1001, 1600), (100, 100), (100, 100))
    frames = {turned: JpegFrame((1001, 1600) if turned < 5 else (1600, 1001), turned) for turned in range(1, 9)}
    scales = {turned: frame.scale(crop, SCALED) for turned, frame in frames.items()}
    assert scales == {1: 4, 2: 4, 3: 1, 4: 1, 5: 4, 6: 4, 7: 1, 8: 1}


@pytest.mark.parametrize("orientation", [1, 2, 3, 4, 5, 6, 7, 8])
def test_reduced_crops_are_those_of_pil_wherever_they_are_decoded(orientation: int, decoder: str) -> None:
    """Against PIL's reduction of the entire image, turned upright, and cropped where the drawn crop now lies."""
    data = encoded(pixels(4, 192, 256), quality=92, exif=exif(orientation))
    reduced = 0
    for seed in range(10):
        one = sample(data, SCALED)
        crop = one.aligned(draw_crop(one.size, (24, 24), CONFIG, np.random.default_rng(seed)))
        scale = JpegFrame.of(data).scale(crop, SCALED)
        assert crop == one.aligned(crop), "moving it twice changes nothing"
        assert all(side % scale == 0 for side in crop.box)
        found, inside = one.part(crop)
        if scale == 1:
            continue
        reduced += 1
        with Image.open(io.BytesIO(data)) as image:
            image.draft(None, (image.width // scale, image.height // scale))
            small = np.array(ImageOps.exif_transpose(image))
        top, left, height, width = (side // scale for side in crop.box)
        assert found.permute(1, 2, 0).tolist() == small[top : top + height, left : left + width].tolist()
        assert inside.source == (height, width)
        assert min(height, width) >= 48
    assert reduced >= 3


@pytest.mark.slow
def test_reduction_changes_a_crop_little_and_label_maps_follow(decoder: str) -> None:
    grain = np.random.default_rng(0).normal(0, 12, (1200, 1600, 3))
    data = encoded(np.clip(pixels(6, 1200, 1600) + grain, 0, 255).astype(np.uint8), quality=92)
    rows = torch.arange(1200)[:, None].expand(-1, 1600)
    for seed in range(3):
        one = sample(data, SCALED)
        drawn = draw_crop(one.size, (96, 96), AugmentConfig(scale=[0.5, 1.0]), np.random.default_rng(seed))
        crop = one.aligned(drawn)
        assert crop != drawn or all(side % 4 == 0 for side in drawn.box)
        part, inside = one.part(crop)
        exact = crop.image(sample(data, WHOLE).image, "bicubic").double()
        error = (inside.image(part, "bicubic").double() - exact).square().mean()
        assert 10 * math.log10(255**2 / error) > 40
        pixel = drawn.box[2] / 96
        assert (crop.label_map(rows) - drawn.label_map(rows)).abs().max() <= pixel / 2


def test_a_crop_of_a_decoded_image_is_the_same() -> None:
    image = sample(encoded(PHOTO), WHOLE).image
    for seed in range(5):
        expected = train_crop(image, (24, 24), CONFIG, np.random.default_rng(seed))
        assert torch.equal(cropped(encoded(PHOTO), PARTS, seed), expected)


class Cropped(Transform):
    def __call__(self, sample: Sample, rng: np.random.Generator) -> dict[str, Tensor]:
        return {"image": train_image(sample, (16, 16), CONFIG, rng)}


@pytest.mark.slow
def test_batches_depend_neither_on_workers_nor_on_what_is_decoded(tmp_path: Path) -> None:
    jpeg_part.prepare()
    shards = ShardSet.open(write_shards(tmp_path, [9, 8], broken=[4]))
    order = SampleOrder(shards.num_samples, seed=1)
    found = []
    for options, workers in ((WHOLE, 0), (PARTS, 0), (PARTS, 2), (SCALED, 0)):
        source = SampleSource(shards, Cropped(), 3, seed=2, decoding=options)
        loader = TrainLoader(source, order, Share(4), global_batch=8, workers=Workers(workers))
        found.append([next(loader) for _ in range(6)])
        loader.close()
    for batches in found[1:]:
        for batch, expected in zip(batches, found[0], strict=True):
            assert torch.equal(batch["image"], expected["image"])
            assert batch["broken"] == expected["broken"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.crop_decoding=false"], "no effect without data.crop_decoding"),
        (["task=classification", "task.num_classes=2", "task.repeats=2"], "no effect with task.repeats=2"),
    ],
)
def test_scaled_decoding_that_would_do_nothing_is_refused(overrides: list[str], message: str) -> None:
    from swinv2_train.config.validate import validate

    config = compose(["data.shards=x", "data.scaled_decoding=true", *overrides])
    with pytest.raises(ConfigError, match=message):
        validate(config)


@pytest.mark.slow
def test_decoding_a_part_imports_neither_torchvision_nor_pil() -> None:
    if reason := jpeg_part.prepare():
        pytest.skip(reason)
    program = (
        "import sys; from swinv2_train.data.jpeg_part import decode_part\n"
        "assert decode_part(sys.stdin.buffer.read(), (1, 2, 3, 4)) is not None\n"
        "print(*(name for name in ('torchvision', 'PIL.Image', 'torch._dynamo') if name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], input=encoded(PHOTO), stdout=subprocess.PIPE, check=True)
    assert done.stdout == b"\n"
