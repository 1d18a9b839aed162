"""SatVision-TOA, the public SwinV2-G with SimMIM: its names, its extra norms, and its size."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from swinv2_train.config.errors import ConfigError
from swinv2_train.config.model import ModelConfig, variant
from swinv2_train.interop.load import load_model, source_config
from swinv2_train.interop.metadata import infer_model
from swinv2_train.interop.source import open_source
from swinv2_train.interop.structure import check_structure
from swinv2_train.interop.transfer import plan_transfer
from swinv2_train.models import MaskedImageModel
from swinv2_train.models.state import state_shapes
from tests.interop.files import official_buffers
from tests.interop.satvision import deepspeed_file, random_state, satvision_shapes
from tests.models.memory import LiveBytes
from tests.models.plain import plain_features

DEPTHS, HEADS, CHANNELS, PERIOD = [2, 1, 4, 1], [1, 2, 2, 4], 14, 3
OVERRIDES = [f"data.mean=[{','.join('0' * CHANNELS)}]", f"data.std=[{','.join('1' * CHANNELS)}]"]
GIANT = {"depths": [2, 2, 42, 2], "in_channels": 14, "extra_norm_stage": True, "window": 8}
NAME = "mp_rank_00_model_states.pt"


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    shapes = satvision_shapes(8, DEPTHS, HEADS, CHANNELS, PERIOD)
    buffers = official_buffers(ModelConfig(embed_dim=8, depths=DEPTHS, num_heads=HEADS, window=2), 32)
    return {**random_state(shapes), **{f"encoder.{name}": tensor for name, tensor in buffers.items()}}


@pytest.fixture(scope="module")
def file(state: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("satvision") / NAME
    torch.save(deepspeed_file(state), path)
    return path


def test_the_encoder_computes_what_the_definition_says(file: Path, state: dict[str, Tensor]) -> None:
    loaded = load_model(file, OVERRIDES)
    model = loaded.config.model
    assert (model.extra_norm_period, model.extra_norm_stage, model.window) == (PERIOD, True, 2)
    assert (model.window_rule, model.in_channels, loaded.config.data.resolution) == ("official", CHANNELS, 32)
    assert any("argparse.Namespace" in note for note in loaded.source.notes)
    assert isinstance(loaded.model, MaskedImageModel)
    image = torch.randn(CHANNELS, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    plain = {key.removeprefix("encoder.").replace("norm3", "enorm"): value.double() for key, value in state.items()}
    with torch.no_grad():
        actual = loaded.model.double().encoder(image.unsqueeze(0))
        expected = plain_features(plain, image, 4, DEPTHS, HEADS, (2, 2))
    for ours, definition in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours[0], definition, rtol=0, atol=2e-6)


def test_a_file_is_read_a_piece_at_a_time(file: Path, state: dict[str, Tensor]) -> None:
    key, piece = "layers.2.blocks.1.mlp.fc1.weight", 500
    with open_source(file) as source, LiveBytes() as memory:
        values = state[f"encoder.{key}"].flatten().float()
        kept, memory.peak = memory.live, memory.live
        for start in range(0, values.numel(), piece):
            assert torch.equal(source.elements(key, start, start + piece), values[start : start + piece])
        assert memory.peak - kept <= 2 * 4 * piece


def test_every_tensor_of_the_giant_has_its_place(tmp_path: Path) -> None:
    """3 billion parameters by name and shape, each with one value in storage."""
    giant = variant("swinv2_giant", **GIANT)
    shapes = satvision_shapes(512, giant.depths, giant.num_heads, 14, 6)
    hollow = {name: torch.zeros(1).bfloat16().expand(shape) for name, shape in shapes.items()}
    buffers = official_buffers(giant, 128)
    content = deepspeed_file({**hollow, **{f"encoder.{name}": tensor for name, tensor in buffers.items()}})
    torch.save(content, tmp_path / NAME)
    with torch.device("meta"):
        model = MaskedImageModel(giant)
    with open_source(tmp_path / NAME) as source:
        read = source.metadata["model"]
        assert (read["extra_norm_period"], read["extra_norm_stage"]) == (6, True)
        assert (read["depths"], read["window"]) == ([2, 2, 42, 2], 8)
        assert source.metadata["data"] == {"resolution": [128, 128]}
        transfer = plan_transfer(source, state_shapes(model), giant)
        renamed = {row.key for row in transfer.of("renamed")}
        assert renamed == source.shapes.keys() - {"decoder.0.weight", "decoder.0.bias"}
        assert not transfer.of("new")
        assert len(transfer.of("dropped")) == len(buffers)
        assert source.renamed["layers.3.blocks.1.enorm.bias"] == "encoder.layers.3.blocks.1.norm3.bias"
        with pytest.raises(ConfigError, match=r"model.depths=.*: .* 2 blocks in layers.3.blocks, the model 4"):
            check_structure(source, variant("swinv2_giant"))
        with pytest.raises(ConfigError, match=r"extra_norm_stage=false: .*; set model.extra_norm_stage=true"):
            check_structure(source, variant("swinv2_giant", depths=[2, 2, 42, 2]))
        with pytest.raises(ConfigError, match=r"nor the standard deviation .* data.mean=\[0.5(,0.5){13}\] data.std="):
            source_config(source)


def shapes_with(places: set[tuple[int, int]]) -> dict[str, tuple[int, ...]]:
    shapes = satvision_shapes(8, [2, 2, 6, 2], [1, 2, 2, 4], 3, 100)
    found = {key.removeprefix("encoder."): shape for key, shape in shapes.items() if "norm3" not in key}
    return found | {f"layers.{stage}.blocks.{block}.enorm.weight": (8,) for stage, block in places}


ENDS = {(0, 1), (1, 1), (2, 5), (3, 1)}


@pytest.mark.parametrize(
    ("places", "period", "ends"),
    [
        (set(), 0, False),
        ({(2, 5)}, 6, False),  # the sizes of the paper
        (ENDS, 0, True),
        (ENDS | {(2, 1), (2, 3)}, 2, False),
        (ENDS | {(2, 2)}, 3, True),
        (ENDS | {(2, 3)}, 4, True),
    ],
)
def test_extra_norms_tell_their_period_and_the_ends(places: set[tuple[int, int]], period: int, ends: bool) -> None:
    read = infer_model(shapes_with(places), Path("x.pth"))
    assert (read["extra_norm_period"], read["extra_norm_stage"]) == (period, ends)


@pytest.mark.parametrize("places", [{(2, 5), (0, 1)}, ENDS | {(2, 1), (2, 2)}, ENDS - {(1, 1)}])
def test_irregular_extra_norms_are_refused(places: set[tuple[int, int]]) -> None:
    with pytest.raises(ConfigError, match=r"the extra norms are not every \d blocks of a stage: there is"):
        infer_model(shapes_with(places), Path("x.pth"))
