from __future__ import annotations

from collections import Counter

import pytest
import torch

from swinv2_train.config.errors import ConfigError
from swinv2_train.config.model import ATTENTION_BACKENDS, count_parameters
from swinv2_train.models import ImageClassifier, InputError, SwinTransformerV2, drop_path_noise
from tests.models.golden import fill_parameters, golden_config, golden_images
from tests.models.plain import plain_features


def filled(dtype=torch.float32, **fields):
    model = SwinTransformerV2(golden_config(**fields)).to(dtype)
    fill_parameters(model)
    return model


@pytest.mark.slow
@pytest.mark.parametrize("backend", ATTENTION_BACKENDS)
@pytest.mark.parametrize(
    ("height", "width", "window", "rule"),
    [
        (37, 53, (4, 3), "per-axis"),  # divides nothing: patches, windows and merging are padded
        (32, 64, (4, 4), "per-axis"),  # divides
        (17, 90, (3, 8), "per-axis"),  # one side clamped, the other shifted
        (3, 2, (8, 8), "per-axis"),  # less than one patch
        (40, 24, (1, 1), "per-axis"),
        (32, 64, (4, 4), "official"),  # one square window of the shorter side where a side is not larger
        (70, 36, (5, 5), "official"),  # the same, with padding
        (37, 53, (4, 4), "official"),
    ],
)
def test_any_image_gives_what_the_plain_definition_gives(height, width, window, rule, backend):
    model = filled(
        torch.float64,
        in_channels=5,
        embed_dim=8,
        num_heads=[1, 2, 2, 4],
        window=[list(window)] * 4,
        window_rule=rule,
        extra_norm_period=2,
        attention=backend,
        sequential_chunk_mib=0.01,
    ).eval()
    image = torch.randn(5, height, width, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        actual = model(image.unsqueeze(0))
        expected = plain_features(model.state_dict(), image, 4, [2, 2, 2, 2], [1, 2, 2, 4], window, rule=rule)
    for ours, plain in zip(actual, expected, strict=True):
        assert plain.isfinite().all()
        torch.testing.assert_close(ours[0], plain, rtol=0, atol=2e-6)


def test_windows_and_backends_per_stage():
    mixed = filled(window=[[2, 4], 4, 2, 1], attention=["reference", "sdpa", "sequential", "sdpa"]).eval()
    plain = filled(window=[[2, 4], 4, 2, 1], attention="reference").eval()
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(mixed(images)[-1], plain(images)[-1], rtol=1e-4, atol=1e-5)
    other_window = filled(window=4, attention="reference").eval()
    assert not torch.allclose(other_window(images)[-1], plain(images)[-1], atol=1e-3)


def test_features_are_taken_before_merging_and_the_last_is_normed():
    model = filled().eval()
    outputs = []
    for stage in model.layers:
        stage.register_forward_hook(lambda module, args, output: outputs.append(output))
    features = model(torch.randn(2, 3, 64, 96))
    assert [tuple(feature.shape) for feature in features] == [
        (2, 16, 24, 24),
        (2, 8, 12, 48),
        (2, 4, 6, 96),
        (2, 2, 3, 192),
    ]
    assert all(torch.equal(a, b) for a, b in zip(features[:3], outputs, strict=False))
    torch.testing.assert_close(features[3], model.norm(outputs[3]))


@pytest.mark.parametrize(
    ("period", "ends", "places"),
    [
        (3, False, {(2, 2), (2, 5), (3, 2)}),
        (3, True, {(0, 1), (1, 1), (2, 2), (2, 5), (2, 7), (3, 2)}),
        (0, True, {(0, 1), (1, 1), (2, 7), (3, 2)}),
    ],
)
def test_extra_norms_follow_every_period_inside_a_stage_and_its_end(period, ends, places):
    config = golden_config(depths=[2, 2, 8, 3], extra_norm_period=period, extra_norm_stage=ends)
    with torch.device("meta"):
        model = SwinTransformerV2(config)
    names = {name.removesuffix(".enorm.weight") for name, _ in model.named_parameters() if "enorm.weight" in name}
    assert names == {f"layers.{stage}.blocks.{block}" for stage, block in places}
    assert sum(parameter.numel() for parameter in model.parameters()) == count_parameters(config)


def test_position_embedding_of_another_resolution():
    model = SwinTransformerV2(golden_config(absolute_position=True), resolution=(64, 48))
    assert model.absolute_pos_embed.shape == (1, 16 * 12, 24)
    assert model(torch.randn(1, 3, 50, 90))[-1].isfinite().all()
    with pytest.raises(ConfigError, match="needs the resolution"):
        SwinTransformerV2(golden_config(absolute_position=True))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"images": torch.zeros(1, 4, 32, 32)}, r"needs \(batch, 3, height, width\)"),
        ({"images": torch.zeros(3, 32, 32)}, r"needs \(batch, 3, height, width\)"),
        ({"mask_token": torch.zeros(24)}, "go together"),
        ({"noise": torch.zeros(2, 8, 2)}, r"needs \(1, 8, 2\)"),
    ],
)
def test_an_input_that_does_not_fit_is_refused(arguments, message):
    model = SwinTransformerV2(golden_config(drop_path=0.5))
    arguments = {"images": torch.zeros(1, 3, 32, 32), **arguments}
    with pytest.raises(InputError, match=message):
        model(arguments.pop("images"), **arguments)


@pytest.mark.parametrize("backend", ATTENTION_BACKENDS)
def test_a_sample_does_not_depend_on_its_batch(backend):
    model = filled(torch.float64, drop_path=0.5, attention=backend, sequential_chunk_mib=0.02).train()
    images = torch.cat([golden_images(64) * factor for factor in (0.5, 1, 1.5, 2)])
    seeds = torch.tensor([11, 12, 13, 14])
    together = model(images, noise=drop_path_noise(seeds, model.num_blocks))[-1]
    for index in (0, 3):
        noise = drop_path_noise(seeds[index : index + 1], model.num_blocks)
        alone = model(images[index : index + 1], noise=noise)[-1]
        torch.testing.assert_close(together[index : index + 1], alone, rtol=0, atol=1e-12)
    other = model(images, noise=drop_path_noise(seeds + 100, model.num_blocks))[-1]
    assert not torch.allclose(together, other, atol=1e-3)


def test_noise_decides_which_branches_are_dropped():
    model = filled(drop_path=0.7).train()
    images = torch.randn(1, 3, 32, 32)
    dropped = torch.zeros(1, model.num_blocks, 2)
    features = model(images, noise=dropped)[0]  # block 0 has rate 0, block 1 loses both branches
    torch.testing.assert_close(features, model.layers[0].blocks[0](model.patch_embed(images)))
    kept = torch.full_like(dropped, 0.999)
    assert not torch.allclose(model(images, noise=kept)[0], features, atol=1e-3)


def test_stochastic_depth_draws_its_own_noise_in_training_and_none_in_evaluation():
    model = filled(drop_path=0.7)
    images = torch.randn(2, 3, 32, 32)
    torch.manual_seed(5)
    drawn = torch.rand(2, model.num_blocks, 2)
    torch.manual_seed(5)
    own = model.train()(images)[-1]
    assert torch.equal(own, model(images, noise=drawn)[-1])
    state = torch.get_rng_state()
    evaluated = model.eval()(images)[-1]
    assert torch.equal(evaluated, model(images, noise=torch.zeros(2, model.num_blocks, 2))[-1])
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(evaluated, filled(drop_path=0.0).train()(images)[-1])


@pytest.mark.parametrize("checkpointing", [1, 2, [0, 1, 2, 0]])
@pytest.mark.parametrize("given", [True, False], ids=["noise given", "noise drawn"])
def test_checkpointing_changes_no_gradient(checkpointing, given):
    images = torch.randn(2, 3, 40, 48)
    results = []
    for periods in (0, checkpointing):
        model = filled(drop_path=0.6, checkpointing=periods).train()
        torch.manual_seed(1)
        noise = drop_path_noise(torch.arange(2), model.num_blocks) if given else None
        features = model(images, noise=noise)
        sum(feature.square().sum() for feature in features).backward()
        results.append([parameter.grad for parameter in model.parameters()])
    for plain, recomputed in zip(*results, strict=True):
        assert torch.equal(plain, recomputed)


def test_checkpointing_recomputes_the_blocks_it_names():
    model = filled(checkpointing=[0, 1, 2, 0])
    calls = Counter()
    for name, module in model.named_modules():
        if name.count(".") == 3 and ".blocks." in name:
            module.register_forward_pre_hook(lambda module, args, name=name: calls.update([name]))
    model(torch.randn(1, 3, 32, 32))[-1].sum().backward()
    twice = {name for name, count in calls.items() if count == 2}
    assert len(calls) == 8
    assert twice == {"layers.1.blocks.0", "layers.1.blocks.1", "layers.2.blocks.0"}


@pytest.mark.parametrize("backend", ATTENTION_BACKENDS)
def test_a_bfloat16_model_stays_close_to_float32(backend):
    wide = filled(attention=backend)
    narrow = filled(attention=backend).bfloat16()
    wide.load_state_dict(narrow.state_dict())
    images = golden_images(40).float()
    for ours, reference in zip(narrow(images), wide(images), strict=True):
        assert ours.dtype == torch.bfloat16
        assert (ours.float() - reference).norm() <= 0.04 * reference.norm()


def test_state_is_parameters_only_and_fits_any_window():
    small, large = filled(window=2), filled(window=7)
    small(torch.randn(1, 3, 64, 64))
    assert not list(small.buffers())
    assert set(small.state_dict()) == {name for name, _ in small.named_parameters()}
    large.load_state_dict(small.state_dict())


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["sdpa", "sequential"])
def test_a_block_can_be_compiled(backend):
    """Captured without a graph break, but for the sequential backend, which stays outside of the graph."""
    torch._dynamo.reset()
    block = filled(attention=backend, drop_path=0.5).layers[0].blocks[1]
    block.attn.use_backend(backend, compiled=True)
    compiled = torch.compile(block, backend="aot_eager", fullgraph=backend != "sequential")
    scales = torch.tensor([[0.0, 2.0], [2.0, 0.0]])
    results = []
    for function in (block, compiled):
        x = torch.linspace(-1, 1, 2 * 10 * 9 * 24).view(2, 10, 9, 24).requires_grad_()
        out = function(x, scales)
        out.square().sum().backward()
        results.append((out, x.grad))
    for eager, graph in zip(*results, strict=True):
        torch.testing.assert_close(graph, eager)


@pytest.mark.slow
def test_alike_blocks_share_a_compiled_graph():
    """Not one graph per block, although every block has its own stochastic depth rate."""
    torch._dynamo.reset()
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    model = filled(depths=[4, 1, 2, 3], extra_norm_period=3, drop_path=0.5).train()
    images, noise = torch.randn(2, 3, 64, 64), drop_path_noise(torch.arange(2), model.num_blocks)
    expected = model(images, noise=noise)[-1]
    model.compile_blocks(backend=backend)
    torch.testing.assert_close(model(images, noise=noise)[-1], expected)
    # Stage 1: plain, shifted, plain with norm (block 4 is again shifted); stage 2: plain; stage 3: plain and shifted;
    # stage 4, whose map is one window: plain, shifted in name, plain with norm.
    assert len(graphs) == 3 + 1 + 2 + 3


@pytest.mark.slow
def test_a_model_runs_on_the_meta_device():
    with torch.device("meta"):
        model = ImageClassifier(golden_config(drop_path=0.5), 5)
        assert model(torch.empty(2, 3, 61, 33)).shape == (2, 5)
