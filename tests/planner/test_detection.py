"""Formulas of detectors: parameters and arithmetic against the model, memory against what autograd saves."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor, nn

from swinv2_train.config.data import DataConfig
from swinv2_train.config.model import ModelConfig
from swinv2_train.config.schema import Config, EngineConfig
from swinv2_train.models.detection import Bitmaps, Detector, Targets
from swinv2_train.models.detection.global_attention import GlobalAttention
from swinv2_train.planner.activations import activations
from tests.models.detection.made import KINDS, TINY, section
from tests.planner.saved import peak_of_step, saved_bytes

SIZE = (96, 128)


def made(kind: str, **task: object) -> Config:
    settings = {"channels": 32, "mask_channels": 24, "box_hidden": 64, "roi_samples": 40, "proposals": 200} | task
    return Config(
        model=ModelConfig(**TINY),
        task=section(kind, num_classes=7, **settings),
        data=DataConfig(resolution=list(SIZE)),
        engine=EngineConfig(precision="fp32"),
    )


def built(config: Config) -> Detector:
    return Detector(config.model, config.task, config.task.num_classes).train()


@pytest.mark.parametrize("kind", KINDS)
def test_the_parameters_are_those_of_the_model(kind: str) -> None:
    for masks, norm, agnostic in product((True, False), ("group", "none"), (True, False)):
        config = made(kind, masks=masks, head_norm=norm, class_agnostic=agnostic)
        with torch.device("meta"):
            model = built(config)
        assert config.task.describe(config).parameters == sum(each.numel() for each in model.parameters())


def filled(config: Config) -> tuple[Tensor, Tensor, list[Targets], dict[str, Tensor]]:
    """An image full of objects, so that every sample is drawn."""
    task = config.task
    boxes = torch.tensor(
        [[x, y, x + 30, y + 28] for x in range(0, 96, 16) for y in range(0, 64, 16)], dtype=torch.float32
    )
    classes = torch.arange(len(boxes)) % task.num_classes
    masks = None
    if task.with_masks:
        windows = torch.stack([boxes[:, 1], boxes[:, 0], boxes[:, 3], boxes[:, 2]], dim=1).long()
        masks = Bitmaps(torch.full((len(boxes) * 30 * 28 // 8,), 255, dtype=torch.uint8), windows)
    more = {"seeds": torch.tensor([1])}
    if task.semantic_classes:
        more["semantic"] = torch.zeros(1, *SIZE, dtype=torch.uint8)
    target = Targets(boxes, classes, torch.zeros(0, 4), masks)
    return torch.randn(1, 3, *SIZE), torch.tensor([SIZE]), [target], more


@pytest.mark.parametrize("kind", KINDS)
def test_the_arithmetic_is_that_of_all_layers_with_all_samples(kind: str) -> None:
    config = made(kind)
    model, found = built(config), 0

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal found
        if isinstance(module, nn.Conv2d):
            found += output[0, 0].numel() * module.weight.numel() * len(output)
        elif isinstance(module, nn.ConvTranspose2d):
            found += inputs[0][0, 0].numel() * module.weight.numel() * len(output)
        elif isinstance(module, nn.Linear):
            found += output[..., 0].numel() * module.weight.numel()
        elif isinstance(module, nn.LayerNorm):
            found += output.numel()
        elif isinstance(module, GlobalAttention):
            found += 2 * output[0, ..., 0].numel() ** 2 * output.shape[-1]
        elif hasattr(module, "initial_std") and not isinstance(module, nn.Linear):  # offsets of a box per class
            found += len(output) * module.weight.numel()

    for name, part in model.named_children():
        if name != "backbone":
            for module in part.modules():
                module.register_forward_hook(count)
    images, sizes, targets, more = filled(config)
    model(images, sizes, targets, **more)
    assert config.task.head_macs(config) == found


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "element"), [*((kind, 4) for kind in KINDS), ("cascade", 2)])
def test_a_detector_saves_what_the_formula_says(kind: str, element: int) -> None:
    config = made(kind, channels=64, mask_channels=64, box_hidden=256)
    config.engine.precision = {4: "fp32", 2: "bf16"}[element]
    dtype = {4: torch.float32, 2: torch.bfloat16}[element]
    model = built(config).to(dtype)
    images, sizes, targets, more = filled(config)
    images = images.to(dtype)

    def loss() -> Tensor:
        return sum(model(images, sizes, targets, **more).values())

    found = saved_bytes(model, loss)
    saved = activations(config, 1, gpu=False)[-1].saved
    backbone = saved - config.task.head_bytes(config, element)
    assert backbone > 0
    assert config.task.head_bytes(config, element) == pytest.approx(found - backbone, rel=0.005)
    # Other formulas count the gradients of parameters.
    largest = element * max(parameter.numel() for parameter in model.heads.parameters())
    created = peak_of_step(model, loss) - found
    assert created - largest < config.task.head_transient(config, element, 1) < 1.3 * created
