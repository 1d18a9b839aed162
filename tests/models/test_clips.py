"""Models of clips: against a reference of Video Swin, across backends, and with the weights of images."""

from __future__ import annotations

import pytest
import torch

from swinv2_train.config.errors import ConfigError
from swinv2_train.config.model import ATTENTION_BACKENDS, ModelConfig, count_parameters, stage_geometry, variant
from swinv2_train.models import ImageClassifier, InputError, MaskedImageModel, SwinTransformerV2
from swinv2_train.models.attention.position_bias import table_bias
from swinv2_train.models.channel_dropout import channel_noise
from swinv2_train.models.geometry import resize_table
from tests.models.golden import fill_parameters
from tests.models.video_reference import video_swin

SMALL = {"embed_dim": 16, "depths": [2, 2, 1, 1], "num_heads": [1, 2, 4, 8], "drop_path": 0.0, "temporal_patch": 2}
V1 = {"norm_placement": "pre", "similarity": "dot", "position_bias": "table"}


def filled(model: torch.nn.Module) -> torch.nn.Module:
    fill_parameters(model)
    return model.double().eval()


@pytest.mark.parametrize(
    ("window", "clip", "stages"),
    [
        ((3, 3, 3), (12, 66, 92), 4),  # shifted along all axes, padded to whole windows in space
        ((3, 3, 3), (4, 66, 92), 4),  # two tokens of a window of three in time
        ((3, 3, 3), (2, 66, 92), 4),
        ((8, 7, 7), (32, 56, 56), 2),  # the windows of Video Swin, shifted by (4, 3, 3)
        ((8, 7, 7), (10, 56, 28), 1),
    ],
)
def test_the_settings_of_v1_give_video_swin(
    window: tuple[int, int, int], clip: tuple[int, int, int], stages: int
) -> None:
    """The reference gets the parameters as they are, and cuts the table of a short clip by the rule of Video Swin."""
    time, side, _ = window
    config = ModelConfig(**SMALL, **V1, window=side, temporal_window=time, pretrained_window=side)
    model = filled(SwinTransformerV2(config))
    clips = torch.randn(1, 3, *clip, dtype=torch.float64)
    expected = video_swin(model.state_dict(), clips, config.depths[:stages], window)
    for ours, theirs in zip(model(clips), expected, strict=stages == 4):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)


def test_a_bias_table_keeps_the_meaning_of_its_offsets_in_shorter_clips() -> None:
    stored = torch.arange(-3.0, 4).repeat_interleave(9)[:, None]  # the bias is the offset in time
    for time in (1, 2, 3, 4):
        table = table_bias(stored, (time, 2, 2), (4, 2, 2))
        assert table[0, :, 0, 0].tolist() == list(range(1 - time, time))
        assert torch.equal(table_bias(stored, (time, 3, 2), (4, 2, 2))[0, :, 2, 0], table[0, :, 0, 0])
    assert table_bias(stored, (6, 2, 2), (4, 2, 2)).shape == (1, 11, 3, 3)
    narrow = torch.randn(9, 2)
    assert torch.equal(table_bias(narrow, (1, 2), (2, 2)), resize_table(narrow.t().reshape(2, 3, 3), (1, 2)))


def results(model: torch.nn.Module, clips: torch.Tensor) -> list[torch.Tensor]:
    """Features of every stage, and the gradients of all parameters."""
    features = model(clips)
    loss = sum(feature.square().mean() for feature in features)
    return [*features, *torch.autograd.grad(loss, list(model.parameters()))]


SIDES = {
    "padded, all shifted": (10, 38, 28, [[3, 2], 4, 2, [2, 3]]),
    "one token in time": (2, 20, 36, 3),
    "official rule": (6, 24, 40, 4),
}
"""Frames, height, width, and windows."""


@pytest.mark.parametrize("case", SIDES)
def test_backends_and_checkpointing_agree(case: str) -> None:
    frames, height, width, window = SIDES[case]
    clips = torch.randn(2, 3, frames, height, width, dtype=torch.float64)
    rule = "official" if case == "official rule" else "per-axis"
    expected = None
    for backend in ATTENTION_BACKENDS:
        for period in (0, 1) if backend == "sdpa" else (1,):
            config = ModelConfig(
                **SMALL, window=window, window_rule=rule, temporal_window=[2, 3, 2, 4], attention=backend,
                checkpointing=period, sequential_chunk_mib=0.01,
            )  # fmt: skip
            found = results(filled(SwinTransformerV2(config)), clips)
            geometry = stage_geometry(config, height, width, frames)
            shapes = [(2, stage.time, stage.height, stage.width, stage.dim) for stage in geometry]
            assert [tuple(feature.shape) for feature in found[:4]] == shapes
            expected = expected or found
            for ours, reference in zip(found, expected, strict=True):
                torch.testing.assert_close(ours, reference, rtol=1e-8, atol=1e-10)


def test_features_and_gradients_of_a_bfloat16_model_of_clips_stay_close_to_float32() -> None:
    for backend in ATTENTION_BACKENDS:
        config = ModelConfig(**SMALL, window=4, temporal_window=2, attention=backend)
        narrow = filled(SwinTransformerV2(config)).bfloat16()
        wide = SwinTransformerV2(config)
        wide.load_state_dict(narrow.state_dict())
        clips = torch.randn(1, 3, 6, 24, 32)
        ours, reference = ([value.detach().float() for value in results(model, clips)] for model in (narrow, wide))
        for close, exact in zip(ours[:4], reference[:4], strict=True):
            assert (close - exact).norm() <= 0.04 * exact.norm()
        close, exact = (torch.cat([value.flatten() for value in values[4:]]) for values in (ours, reference))
        assert (close - exact).norm() <= 0.15 * exact.norm()


def test_a_window_of_several_kernel_blocks_can_be_masked_throughout_in_one() -> None:
    """torch's fused kernels read the keys in blocks of at most 512; the first ones of a late query are all -inf."""
    results = []
    for backend in ("reference", "sdpa"):
        config = ModelConfig(**{**SMALL, "depths": [2, 1, 1, 1]}, window=16, temporal_window=6, attention=backend)
        model = SwinTransformerV2(config).eval()
        fill_parameters(model)
        with torch.no_grad():
            results.append(model(torch.linspace(-2, 2, 3 * 16 * 64 * 64).view(1, 3, 16, 64, 64).sin())[0])
    torch.testing.assert_close(results[1], results[0], rtol=1e-3, atol=1e-4)


def test_a_clip_that_does_not_fit_is_refused() -> None:
    model = SwinTransformerV2(ModelConfig(**SMALL))
    with pytest.raises(InputError, match=r"clips of shape \(1, 3, 32, 32\): .* \(batch, 3, frames, height, width\)"):
        model(torch.zeros(1, 3, 32, 32))
    with pytest.raises(InputError, match="clips of 3 frames: the model needs a multiple of its temporal_patch=2"):
        model(torch.zeros(1, 3, 3, 32, 32))
    with pytest.raises(InputError, match=r"needs \(batch, 3, height, width"):
        SwinTransformerV2(ModelConfig(**{**SMALL, "temporal_patch": 0}))(torch.zeros(1, 3, 2, 32, 32))
    mask = torch.zeros(1, 2, 8, 8, dtype=torch.bool)
    with pytest.raises(InputError, match=r"token_mask of shape \(1, 2, 8, 8\): these images have \(1, 8, 8\) tokens"):
        model(torch.zeros(1, 3, 4, 32, 32), mask_token=torch.zeros(16), token_mask=mask)
    with pytest.raises(ConfigError, match="is for images"):
        SwinTransformerV2(ModelConfig(**SMALL, absolute_position=True), (32, 32))


def test_dropout_takes_the_given_channels_of_the_pooled_features_of_a_sample() -> None:
    config = ModelConfig(**SMALL, window=4, temporal_window=2)
    model = ImageClassifier(config, 5, dropout=0.5, head_std=0.01)
    assert model.head.weight.std().item() == pytest.approx(0.01, rel=0.2)
    assert not model.head.bias.any()
    fill_parameters(model)
    clips, noise = torch.randn(2, 3, 4, 32, 40), channel_noise(torch.tensor([3, 4]), 128)
    pooled = model.backbone(clips)[-1].mean((1, 2, 3))
    torch.testing.assert_close(model.eval()(clips, dropout_noise=noise), model.head(pooled))
    model.train()
    torch.testing.assert_close(model(clips, dropout_noise=noise), model.head(pooled * 2 * (noise >= 0.5)))
    torch.manual_seed(0)
    drawn = torch.rand(2, 128)
    torch.manual_seed(0)
    torch.testing.assert_close(model(clips), model(clips, dropout_noise=drawn))
    with pytest.raises(InputError, match=r"dropout_noise of shape \(2, 5\): the model needs \(2, 128\)"):
        model(clips, dropout_noise=noise[:, :5])


def test_simmim_masks_tubes_and_predicts_every_frame() -> None:
    config = ModelConfig(**SMALL, window=2, temporal_window=2)
    model = filled(MaskedImageModel(config))
    clips, mask = torch.randn(2, 3, 4, 38, 53, dtype=torch.float64), torch.rand(2, 10, 14) < 0.5
    out = model(clips, mask)
    assert out.shape == clips.shape
    features = model.encoder(clips, mask_token=model.mask_token.flatten(), token_mask=mask)[-1]
    # The pixel (r, c) of frame t comes from token (t // 2, r // 32, c // 32) of the last stage.
    weight, bias = model.decoder[0].weight.flatten(1).view(2, 3, 32, 32, -1), model.decoder[0].bias.view(2, 3, 32, 32)
    expected = features[1, 1, 1, 1] @ weight[1, 2, 34 - 32, 40 - 32] + bias[1, 2, 34 - 32, 40 - 32]
    torch.testing.assert_close(out[1, 2, 3, 34, 40], expected)
    changed = clips.clone()
    pixels = mask.repeat_interleave(4, 1).repeat_interleave(4, 2)[:, :38, :53]
    changed += 5 * pixels[:, None, None]
    assert torch.equal(model(changed, mask), out)


def test_the_giant_for_clips_is_laid_out_without_memory() -> None:
    """Stage 3 of the paper: 256 pixels, 8 tokens in time, window 16."""
    config = variant("swinv2_giant", window=16, temporal_patch=2, temporal_window=8)
    with torch.device("meta"):
        model = ImageClassifier(config, 400)
        shapes = [tuple(feature.shape) for feature in model.backbone(torch.empty(1, 3, 16, 256, 256))]
    assert shapes == [(1, 8, 64 // 2**stage, 64 // 2**stage, 512 * 2**stage) for stage in range(4)]
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert parameters == count_parameters(config, num_classes=400)
    images = count_parameters(variant("swinv2_giant"), num_classes=400)
    assert parameters - images == 3 * 16 * 512 + 512 * sum(config.depths), "a second frame, a third coordinate"
    geometry = stage_geometry(config, 256, 256, 16)
    assert [stage.window_tokens for stage in geometry] == [2048, 2048, 2048, 512]
