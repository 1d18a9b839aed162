"""Formulas of activations against the tensors that autograd saves."""

from __future__ import annotations

from functools import partial
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from swinv2_train.config.model import ATTENTION_BACKENDS, NORM_PLACEMENTS, ModelConfig, stage_geometry, variant
from swinv2_train.config.schema import Config, DataConfig, EngineConfig
from swinv2_train.config.tasks import ClassificationConfig, SimMIMConfig, TaskConfig, VideoConfig
from swinv2_train.models.attention.window_attention import WindowAttention
from swinv2_train.models.block import BlockWindow, SwinBlock
from swinv2_train.models.layers import LayerNorm
from swinv2_train.planner.activations import Block, Kernels, activations, block_saved, block_transient
from tests.planner.saved import default_dtype, efficient_attention, peak_of_step, saved_bytes, without_storage

pytestmark = pytest.mark.slow
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
GEOMETRIES = {
    "plain": (128, 4, (48, 48), (12, 12), False),
    "shifted": (128, 4, (48, 48), (12, 12), True),
    "padded": (256, 8, (30, 45), (7, 9), True),
    "wide": (64, 2, (64, 96), (32, 32), True),
    "clip": (64, 2, (7, 24, 36), (4, 12, 18), True),
}
"""Channels, heads, map, window, and shift of a block."""


def blocks(turn: int) -> list[tuple[str, str, str, str]]:
    """Return each combination of device, backend, and geometry with one precision; turn 1 has the other precision."""
    choices = product(enumerate(("cpu", "cuda")), enumerate(ATTENTION_BACKENDS), enumerate(GEOMETRIES))
    return [
        (device, list(DTYPES)[(i + j + k + turn) % 2], backend, geometry)
        for (i, device), (j, backend), (k, geometry) in choices
    ]


def built_block(geometry: str, model: ModelConfig, backend: str) -> tuple[SwinBlock, Tensor, Tensor]:
    """A block, an input of two images, and the factors of its branches."""
    dim, heads, sides, window, shifted = GEOMETRIES[geometry]
    attention = WindowAttention(
        dim,
        heads,
        window,
        backend=backend,
        chunk_mib=256.0,
        similarity=model.similarity,
        position_bias=model.position_bias,
    )
    block = SwinBlock(
        dim,
        attention,
        int(dim * model.mlp_ratio),
        window=BlockWindow(window, shifted),
        norm_placement=model.norm_placement,
        extra_norm=True,
    )
    x = torch.empty(2, *sides, dim, requires_grad=True)
    return block, x, torch.empty(2, 2, dtype=torch.float32)


def planned_block(gpu: bool, precision: str, geometry: str, model: ModelConfig, backend: str) -> Block:
    """The same block for the formulas."""
    dim, heads, sides, window, shifted = GEOMETRIES[geometry]
    *time, height, width = sides
    model.embed_dim, model.num_heads, model.window = dim, [heads] * 4, [list(window[-2:])] * 4
    if time:
        model.temporal_patch, model.temporal_window = 1, window[0]
    stage = stage_geometry(model, height * model.patch_size, width * model.patch_size, *time)[0]
    return Block(model, stage, backend, 2, shifted, True, Kernels(DTYPES[precision].itemsize, gpu))


def block_error(monkeypatch, device: str, precision: str, geometry: str, model: ModelConfig, backend: str) -> float:
    """The relative error of the formula of the saved bytes for one block."""
    if device == "cuda":
        monkeypatch.setattr(F, "scaled_dot_product_attention", efficient_attention)
    with without_storage(), torch.device(device), default_dtype(DTYPES[precision]):
        block, x, scales = built_block(geometry, model, backend)
        found = saved_bytes(block, lambda: block(x, scales))
    return block_saved(planned_block(device == "cuda", precision, geometry, model, backend)) / found - 1


@pytest.mark.parametrize(("device", "precision", "backend", "geometry"), blocks(0))
def test_a_block_saves_what_the_formula_says(monkeypatch, device, precision, backend, geometry):
    assert abs(block_error(monkeypatch, device, precision, geometry, ModelConfig(), backend)) < 0.002


@pytest.mark.parametrize("backend", ATTENTION_BACKENDS)
@pytest.mark.parametrize(("device", "precision"), product(("cpu", "cuda"), DTYPES))
def test_a_dot_product_saves_no_unit_vectors(monkeypatch, device, precision, backend):
    model = ModelConfig(similarity="dot", position_bias="table", mlp_ratio=3.0)
    assert abs(block_error(monkeypatch, device, precision, "padded", model, backend)) < 0.002


@pytest.mark.parametrize("placement", NORM_PLACEMENTS)
@pytest.mark.parametrize(("device", "precision"), product(("cpu", "cuda"), DTYPES))
def test_every_norm_saves_its_input(monkeypatch, device, precision, placement):
    for geometry in GEOMETRIES:
        model = ModelConfig(norm_placement=placement)
        assert abs(block_error(monkeypatch, device, precision, geometry, model, "sequential")) < 0.002


@pytest.mark.parametrize(("device", "precision", "backend", "geometry"), blocks(1))
def test_a_checkpointed_block_needs_what_the_formula_says(monkeypatch, device, precision, backend, geometry):
    """Within 3%. Tensors of a GPU cannot run backward without one, so tensors of a CPU run its operators."""
    if gpu := device == "cuda":
        monkeypatch.setattr(F, "scaled_dot_product_attention", efficient_attention)
        monkeypatch.setattr(LayerNorm, "forward", nn.LayerNorm.forward)  # a GPU does not widen the input
    model = ModelConfig(drop_path=0.1)
    with without_storage(), default_dtype(DTYPES[precision]):
        block, x, scales = built_block(geometry, model, backend)
        run = partial(checkpoint, block, x, scales, use_reentrant=False, preserve_rng_state=False)
        found = peak_of_step(block, lambda: (2 * run()).sum())
    planned = planned_block(gpu, precision, geometry, model, backend)
    shared = 0 if planned.moved else planned.input  # not created by the block
    assert block_saved(planned) - shared + block_transient(planned) == pytest.approx(found, rel=0.03)


TASKS = {"simmim": SimMIMConfig(), "classification": ClassificationConfig(num_classes=1000)}


PAIRS = (
    ("fp32", "reference", 0), ("bf16", "reference", 1), ("bf16", "sdpa", 0), ("fp32", "sdpa", 1),
    ("fp32", "sequential", 0), ("bf16", "sequential", 1),
)  # fmt: skip
"""Precision, backend, and period of checkpointing: every pair of values, because the tests of blocks hold more."""


def small(task: TaskConfig, precision: str, size: tuple[int, int], window: int, backend: str, period: int) -> Config:
    """A narrow model with shifted blocks, and extra norms by position and at the end of a stage."""
    norms = {"extra_norm_period": 3, "extra_norm_stage": True}
    sides = {"embed_dim": 32, "num_heads": [1, 2, 4, 8], "depths": [2, 1, 3, 1]}
    model = variant("swinv2_tiny", window=window, attention=backend, checkpointing=period, **norms, **sides)
    engine = EngineConfig(precision=precision)
    return Config(model=model, task=task, data=DataConfig(resolution=list(size)), engine=engine)


def loss_of(config: Config, images: int):
    """A model with real parameters, and a function that computes its loss."""
    task = config.task.implementation()(config, [0.5] * 3, [0.5] * 3)
    with default_dtype(DTYPES[config.engine.precision]):
        model = task.build_model().train()
    batch = task.example_batch(images)
    return model, lambda: sum(task.loss(model, batch).terms.values())


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize(("precision", "backend", "period"), PAIRS)
def test_a_model_saves_what_the_formula_says(precision, backend, period, task):
    """Within 2%, for a map that is not square and whose later stages are padded."""
    config = small(TASKS[task], precision, (128, 192), 8, backend, period)
    model, loss = loss_of(config, 2)
    expected = activations(config, 2, gpu=False)[-1].saved
    assert saved_bytes(model, loss) == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize(
    ("task", "precision", "backend", "period"),
    [
        (SimMIMConfig(), "bf16", "sdpa", 0),
        (SimMIMConfig(), "fp32", "sequential", 1),
        (VideoConfig(num_classes=1000), "fp32", "sdpa", 1),
        (VideoConfig(num_classes=1000), "bf16", "reference", 0),
    ],
)
def test_a_model_of_clips_saves_and_needs_what_the_formulas_say(precision, backend, period, task):
    """Within 2% and 5%, with windows that are padded and shifted in time and in space."""
    config = small(task, precision, (96, 192), 8, backend, period)
    config.model.temporal_patch, config.model.temporal_window, config.data.frames = 2, 4, 14
    model, loss = loss_of(config, 2)
    reached = activations(config, 2, gpu=False)
    assert saved_bytes(model, loss) == pytest.approx(reached[-1].saved, rel=0.02)
    if task.name == "video":
        expected = max(each.saved + each.recomputed + each.transient for each in reached)
        with without_storage():
            assert peak_of_step(*loss_of(config, 2)) == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize(("precision", "backend", "period"), PAIRS)
def test_the_peak_of_forward_and_backward(precision, backend, period):
    """Within 5%."""
    config = small(TASKS["classification"], precision, (192, 192), 12, backend, period)
    reached = activations(config, 4, gpu=False)
    expected = max(each.saved + each.recomputed + each.transient for each in reached)
    with without_storage():
        assert peak_of_step(*loss_of(config, 4)) == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize(("backend", "period"), [("sdpa", 0), ("sequential", 1)])
def test_the_giant_at_full_size_with_the_kernels_of_a_gpu(monkeypatch, backend, period):
    monkeypatch.setattr(F, "scaled_dot_product_attention", efficient_attention)
    model = variant("swinv2_giant", window=12, attention=backend, checkpointing=period)
    config = Config(model=model, task=ClassificationConfig(num_classes=10), data=DataConfig(resolution=192))
    with without_storage(), torch.device("cuda"), default_dtype(torch.bfloat16):
        built = config.task.implementation().model_of(config, (192, 192)).train()
        images, noise = torch.empty(2, 3, 192, 192), torch.empty(2, 50, 2, dtype=torch.float32)
        found = saved_bytes(built, lambda: built(images, noise=noise))
    assert found == pytest.approx(activations(config, 2, gpu=True)[-1].saved, rel=0.01)
