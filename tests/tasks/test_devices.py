"""No forward pass or loss mixes devices: every task and attention backend, with fake tensors on a GPU.

A fake tensor has a device, a dtype, and a shape, but no memory, so this needs no GPU. Only a backward pass would.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from swinv2_train.config.compose import compose
from swinv2_train.config.model import ATTENTION_BACKENDS
from swinv2_train.config.tasks import TASK_SECTIONS
from swinv2_train.data.batch import Batch, Ragged, tensors, to_device
from swinv2_train.tasks.task import Task

CUDA = torch.device("cuda", 0)
TINY = [
    "data.shards=x", "data.resolution=[40,56]", "model.embed_dim=16", "model.num_heads=[1,2,4,8]",
    "model.depths=[2,1,1,1]", "model.window=4", "model.drop_path=0.2", "optim.steps=10",
]  # fmt: skip
OPTIONS = {
    "simmim": [["task.mask_patch_size=16"], ["task.norm_target_window=0"]],
    "classification": [
        ["task.num_classes=5", "task.mixup=0.8", "task.cutmix=1.0", "task.label_smoothing=0.1"],
        ["task.num_classes=5", "task.class_weights=[1,2,3,4,5]"],
        ["task.num_classes=9", "task.multi_label=true", "task.class_weights=[1,2,3,4,5,6,7,8,9]"],
    ],
    "segmentation": [
        ["task.num_classes=3", "task.class_weights=[1,2,3]", "task.dice_weight=1", "task.focal_gamma=2"],
        ["task.num_classes=300", "task.decoder=fpn", "task.auxiliary_weight=0"],
    ],
    "video": [["task.num_classes=5", "data.frames=6", "model.temporal_patch=2", "model.temporal_window=2"]],
}
"""By task; those after the first are tried with one backend."""
CASES = [
    (name, options, backend)
    for name in TASK_SECTIONS
    if name != "detection"  # the number of its boxes depends on values, which fake tensors do not have
    for number, options in enumerate(OPTIONS.get(name, [[]]))
    for backend in (ATTENTION_BACKENDS if number == 0 else ["sdpa"])
]


@pytest.fixture(autouse=True)
def _no_fake_tensor_stays() -> Iterator[None]:
    """Empty the caches of the package, which may have kept tensors."""
    yield
    for name, module in list(sys.modules.items()):
        if name.startswith("swinv2_train"):
            for value in vars(module).values():
                if isinstance(value, functools._lru_cache_wrapper):
                    value.cache_clear()


def make(name: str, options: list[str], *more: str) -> Task:
    config = compose([*TINY, f"task={name}", *options, *more])
    return config.task.implementation().from_data(config, [0.4, 0.5, 0.6], [0.2, 0.3, 0.25], None)


def faked(mode: FakeTensorMode, batch: Batch) -> Batch:
    """The batch in fake memory of the host."""
    return {
        key: mode.from_tensor(value) if isinstance(value, torch.Tensor)
        else value._with(mode.from_tensor) if isinstance(value, Ragged)
        else value
        for key, value in batch.items()
    }  # fmt: skip


def in_precision(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """As `model.to(dtype)`, which cannot exchange fake parameters."""
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter(parameter.detach().to(dtype)))
        for name, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, name, buffer.to(dtype) if buffer.is_floating_point() else buffer)
    return model


@pytest.mark.slow
@pytest.mark.parametrize(("name", "options", "backend"), CASES, ids=str)
def test_forward_pass_and_loss_stay_on_the_device(name: str, options: list[str], backend: str) -> None:
    task = make(name, options, f"model.attention={backend}")
    batch = task.example_batch(4)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        with torch.device("cuda"):
            model = in_precision(task.build_model(), torch.bfloat16)
        moved = to_device(faked(mode, batch), CUDA)
        assert {tensor.device for tensor in tensors(moved)} == {CUDA}
        assert moved["image"].dtype == torch.uint8, "images are normalized on the device"
        assert task.images(moved).device == CUDA
        terms = task.loss(model.train(), moved).terms
        assert {term.device for term in terms.values()} == {CUDA}


@pytest.mark.slow
def test_a_mixed_pass_would_be_noticed() -> None:
    """The test above can fail: a batch that was left on the host."""
    task = make("simmim", [])
    batch = task.example_batch(2)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        with torch.device("cuda"):
            model = task.build_model()
        with pytest.raises(RuntimeError, match="same device"):
            task.loss(model, faked(mode, batch))
