"""Programs without Python: ONNX and `torch.export`, for one resolution and any number of images.

The position bias depends only on the window, so its tables are computed once and exported as constants, as the paper
does for inference (section 3.3). The network that generates them is not exported. Attention uses basic operations that
every runtime supports.

Input `images`: (batch, channels, height, width) float32, normalized by the model's mean and standard deviation. Output:
`logits` (batch, classes) of a classifier or (batch, classes, height, width) of a segmenter; or `features` (batch, 8C),
the mean over the last stage's tokens, for a model without a head.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from swinv2_train.config.model import ModelConfig, stage_geometry
from swinv2_train.config.tasks import FEATURES, LOGITS, PIXEL_LOGITS
from swinv2_train.models.backbone import backbone_of
from swinv2_train.models.heads import pooled_features

_LARGEST_FILE = 1_500_000_000
"""Maximum bytes of weights in one ONNX file (the format ends at 2 GiB); larger ones go into a second file."""


class Inference(nn.Module):
    """The exported part of a model: its logits, or the pooled features of the backbone.

    Args:
        output: `TaskConfig.OUTPUT` of the model's task; `FEATURES` fits every model.
    """

    def __init__(self, model: nn.Module, output: str) -> None:
        super().__init__()
        self.model = model if output in (LOGITS, PIXEL_LOGITS) else backbone_of(model)
        self.output = output if output in (LOGITS, PIXEL_LOGITS) else FEATURES

    @property
    def name(self) -> str:
        """Name of the output, for people and programs."""
        return FEATURES if self.output == FEATURES else LOGITS

    def forward(self, images: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> logits (B, num_classes) or (B, num_classes, H, W), or features (B, 8C)."""
        if self.output == PIXEL_LOGITS:
            return self.model.scores(images)
        return self.model(images) if self.output == LOGITS else pooled_features(self.model, images)


def trace(inference: Inference, config: ModelConfig, images: Tensor) -> torch.export.ExportedProgram:
    """Return the model as a program for images of this size.

    `inference` loses the modules that compute its position tables, so it can only be used at this size afterward.

    Args:
        images: (2 or more, in_channels, H, W), an example.
    """
    fix_tables(inference.model, config, (images.shape[-2], images.shape[-1]))
    with torch.no_grad():
        inference(images)  # fills the mask caches, so that masks become constants
        batch = torch.export.Dim("batch", min=1)
        return torch.export.export(inference, (images,), dynamic_shapes={"images": {0: batch}}, strict=False)


def fix_tables(model: nn.Module, config: ModelConfig, resolution: tuple[int, int]) -> None:
    """Replace the modules that compute the position bias by the tables of the windows at this resolution."""
    for stage, geometry in zip(backbone_of(model).layers, stage_geometry(config, *resolution), strict=True):
        for block in stage.blocks:
            attention = block.attn
            with torch.no_grad():
                table = attention.position_table(geometry.window).contiguous().clone()
            attention.register_buffer("fixed_table", table)
            attention.position_table = _Fixed(attention)
            attention.use_backend("reference")
            for part in ("cpb_mlp", "relative_position_bias_table"):
                if hasattr(attention, part):
                    delattr(attention, part)


class _Fixed:
    """Replacement of `WindowAttention.position_table`."""

    def __init__(self, attention: nn.Module) -> None:
        self.attention = attention

    def __call__(self, window: tuple[int, int]) -> Tensor:
        return self.attention.fixed_table


def write_program(program: torch.export.ExportedProgram, path: Path) -> None:
    """Save for `torch.export.load`. Raises OSError if it cannot be written."""
    with _quiet():
        # Inlines wrappers of contexts (autocast) and nothing else; not every consumer of a program supports them.
        torch.export.save(program.run_decompositions({}), path)


def write_onnx(
    program: torch.export.ExportedProgram, path: Path, output: str, metadata: Mapping[str, str]
) -> list[Path]:
    """Write an ONNX file; weights beyond its limit go into a second file next to it.

    Args:
        output: name of the result.
        metadata: stored in the file's own metadata.

    Returns:
        The files. Raises OSError if they cannot be written.
    """
    with _quiet():
        converted = torch.onnx.export(
            program,
            input_names=["images"],
            output_names=[output],
            dynamic_shapes={"images": {0: "batch"}},
            dynamo=True,
            verbose=False,
        )
    assert converted is not None
    converted.model.metadata_props.update(metadata)
    size = sum(tensor.numel() * tensor.element_size() for tensor in program.state_dict.values())
    converted.save(path, external_data=size > _LARGEST_FILE)
    return sorted(path.parent.glob(f"{path.name}*"))


def run_program(path: Path, batches: Sequence[Tensor]) -> list[Tensor]:
    """Return the outputs of a saved program, each (B, classes or 8C)."""
    with _quiet(), torch.no_grad():
        program = torch.export.load(path).module()
        return [program(images) for images in batches]


def run_onnx(path: Path, batches: Sequence[Tensor]) -> list[Tensor]:
    """Return the outputs that onnxruntime computes on the CPU, each (B, classes or 8C)."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return [torch.from_numpy(session.run(None, {"images": images.numpy()})[0]) for images in batches]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporters, which report their progress and warnings; the comparison afterward decides."""
    loggers: list[Any] = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
