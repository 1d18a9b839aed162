"""Bytes of the tensors that autograd saves for backward, and of those that backward itself creates, by formula.

The formulas follow the code of `models/`: a tensor counts once, however many operations save it. Symbols:

    b   bytes of an element of weights and activations        T   tokens of a micro-batch, B * H * W or B * T * H * W
    d   channels of the stage                                 Tp  the same with the padding to whole windows
    h   heads                                                 N   tokens of a window

`tests/planner/test_activations.py` compares them with the tensors that autograd saves, within 2%.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from swinv2_train.config.checks import clip_frames, resolution
from swinv2_train.config.model import (
    ATTENTION_BACKENDS,
    CPB_HIDDEN,
    NUM_STAGES,
    ModelConfig,
    StageGeometry,
    attention_backends,
    checkpointed_blocks,
    extra_norms,
    mlp_width,
    stage_geometry,
)
from swinv2_train.config.schema import Config

ELEMENT_BYTES = {"bf16": 2, "fp16": 2, "fp32": 4}
"""Bytes of an element by `engine.precision`."""
_MASK_ALIGNMENT = 8
"""Elements to which torch's memory-efficient attention aligns the rows of a mask."""


@dataclass(frozen=True)
class Kernels:
    """Element size and device, which decide what the kernels of torch save."""

    element: int
    """Bytes of an element of weights and activations: 2 or 4."""
    gpu: bool

    @property
    def norm(self) -> int:
        """Bytes per element that a LayerNorm saves: its input, widened to fp32 on the CPU."""
        return self.element if self.gpu else 4


@dataclass(frozen=True)
class Block:
    """One block of a stage and the micro-batch in it."""

    model: ModelConfig
    stage: StageGeometry
    backend: str
    """Attention backend."""
    images: int
    shifted: bool
    extra_norm: bool
    kernels: Kernels

    @property
    def map(self) -> int:
        """Elements of a token map, T * d."""
        return self.images * self.stage.tokens * self.stage.dim

    @property
    def padded(self) -> int:
        """Tokens of all windows, Tp."""
        return self.images * self.stage.num_windows * self.stage.window_tokens

    @property
    def offsets(self) -> int:
        """Entries of the position bias of a head."""
        return math.prod(2 * side - 1 for side in (self.stage.time_window, *self.stage.window))

    @property
    def pairs(self) -> int:
        """Elements of the attention scores, Tp * N * h."""
        return self.padded * self.stage.window_tokens * self.stage.num_heads

    @property
    def masked(self) -> bool:
        """True if tokens of different regions share a window, because of the shift or of padding in time."""
        shifted = self.shifted and (self.stage.time_shift or any(self.stage.shift))
        return bool(shifted) or self.stage.time_padded != self.stage.time

    @property
    def mask(self) -> int:
        """Elements of the additive mask of `sdpa`: bias, and regions of every window if there are any."""
        windows = self.stage.num_windows if self.masked else 1
        return windows * self.stage.num_heads * self.stage.window_tokens**2

    @property
    def hidden(self) -> float:
        """Width of the MLP, as a multiple of d."""
        return mlp_width(self.model, self.stage.dim) / self.stage.dim

    @property
    def input(self) -> int:
        """Bytes of the input: what a checkpointed block saves."""
        return self.kernels.element * self.map

    @property
    def moved(self) -> bool:
        """True if the attention gets a copy of the input, rolled or padded."""
        return self.masked or self.stage.padded != (self.stage.height, self.stage.width)


def block_saved(block: Block) -> float:
    """Return the bytes that a block saves in a forward pass without checkpointing."""
    b, d = block.kernels.element, block.stage.dim
    norms = (4 if block.model.norm_placement == "sandwich" else 2) + int(block.extra_norm)
    projections = 2 * b * block.padded * d
    mlp = b * block.map * (1 + 2 * block.hidden)  # input, hidden before and after the GELU
    norm = norms * (block.kernels.norm * block.map + 8 * block.map / d)  # input, mean, and inverse deviation
    if block.model.norm_placement in ("res-post", "sandwich") and block.kernels.norm == b:
        norm += b * (block.padded * d - block.map)  # the input is a part of the padded map
    return projections + mlp + norm + _bias_saved(block) + _attention_saved(block)


def _bias_saved(block: Block) -> float:
    heads = block.stage.num_heads
    if block.model.position_bias == "table":
        return 0.0
    widened = 4 * CPB_HIDDEN * (2 + heads) if block.kernels.element < 4 else 0  # fp32 copies of the network's weights
    return block.offsets * (4 * CPB_HIDDEN + 8 * heads) + widened


def _attention_saved(block: Block) -> float:
    """Return the bytes that a backend saves in addition to the inputs of both projections."""
    b, heads, tokens = block.kernels.element, block.stage.num_heads, block.padded
    area = tokens * block.stage.dim
    cosine, half = block.model.similarity == "cosine", b < 4  # half precision is widened to fp32
    lengths = 18 * tokens * heads if cosine else 0  # of queries and keys: as computed, as used, and which are 0
    if block.backend == "sequential":
        return 3 * b * area + 4 * tokens * heads + 4 * block.offsets * heads
    if block.backend == "reference":
        # The windows of q, k, v; the scaled queries; for the cosine also unit vectors; widened copies.
        vectors = 3 * b + (12 if cosine else 4) + half * (8 if cosine else 4)
        return vectors * area + (4 + half * b) * block.pairs + lengths
    if not block.kernels.gpu:
        # torch computes the plain formula for a mask with a gradient.
        vectors = 24 if cosine else 12 if half else 20
        return vectors * area + 4 * block.pairs + lengths
    # The windows of q, k, v; for the cosine also widened copies, unit vectors, and operands. The result of a single
    # window has the order of the map: it is the input of the projection itself.
    vectors = 3 * b + (b if block.stage.num_windows > 1 else 0) + (12 + half * 4 if cosine else 0)
    row = -(-block.stage.window_tokens // _MASK_ALIGNMENT) * _MASK_ALIGNMENT
    mask = b * block.mask // block.stage.window_tokens * row
    return vectors * area + lengths + 4 * tokens * heads + mask


def block_transient(block: Block) -> float:
    """Return the bytes that a block needs at its peak in backward, beyond those that it saved.

    The peak is one of three moments; the counts of token maps in them are measured, with the operators of both devices:

    - the attention of a checkpointed block is computed again, while the gradient of the block's result waits;
    - backward of the MLP, when the block has saved everything;
    - backward of the attention, when everything is freed that the block saved after it.
    """
    later = _saved_after_attention(block)
    return max(_attention_again(block) - later, _mlp_backward(block), _attention_backward(block) - later)


def _saved_after_attention(block: Block) -> float:
    placement = block.model.norm_placement
    norms = {"pre": 1, "sandwich": 3}.get(placement, 2) + int(block.extra_norm)
    return (1 + 2 * block.hidden) * block.input + norms * block.kernels.norm * block.map


def _mlp_backward(block: Block) -> float:
    widened = block.kernels.element < 4 and block.model.drop_path > 0  # the factor of a branch is fp32
    norms = (2 if block.model.norm_placement == "sandwich" else 1) * (block.kernels.norm * block.map - block.input)
    return (block.hidden + 1 + int(widened) - int(block.extra_norm)) * block.input + norms


def _attention_again(block: Block) -> float:
    b, gpu, half = block.kernels.element, block.kernels.gpu, block.kernels.element < 4
    if block.backend == "sequential":
        return 0.0  # its backward needs more
    widened = half and (block.model.drop_path > 0 or not gpu)
    gradient = (b + 4 * widened) * block.map
    area = b * block.padded * block.stage.dim
    if block.backend == "reference":
        return gradient + 4 * area + 4 * block.pairs
    # The mask of all windows is in fp32 first. It is saved as rounded, and torch's plain formula rounds it once more.
    mask = 4 * block.mask / block.stage.num_heads if block.masked else 0
    if gpu:
        return gradient + 3 * area + mask + 4 * half * block.mask
    return gradient + (11 if half else 4) * area + 4 * block.pairs + mask + (6 if half else 4) * block.mask


def _attention_backward(block: Block) -> float:
    b, half = block.kernels.element, block.kernels.element < 4
    area, scores = b * block.padded * block.stage.dim, b * block.pairs
    if block.backend == "sequential":
        return 10 * area + _sequential_chunk(block)
    if block.backend == "sdpa" and block.kernels.gpu:
        return 4 * area + scores  # the gradient of the mask has a row per window and image
    if not half:
        return area + 2 * scores
    return 4 * scores if block.backend == "sdpa" else 3 * scores - 2 * area


def _sequential_chunk(block: Block) -> float:
    """Return the bytes of a chunk in backward: scores, their gradient, the bias, its gradient, and fp32 vectors."""
    tokens, heads = block.stage.window_tokens, block.stage.num_heads
    biases = 8 * heads * tokens**2
    budget = block.model.sequential_chunk_mib * 2**20
    fraction = min(1.0, budget / (8 * block.pairs + biases))
    vector = 4 * block.padded * block.stage.dim
    # Keys, values, and queries, their gradients; when those are computed, one tensor of scores is freed already.
    scores = 4 * block.pairs
    return fraction * (biases + (7 if block.kernels.element < 4 else 5) * vector + scores + max(scores, 4 * vector))


@dataclass(frozen=True)
class Reached:
    """Bytes of activations at the moment when backward reaches a block, or the head before all blocks."""

    stage: int
    """From 0; the number of stages for the head."""
    block: int
    saved: float
    """Saved in the forward pass and not freed yet."""
    recomputed: float
    """Saved again by this block, if it is checkpointed."""
    transient: float
    """Created by backward at its peak in this block."""

    @property
    def place(self) -> str:
        """Name of the moment, for display."""
        return "the head" if self.stage == NUM_STAGES else f"block {self.block + 1} of stage {self.stage + 1}"


def activations(config: Config, images: int, *, gpu: bool) -> list[Reached]:
    """Return the activations when backward reaches the head and each block, in the order of the forward pass.

    With `optim.freeze` and `engine.compile` autograd saves less than this.

    Args:
        images: samples of a micro-batch.
        gpu: True for the kernels of a GPU, False for those of a CPU.
    """
    model, (height, width), frames = config.model, resolution(config), clip_frames(config)
    kernels = Kernels(ELEMENT_BYTES[config.engine.precision], gpu)
    stages = stage_geometry(model, height, width, frames)
    # The needs of own backends are unknown. Counted as the least, they never reject a run that fits.
    backends = [name if name in ATTENTION_BACKENDS else "sequential" for name in attention_backends(model)]
    checkpointed, norms = checkpointed_blocks(model), extra_norms(model)
    first = images * stages[0].tokens
    saved: float = kernels.element * images * model.in_channels * max(frames, 1) * height * width
    saved += (kernels.norm * stages[0].dim + 8) * first
    found = []
    for index, stage in enumerate(stages):
        for number in range(stage.depth):
            block = Block(model, stage, backends[index], images, number % 2 == 1, norms[index][number], kernels)
            own, again = block_saved(block), 0.0
            if checkpointed[index][number]:
                # Without a copy, the attention saves the input itself.
                again = own - (0 if block.moved or model.norm_placement in ("pre", "sandwich") else block.input)
                own = block.input
            saved += own
            found.append(Reached(index, number, saved, again, block_transient(block)))
        if index < NUM_STAGES - 1:
            merged = images * stage.time * -(-stage.height // 2) * -(-stage.width // 2)
            saved += merged * (4 * kernels.element * stage.dim + 2 * kernels.norm * stage.dim + 8)
    last = stages[-1]
    saved += images * last.tokens * (kernels.norm * last.dim + 8)
    head = images * config.task.head_bytes(config, kernels.element)
    transient = config.task.head_transient(config, kernels.element, images)
    return [*found, Reached(NUM_STAGES, 0, saved + head, 0.0, transient)]
