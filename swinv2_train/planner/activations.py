"""Bytes of the tensors that autograd saves for backward, and of those that backward itself creates, by formula.

The formulas follow the code of `models/`: a tensor counts once, however many operations save it. Symbols:

    b   bytes of an element of weights and activations        T   tokens of all images of a micro-batch, B * H * W
    d   channels of the stage                                 Tp  the same with the padding to whole windows
    h   heads                                                 N   tokens of a window

`tests/planner/test_activations.py` compares them with the tensors that autograd saves, within 2%.
"""

from __future__ import annotations

from dataclasses import dataclass

from swinv2_train.config.checks import resolution
from swinv2_train.config.model import (
    CPB_HIDDEN,
    NUM_STAGES,
    ModelConfig,
    StageGeometry,
    attention_backends,
    checkpointed_blocks,
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
        return self.images * self.stage.height * self.stage.width * self.stage.dim

    @property
    def padded(self) -> int:
        """Tokens of all windows, Tp."""
        return self.images * self.stage.num_windows * self.stage.window_tokens

    @property
    def offsets(self) -> int:
        """Entries of the position bias of a head."""
        height, width = self.stage.window
        return (2 * height - 1) * (2 * width - 1)

    @property
    def pairs(self) -> int:
        """Elements of the attention scores, Tp * N * h."""
        return self.padded * self.stage.window_tokens * self.stage.num_heads

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
        stage = self.stage
        return (self.shifted and any(stage.shift)) or stage.padded != (stage.height, stage.width)


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
    # The windows of q, k, v, and the result; for the cosine also widened copies, unit vectors, and operands.
    vectors = 4 * b + (12 + half * 4 if cosine else 0)
    row = -(-block.stage.window_tokens // _MASK_ALIGNMENT) * _MASK_ALIGNMENT
    windows = block.stage.num_windows if block.shifted and any(block.stage.shift) else 1
    mask = b * windows * heads * block.stage.window_tokens * row
    return vectors * area + lengths + 4 * tokens * heads + mask


def block_transient(block: Block) -> float:
    """Return the bytes that backward of a block needs at its peak, beyond those that the block saved.

    The peak is either in the MLP, while everything is still saved, or in the attention, when the MLP's part is freed.
    The counts of token maps are measured, with the operators of both devices.
    """
    b, model = block.kernels.element, block.model
    half, unit = b < 4, b * block.map
    widened = half and model.drop_path > 0  # the factor of a branch is fp32
    extra = {"pre": 0 if widened else 1, "post": -1 if widened else 1}.get(model.norm_placement, 0)
    mlp = (block.hidden + 2 + (2 if widened else 0) + extra) * unit
    freed = (1 + 2 * block.hidden) * unit + block.kernels.norm * block.map
    return max(mlp, _attention_transient(block) - freed)


def _attention_transient(block: Block) -> float:
    b, gpu = block.kernels.element, block.kernels.gpu
    area, scores, half = b * block.padded * block.stage.dim, b * block.pairs, b < 4
    if block.backend == "sequential":
        # Two fp32 tensors of scores, in chunks, and fp32 operands of the same chunks.
        chunk = min(block.model.sequential_chunk_mib * 2**20, 8 * block.pairs)
        operands = 4 * (7 if half else 4) * chunk / (8 * block.stage.window_tokens) * block.stage.dim
        return (10 if half else 12) * area + chunk + operands / block.stage.num_heads
    if block.backend == "sdpa" and gpu:
        return 5 * area + scores  # the gradient of the mask has a row per window and image
    if not half:
        return 2 * area + 2 * scores
    maps, copies = (0, 4) if block.backend == "sdpa" else (-1 if gpu else -2, 3)
    return maps * area + copies * scores


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
    model, (height, width) = config.model, resolution(config)
    kernels = Kernels(ELEMENT_BYTES[config.engine.precision], gpu)
    stages = stage_geometry(model, height, width)
    backends, checkpointed = attention_backends(model), checkpointed_blocks(model)
    first = images * stages[0].height * stages[0].width
    saved: float = kernels.element * images * model.in_channels * height * width
    saved += (kernels.norm * stages[0].dim + 8) * first
    found = []
    for index, stage in enumerate(stages):
        for number in range(stage.depth):
            extra = model.extra_norm_period > 0 and (number + 1) % model.extra_norm_period == 0
            block = Block(model, stage, backends[index], images, number % 2 == 1, extra, kernels)
            own, again = block_saved(block), 0.0
            if checkpointed[index][number]:
                # Without a copy, the attention saves the input itself.
                again = own - (0 if block.moved or model.norm_placement in ("pre", "sandwich") else block.input)
                own = block.input
            saved += own
            found.append(Reached(index, number, saved, again, block_transient(block)))
        if index < NUM_STAGES - 1:
            merged = images * -(-stage.height // 2) * -(-stage.width // 2)
            saved += merged * (4 * kernels.element * stage.dim + 2 * kernels.norm * stage.dim + 8)
    last = stages[-1]
    saved += images * last.height * last.width * (kernels.norm * last.dim + 8)
    head = images * config.task.head_bytes(config, kernels.element)
    return [*found, Reached(NUM_STAGES, 0, saved + head, 0.0, head)]
