from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms import v2

from swinv2_train.config.errors import ConfigError
from swinv2_train.config.schema import AugmentConfig, DataConfig
from swinv2_train.data.augment import eval_crop, normalise, random_erase
from swinv2_train.data.card import Card, ImageFacts
from swinv2_train.data.channel_statistics import resolve_statistics
from swinv2_train.data.geometry import random_crop_box, resize
from tests.data.crops import train_crop
from tests.data.samples import pixels


def image_of(seed: int, height: int, width: int, channels: int = 3, dtype: type = np.uint8) -> Tensor:
    return torch.from_numpy(pixels(seed, height, width, channels, dtype)).permute(2, 0, 1)


def boxes(height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float], count: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.array([random_crop_box(height, width, scale, ratio, rng) for _ in range(count)])


@pytest.mark.slow
def test_boxes_are_distributed_like_torchvisions() -> None:
    scale, ratio = (0.3, 0.8), (0.75, 4 / 3)
    ours = boxes(100, 160, scale, ratio, 3000)
    torch.manual_seed(0)
    image = torch.empty(3, 100, 160)
    theirs = np.array(
        [v2.RandomResizedCrop.make_params(v2.RandomResizedCrop(8, scale, ratio), [image]) for _ in range(3000)]
    )
    theirs = np.array([[p["top"], p["left"], p["height"], p["width"]] for p in theirs])
    for column in range(4):
        spread = theirs[:, column].std() / math.sqrt(3000)
        assert abs(ours[:, column].mean() - theirs[:, column].mean()) < 5 * math.sqrt(2) * spread
        assert abs(ours[:, column].std() / theirs[:, column].std() - 1) < 0.1
    area = ours[:, 2] * ours[:, 3] / 16000
    assert scale[0] * 0.95 < area.min() < area.max() < scale[1] * 1.05
    assert (ours[:, 0] + ours[:, 2] <= 100).all()
    assert (ours[:, 1] + ours[:, 3] <= 160).all()


@pytest.mark.parametrize(
    ("height", "width", "expected"), [(10, 200, (0, 93, 10, 13)), (200, 10, (93, 0, 13, 10)), (1, 1, (0, 0, 1, 1))]
)
def test_too_long_images_are_cropped_to_their_center(height: int, width: int, expected: tuple[int, ...]) -> None:
    assert random_crop_box(height, width, (0.9, 1.0), (0.75, 4 / 3), np.random.default_rng(0)) == expected


def test_a_crop_of_the_whole_image_is_the_image() -> None:
    image = image_of(0, 20, 20)
    config = AugmentConfig(scale=[1.0, 1.0], ratio=[1.0, 1.0], hflip=0.0)
    same = train_crop(image, (20, 20), config, np.random.default_rng(0))
    assert torch.equal(same, image)
    assert same.is_contiguous()


def test_flips() -> None:
    for dtype in (np.uint8, np.uint16):
        image = image_of(0, 20, 20, dtype=dtype)
        whole = {"scale": [1.0, 1.0], "ratio": [1.0, 1.0]}
        for config, expected in [
            (AugmentConfig(**whole, hflip=0.0), image.numpy()),
            (AugmentConfig(**whole, hflip=1.0), image.numpy()[:, :, ::-1]),
            (AugmentConfig(**whole, hflip=0.0, vflip=1.0), image.numpy()[:, ::-1]),
            (AugmentConfig(**whole, hflip=1.0, vflip=1.0), image.numpy()[:, ::-1, ::-1]),
        ]:
            assert (train_crop(image, (20, 20), config, np.random.default_rng(0)).numpy() == expected).all()
    flipped = [
        not torch.equal(train_crop(image, (20, 20), AugmentConfig(**whole), np.random.default_rng(seed)), image)
        for seed in range(200)
    ]
    assert 70 < sum(flipped) < 130


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_16_bit_is_cropped_and_resized_like_8_bit(interpolation: str) -> None:
    image = image_of(3, 50, 70)
    wide = (image.to(torch.int32) * 257).to(torch.uint16)
    config = AugmentConfig(scale=[0.5, 1.0], interpolation=interpolation)
    crops = [train_crop(i, (24, 24), config, np.random.default_rng(7)) for i in (image, wide)]
    assert [crop.dtype for crop in crops] == [torch.uint8, torch.uint16]
    assert (crops[0].double() - crops[1].double() / 257).abs().max() <= 1.01


def test_16_bit_does_not_wrap_round() -> None:
    image = torch.zeros(1, 40, 40, dtype=torch.int32)
    image[:, :, 20:] = 65535
    resized = resize(image.to(torch.uint16), (80, 80), "bicubic").to(torch.int32)
    assert (resized[:, :, :30] < 1000).all()
    assert (resized[:, :, 50:] > 64000).all()


@pytest.mark.parametrize(("height", "width"), [(300, 500), (500, 300), (64, 64), (41, 97)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_center_crop_is_the_official_evaluation_transform(height: int, width: int, interpolation: str) -> None:
    image = image_of(1, height, width)
    official = v2.Compose([v2.Resize(int(256 / 224 * 96), v2.InterpolationMode(interpolation)), v2.CenterCrop(96)])
    assert torch.equal(eval_crop(image, (96, 96), 0.875, "center", interpolation), official(image))


@pytest.mark.parametrize("size", [(32, 64), (64, 32), (60, 20)])
@pytest.mark.parametrize(("height", "width"), [(50, 50), (40, 90), (90, 40), (20, 300)])
def test_center_crop_to_any_shape_keeps_the_aspect(size: tuple[int, int], height: int, width: int) -> None:
    rows = torch.linspace(0, 255, height)[None, :, None].expand(1, height, width)
    columns = torch.linspace(0, 255, width)[None, None, :].expand(1, height, width)
    image = torch.cat([rows, columns]).round().to(torch.uint8)
    crop = eval_crop(image, size, 0.875, "center", "bilinear").double()
    assert crop.shape == (2, *size)
    middle = crop[:, size[0] // 2 - 1 : size[0] // 2 + 1, size[1] // 2 - 1 : size[1] // 2 + 1].mean(dim=(1, 2))
    assert (middle - 127.5).abs().max() < 8  # the center of the crop is the center of the image
    slopes = [
        (crop[0, -1, 0] - crop[0, 0, 0]) / (size[0] - 1) * height,
        (crop[1, 0, -1] - crop[1, 0, 0]) / (size[1] - 1) * width,
    ]
    assert slopes[0] / slopes[1] == pytest.approx(1, abs=0.15)  # one step down is as long as one step right


@pytest.mark.parametrize("size", [(96, 96), (64, 80)])
def test_squash_resizes_the_whole_image_and_crops_nothing(size: tuple[int, int]) -> None:
    image = image_of(1, 120, 300)
    squashed = eval_crop(image, size, 0.5, "squash", "bicubic")
    with pytest.raises(ConfigError, match=r"data.crop_mode=border: must be one of center, squash"):
        eval_crop(image, size, 0.5, "border", "bicubic")
    official = v2.Resize(size, v2.InterpolationMode.BICUBIC)(image)
    assert torch.equal(squashed, official)


@pytest.mark.parametrize("crop_pct", [0.9, 1.0])
def test_a_larger_share_keeps_more_of_the_image(crop_pct: float) -> None:
    image = image_of(1, 300, 300)
    resized = v2.Resize(int(96 / crop_pct), v2.InterpolationMode.BICUBIC)(image)
    assert torch.equal(eval_crop(image, (96, 96), crop_pct, "center", "bicubic"), v2.CenterCrop(96)(resized))


@pytest.mark.parametrize(("dtype", "largest"), [(torch.uint8, 255), (torch.uint16, 65535)])
def test_erasing_puts_the_datas_noise_into_a_rectangle(dtype: torch.dtype, largest: int) -> None:
    mean, std = [0.3, 0.6], [0.1, 0.2]
    image = torch.full((2, 80, 60), 3, dtype=torch.int32).to(dtype)
    erased_share, values = [], []
    for seed in range(300):
        rng = np.random.default_rng(seed)
        erased = random_erase(image, 0.6, mean, std, rng).to(torch.int32)
        rows, columns = ((erased != 3).any(0).any(axis).nonzero() for axis in (1, 0))
        if rows.numel() == 0:
            continue
        box = erased[:, rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        assert (box != 3).double().mean() > 0.95
        erased_share.append(box[0].numel() / 4800)
        values.append(box.flatten(1).double() / largest)
    assert 150 < len(erased_share) < 210
    assert 0.02 * 0.9 < min(erased_share) < max(erased_share) < 1.1 / 3
    noise = torch.cat(values, dim=1)
    assert noise.mean(1).tolist() == pytest.approx(mean, abs=0.01)
    assert noise.std(1).tolist() == pytest.approx(std, abs=0.01)
    assert (image.to(torch.int32) == 3).all()
    assert random_erase(image, 0.0, mean, std, np.random.default_rng(0)) is image


def test_normalization() -> None:
    mean, std = [0.5, 0.25], [0.5, 0.125]
    image = torch.tensor([[0, 255], [51, 255]], dtype=torch.uint8).reshape(1, 2, 1, 2)
    expected = torch.tensor([[-1.0, 1.0], [-0.4, 6.0]]).reshape(1, 2, 1, 2)
    assert torch.allclose(normalise(image, mean, std), expected, atol=1e-6)
    wide = (image.to(torch.int32) * 257).to(torch.uint16)
    assert torch.allclose(normalise(wide, mean, std), expected, atol=1e-6)
    assert normalise(image[0], mean, std).shape == (2, 1, 2)
    assert normalise(image, mean, std).dtype == torch.float32
    assert image.tolist() == [[[[0, 255]], [[51, 255]]]]  # the input is left alone


def card() -> Card:
    card = Card()
    card.add_image(ImageFacts("png", 8, 4, 4, (0.2, 0.4, 0.6), (0.05, 0.2, 0.4)), 10, None)
    return card


def test_statistics_are_taken_from_where_the_config_says() -> None:
    assert resolve_statistics(DataConfig(), None, 3) == ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    assert resolve_statistics(DataConfig(mean=[0.1, 1], std=[1, 0.5]), None, 2) == ([0.1, 1.0], [1.0, 0.5])
    mean, std = resolve_statistics(DataConfig(mean="dataset", std="dataset"), card(), 3)
    assert mean == pytest.approx([0.2, 0.4, 0.6])
    assert std == pytest.approx([0.1, 0.2, 0.2])


@pytest.mark.parametrize(
    ("config", "card", "channels", "message"),
    [
        (DataConfig(), None, 13, r"data\.mean=imagenet: ImageNet has 3 channels, not 13"),
        (DataConfig(mean=[0.5]), None, 1, r"data\.std=imagenet"),
        (DataConfig(mean="dataset"), None, 3, r"data\.mean=dataset: the shards have no dataset card"),
        (DataConfig(mean="dataset"), card(), 5, r"the card knows no 5-channel images"),
        (DataConfig(mean=[0.5, 0.5]), None, 3, r"2 numbers for 3 channels"),
        (DataConfig(mean=[0.5] * 3, std=[0.5, 0.0, 0.5]), None, 3, r"data\.std=.* above 0"),
        (DataConfig(mean="imagnet"), None, 3, r"data\.mean=imagnet: must be a list of 3 numbers"),
        (DataConfig(mean=0.5), None, 3, r"data\.mean=0\.5: must be a list"),
    ],
)
def test_statistics_that_do_not_fit_are_refused(
    config: DataConfig, card: Card | None, channels: int, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve_statistics(config, card, channels)
