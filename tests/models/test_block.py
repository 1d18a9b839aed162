"""Blocks on maps of two and three axes: padding, roll, windows and crop against the plain definition."""

from __future__ import annotations

import pytest
import torch

from swinv2_train.models.attention.backends import BACKENDS
from swinv2_train.models.attention.window_attention import WindowAttention
from swinv2_train.models.block import BlockWindow, SwinBlock
from swinv2_train.models.layers import PatchMerging
from tests.models.golden import fill_parameters
from tests.models.plain import plain_block

DIM, HEADS = 4, 2


def make_block(window, *, shifted=True, backend="reference", bias="log-cpb", pretrained=None, dtype=torch.float64):
    attention = WindowAttention(
        DIM, HEADS, pretrained or (0,) * len(window), backend=backend, chunk_mib=0.002, position_bias=bias
    )
    block = SwinBlock(
        DIM, attention, 8, window=BlockWindow(window, shifted), norm_placement="sandwich", extra_norm=True
    ).to(dtype)
    fill_parameters(block)
    return block


def values_and_gradients(block, x):
    """The result and the gradients of input and parameters, for a block or a function of its input."""
    x = x.clone().requires_grad_()
    out = block(x)
    weights = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).view_as(out).to(out.dtype)
    return [out, *torch.autograd.grad((out * weights).sum(), [x, *block.parameters()])]


CASES = {
    "divides": ((4, 6, 4), (2, 3, 2), (1, 1, 1)),
    "odd sides": ((3, 5, 7), (2, 3, 4), (1, 1, 2)),
    "time clamped": ((2, 5, 3), (4, 2, 2), (0, 1, 1)),
    "height clamped": ((5, 2, 5), (2, 3, 2), (1, 0, 1)),
    "space clamped": ((5, 2, 2), (3, 2, 7), (1, 0, 0)),
    "width 1": ((3, 4, 3), (2, 2, 1), (1, 1, 0)),
    "one frame at a time": ((3, 5, 3), (1, 2, 2), (0, 1, 1)),
    "one token": ((2, 2, 3), (1, 1, 1), (0, 0, 0)),
    "one frame": ((1, 5, 6), (2, 2, 4), (0, 1, 2)),
}
"""Sides of the clip, configured window, and the shift that follows."""


@pytest.mark.slow
@pytest.mark.parametrize("bias", ["log-cpb", "linear-cpb", "table"])
@pytest.mark.parametrize("case", CASES)
def test_a_clip_gives_what_the_plain_definition_gives(case, bias):
    sides, window, shift = CASES[case]
    clips = torch.randn(2, *sides, DIM, dtype=torch.float64)
    fitted = tuple(min(pair) for pair in zip(window, sides, strict=True))
    blocks = [make_block(window, backend=name, bias=bias, pretrained=fitted) for name in BACKENDS]
    assert blocks[0].window.fit(sides) == (fitted, shift)
    state = {f"block.{name}": value for name, value in blocks[0].state_dict().items()}
    coordinates = fitted if bias == "table" else bias == "linear-cpb"
    expected = [
        plain_block(state, "block", clip, HEADS, (fitted, shift), placement="sandwich", coordinates=coordinates)
        for clip in clips
    ]
    results = [values_and_gradients(block, clips) for block in blocks]
    torch.testing.assert_close(results[0][0], torch.stack(expected), rtol=0, atol=2e-6)
    for ours in results[1:]:
        for value, reference in zip(ours, results[0], strict=True):
            assert reference.isfinite().all()
            torch.testing.assert_close(value, reference, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_clip_of_one_frame_is_an_image(backend):
    image = torch.randn(2, 7, 9, DIM)
    for bias in ("table", "log-cpb"):
        flat = make_block((3, 4), backend=backend, bias=bias, pretrained=(4, 3), dtype=torch.float32)
        clip = make_block((2, 3, 4), backend=backend, bias=bias, pretrained=(1, 4, 3), dtype=torch.float32)
        state = flat.state_dict()
        if bias == "log-cpb":  # the column of time meets offset 0 only, so that it may be any numbers
            time = torch.randn(512, 1)
            state["attn.cpb_mlp.0.weight"] = torch.cat([time, state["attn.cpb_mlp.0.weight"]], 1)
        clip.load_state_dict(state)
        actual = values_and_gradients(clip, image.unsqueeze(1))
        for ours, reference in zip(actual, values_and_gradients(flat, image), strict=True):
            if ours.shape == (512, 3):
                assert not ours[:, 0].any()
                ours = ours[:, 1:]
            if bias == "table":
                assert torch.equal(ours.reshape(reference.shape), reference)
            else:  # a product over three inputs may be summed in another order than one over two
                torch.testing.assert_close(ours.reshape(reference.shape), reference, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_windows_of_one_frame_are_those_of_the_frames(backend):
    clips = torch.randn(2, 3, 5, 6, DIM, dtype=torch.float64)
    flat = make_block((2, 3), backend=backend, bias="table", pretrained=(2, 3))
    clip = make_block((1, 2, 3), backend=backend, bias="table", pretrained=(1, 2, 3))
    clip.load_state_dict(flat.state_dict())
    torch.testing.assert_close(clip(clips), flat(clips.flatten(0, 1)).view_as(clips), rtol=0, atol=1e-12)


def test_stochastic_depth_scales_the_branches_of_a_clip():
    block, clips = make_block((2, 2, 2)), torch.randn(2, 3, 4, 4, DIM, dtype=torch.float64)
    scales = torch.tensor([[1.0, 1.0], [0.0, 0.0]])
    out = block(clips, scales)
    torch.testing.assert_close(out[0], block(clips)[0])
    torch.testing.assert_close(out[1], block.enorm(clips[1]))


def test_merging_leaves_time_alone():
    merging = PatchMerging(DIM)
    torch.nn.init.normal_(merging.reduction.weight)
    clips = torch.randn(2, 3, 5, 4, DIM)
    assert merging(clips).shape == (2, 3, 3, 2, 2 * DIM)
    torch.testing.assert_close(merging(clips), merging(clips.flatten(0, 1)).unflatten(0, (2, 3)))


@pytest.mark.slow
def test_a_block_of_clips_can_be_compiled():
    torch._dynamo.reset()
    block = make_block((2, 3, 2), backend="sdpa", dtype=torch.float32)
    clips = torch.randn(1, 3, 4, 5, DIM)
    compiled = torch.compile(block, backend="eager", fullgraph=True, dynamic=False)
    torch.testing.assert_close(compiled(clips), block(clips))
