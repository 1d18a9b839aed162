"""The amplitudes of a signal propagation plot are those of the maps they are of, and recording leaves no trace."""

from __future__ import annotations

import weakref

import pytest
import torch
from torch import nn

from swinv2_train.config.model import NORM_PLACEMENTS
from swinv2_train.models import ImageClassifier, MaskedImageModel, SwinTransformerV2, record_activations
from swinv2_train.models import activations as signal_module
from swinv2_train.models.activations import amplitude
from tests.models.golden import fill_parameters, golden_config


def filled(build=ImageClassifier, arguments=(5,), dtype=torch.float32, **fields):
    model = build(golden_config(**{"depths": [2, 1, 2, 1], "drop_path": 0.5, **fields}), *arguments).to(dtype)
    fill_parameters(model)
    return model


def channel_variance(x):
    """Channel by channel, in plain words."""
    channels = [x[..., channel].flatten().double() for channel in range(x.shape[-1])]
    return sum((values - values.mean()).square().mean().item() for values in channels) / len(channels)


def expected_signal(backbone, images):
    """Every block written out, for a model in evaluation mode."""
    rows, x = [], backbone.patch_embed(images)
    for stage in backbone.layers:
        for block in stage.blocks:
            branches = []
            for branch, norm, norm_out in (
                (block._attend, block.norm1, block.norm1_out),
                (block.mlp, block.norm2, block.norm2_out),
            ):
                placement = block.norm_placement
                added = branch(norm(x) if placement in ("pre", "sandwich") else x)
                if placement in ("res-post", "sandwich"):
                    added = (norm_out or norm)(added)
                branches.append(channel_variance(added))
                x = norm(x + added) if placement == "post" else x + added
            x = x if block.enorm is None else block.enorm(x)
            rows.append((channel_variance(x), max(branches)))
        if stage.downsample is not None:
            x = stage.downsample(x)
    return rows


def values(signal):
    return [(block.main, block.branch) for block in signal.blocks]


def hooks(model):
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


@pytest.mark.parametrize("placement", NORM_PLACEMENTS)
def test_amplitudes_of_both_branches(placement):
    """On images that are padded: what is padded does not count."""
    model = filled(norm_placement=placement, extra_norm_period=2).eval()
    images = torch.randn(2, 3, 50, 70)
    with torch.no_grad(), record_activations(model) as signal:
        assert signal.blocks == []
        model(images)
    assert [block.name for block in signal.blocks] == [
        *("layers.0.blocks.0", "layers.0.blocks.1", "layers.1.blocks.0"),
        *("layers.2.blocks.0", "layers.2.blocks.1", "layers.3.blocks.0"),
    ]
    with torch.no_grad():
        expected = expected_signal(model.backbone, images)
    for ours, plain in zip(values(signal), expected, strict=True):
        assert ours == pytest.approx(plain, rel=1e-4)


def test_it_is_the_average_channel_variance_of_timm():
    timm_model = pytest.importorskip("timm.utils.model")
    backbone, outputs = filled(SwinTransformerV2, ()).eval(), []
    backbone.layers[0].blocks[0].register_forward_hook(lambda module, args, output: outputs.append(output))
    with torch.no_grad(), record_activations(backbone) as signal:
        backbone(torch.randn(2, 3, 32, 32))
    theirs = timm_model.avg_ch_var(None, None, outputs[0].permute(0, 3, 1, 2))
    assert signal.blocks[0].main == pytest.approx(theirs * 127 / 128, rel=1e-5)  # theirs divides by n - 1


def test_forward_passes_are_averaged_and_reading_does_not_end_it():
    model = filled(MaskedImageModel, ()).eval()
    images, token_mask = torch.randn(3, 1, 3, 32, 32), torch.rand(3, 1, 8, 8) < 0.5
    alone = []
    for image, mask in zip(images, token_mask, strict=True):
        with torch.inference_mode(), record_activations(model) as signal:
            model(image, mask)
        alone.append(values(signal))
    with torch.no_grad(), record_activations(model) as signal:
        for index, (image, mask) in enumerate(zip(images, token_mask, strict=True)):
            model(image, mask)
            assert signal.passes == index + 1
            expected = torch.tensor(alone[: index + 1]).mean(0).flatten().tolist()
            assert torch.tensor(values(signal)).flatten().tolist() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("checkpointing", [0, 1])
def test_training_with_recomputation_counts_a_block_once(checkpointing, monkeypatch):
    measured = []
    monkeypatch.setattr(signal_module, "amplitude", lambda x: measured.append(1) or amplitude(x))
    model = filled(checkpointing=checkpointing).train()
    images = torch.randn(2, 3, 32, 32)
    kept = torch.full((2, 6, 2), 0.999)
    with record_activations(model) as signal:
        for factor in (1.0, 3.0):
            model(images * factor, kept).sum().backward()
    assert signal.passes == 2
    assert len(measured) == 2 * 6 * 3  # passes, blocks, and two branches and the main one
    plain = filled().train()
    with torch.no_grad(), record_activations(plain) as expected:
        for factor in (1.0, 3.0):
            plain(images * factor, kept)
    for ours, reference in zip(values(signal), values(expected), strict=True):
        assert ours == pytest.approx(reference, rel=1e-5)


def test_a_branch_is_measured_before_stochastic_depth():
    model = filled().train()
    with torch.no_grad(), record_activations(model) as signal:
        model(torch.randn(2, 3, 32, 32), torch.zeros(2, 6, 2))  # every branch of every block but the first is lost
    assert all(block.branch > 0 for block in signal.blocks)


def test_bfloat16_and_wrapped_models():
    narrow = filled(dtype=torch.bfloat16).eval()
    wide = filled().eval()
    wide.load_state_dict(narrow.state_dict())
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad(), record_activations(nn.Sequential(narrow)) as ours, record_activations(wide) as reference:
        narrow(images)
        wide(images)
    for (main, branch), expected in zip(values(ours), values(reference), strict=True):
        assert (main, branch) == pytest.approx(expected, rel=0.05)


def test_nothing_is_left_behind_and_nothing_is_kept():
    model = filled().eval()
    alive = []
    model.backbone.layers[0].register_forward_hook(lambda module, args, output: alive.append(weakref.ref(output)))
    before = hooks(model)
    with torch.no_grad(), record_activations(model) as signal:
        assert hooks(model) > before
        model(torch.randn(1, 3, 32, 32))
        assert alive[0]() is None
    assert hooks(model) == before
    with torch.no_grad():
        model(torch.randn(1, 3, 32, 32))
    assert signal.passes == 1


def test_a_forward_pass_that_failed_does_not_count():
    model = filled().eval()
    before = hooks(model)
    images = torch.randn(1, 3, 32, 32)
    stop = model.backbone.layers[2].register_forward_pre_hook(lambda module, args: 1 / 0)
    with torch.no_grad(), record_activations(model) as signal:
        with pytest.raises(ZeroDivisionError):
            model(images)
        stop.remove()
        model(images)
    assert (signal.passes, len(signal.blocks)) == (1, 6)
    with pytest.raises(ZeroDivisionError), record_activations(model):
        raise ZeroDivisionError
    assert hooks(model) == before


@pytest.mark.slow
def test_compiled_blocks_are_recorded_too():
    torch._dynamo.reset()
    model = filled(depths=[1, 1, 1, 1]).eval()
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad(), record_activations(model) as expected:
        model(images)
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    model.backbone.compile_blocks(backend=backend)
    with torch.no_grad():
        model(images)
        compiled = len(graphs)
        assert compiled > 0
        with record_activations(model) as signal:
            model(images)
        assert values(signal) == values(expected)
        model(images)
    assert len(graphs) == compiled  # and afterwards the graphs serve again


def test_a_model_without_a_backbone_is_refused():
    with pytest.raises(ValueError, match="Linear contains 0 backbones"), record_activations(nn.Linear(2, 2)):
        pass
