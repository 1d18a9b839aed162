"""Formulas of segmenters: parameters and arithmetic against the model, memory against what autograd saves."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
import torch
from torch import nn

from swinv2_train.config.compose import compose
from swinv2_train.config.data import DataConfig
from swinv2_train.config.errors import ConfigError
from swinv2_train.config.model import ModelConfig, count_parameters, variant
from swinv2_train.config.plan import make_plan
from swinv2_train.config.schema import Config, EngineConfig
from swinv2_train.config.tasks import SegmentationConfig
from swinv2_train.models.segmenter import Segmenter
from swinv2_train.planner.activations import activations
from swinv2_train.planner.fit import Gpu, check_fit
from swinv2_train.tasks.segmentation.task import Segmentation
from tests.planner.saved import default_dtype, peak_of_step, saved_bytes

DECODERS = ("upernet", "fpn", "linear")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def made(precision: str = "fp32", resolution: tuple[int, int] = (96, 160), **task: object) -> Config:
    section = SegmentationConfig(**{"num_classes": 21, "channels": 64, "auxiliary_channels": 32} | task)
    section.complete({}, None)
    model = ModelConfig(embed_dim=16, depths=[1, 1, 1, 1], num_heads=[1, 2, 2, 4], window=4)
    data, engine = DataConfig(resolution=list(resolution)), EngineConfig(precision=precision)
    return Config(model=model, task=section, data=data, engine=engine)


def built(config: Config, strip_bytes: int | None = None) -> tuple[Segmentation, nn.Module]:
    task = Segmentation(config, [0.5] * 3, [0.5] * 3)
    if strip_bytes is not None:
        task.pixel_loss = replace(task.pixel_loss, strip_bytes=strip_bytes)
    with default_dtype(DTYPES[config.engine.precision]):
        return task, task.build_model().train()


def test_the_parameters_are_those_of_the_model() -> None:
    for decoder, auxiliary in product(DECODERS, (0.0, 0.4)):
        config = made(decoder=decoder, auxiliary_weight=auxiliary, num_classes=150, channels=512)
        config.model = variant("swinv2_tiny", in_channels=4)
        with torch.device("meta"):
            model = Segmenter(config.model, config.task, 150)
        assert config.task.describe(config).parameters == sum(each.numel() for each in model.parameters())


@pytest.mark.parametrize("decoder", DECODERS)
def test_the_arithmetic_is_that_of_all_convolutions_and_norms(decoder: str) -> None:
    config = made(decoder=decoder)
    _, model = built(config)
    found = 0

    def count(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        nonlocal found
        if isinstance(module, nn.Conv2d) and isinstance(output, torch.Tensor):
            positions = output.shape[-2] * output.shape[-1]
            if isinstance(inputs[0], torch.Tensor):
                found += positions * module.weight.numel()
            else:  # one layer on the maps of all stages
                found += sum(x.shape[-2] * x.shape[-1] * x.shape[1] * len(module.weight) for x in inputs[0])
        elif isinstance(module, nn.LayerNorm):
            found += output[0].numel()

    for name, part in model.named_children():
        if name != "backbone":
            for module in part.modules():
                module.register_forward_hook(count)
    model(torch.zeros(1, 3, 96, 160))
    assert config.task.head_macs(config) == found


def test_at_the_size_of_the_publication_the_arithmetic_is_the_published_one() -> None:
    """UPerNet on Swin V1-T has 945 GMACs at 512 x 2048, 94 of them in a backbone of 4.5 at 224 x 224."""
    config = made(num_classes=150, channels=512, auxiliary_channels=256, resolution=(512, 2048))
    config.model = variant("swinv2_tiny")
    assert config.task.head_macs(config) / 1e9 + 94 == pytest.approx(945, rel=0.01)


@pytest.mark.parametrize(("decoder", "dropout"), product(DECODERS, (0.0, 0.1)))
def test_a_segmenter_saves_what_the_formula_says(decoder: str, dropout: float) -> None:
    config = made(decoder=decoder, dropout=dropout)
    task, model = built(config)
    batch = task.example_batch(2)
    found = saved_bytes(model, lambda: sum(task.loss(model, batch).terms.values()))
    assert activations(config, 2, gpu=False)[-1].saved == pytest.approx(found, rel=0.002)
    # The same without the backbone: a small part of the memory with the linear decoder.
    backbone = activations(config, 2, gpu=False)[-1].saved - 2 * config.task.head_bytes(config, 4)
    assert 2 * config.task.head_bytes(config, 4) == pytest.approx(found - backbone, rel=0.015)


def test_in_half_precision_it_saves_less() -> None:
    """Within 3%: on a CPU, LayerNorms save their input in fp32, which the formula of a head does not distinguish."""
    config = made("bf16")
    task, model = built(config)
    batch = task.example_batch(2)
    found = saved_bytes(model, lambda: sum(task.loss(model, batch).terms.values()))
    assert activations(config, 2, gpu=False)[-1].saved == pytest.approx(found, rel=0.03)


@pytest.mark.slow
@pytest.mark.parametrize(("images", "strip", "dice"), [(1, 1 << 20, 0.0), (2, 1 << 18, 0.0), (1, 1 << 20, 1.0)])
def test_the_loss_needs_some_strips_in_backward(
    monkeypatch: pytest.MonkeyPatch, images: int, strip: int, dice: float
) -> None:
    monkeypatch.setattr("swinv2_train.config.tasks.segmentation.STRIP_BYTES", strip)
    config = made("bf16", (64, 64), decoder="linear", num_classes=150, dice_weight=dice)
    task, model = built(config, strip)
    batch = task.example_batch(images)

    def loss() -> torch.Tensor:
        return sum(task.loss(model, batch).terms.values())

    saved, peak = saved_bytes(model, loss), peak_of_step(model, loss)
    assert config.task.head_transient(config, 2, images) == pytest.approx(peak - saved, rel=0.12)


def test_the_giant_fits_the_gpus_of_its_recipe_and_no_smaller_ones() -> None:
    config = compose(["+experiment=ade20k_giant"])
    plan = make_plan(config, 32, config.data.expected_samples)
    assert check_fit(config, plan, Gpu("NVIDIA A100-SXM4-40GB", 42_405_855_232)) == []
    with pytest.raises(ConfigError, match=r"a rank needs 19\.\d\d GiB of GPU memory when its backward"):
        check_fit(config, plan, Gpu("RTX", 16 << 30))
    backbone = count_parameters(config.model)
    assert config.task.describe(config).parameters - backbone == 55_139_478 + 4_757_654 + 2 * 7 * 512
