"""Programs without Python: ONNX and `torch.export`, for one resolution and any number of images or clips.

The position bias depends only on the window, so its tables are computed once and exported as constants, as the paper
does for inference (section 3.3). The network that generates them is not exported. Attention uses basic operations that
every runtime supports.

Input `images`: (batch, channels, height, width) float32, normalized by the model's mean and standard deviation; of a
model of clips (batch, channels, frames, height, width), with a fixed number of frames. Output:
`logits` (batch, classes) of a classifier or (batch, classes, height, width) of a segmenter; `p2` to `p6` of a detector,
the levels of its feature pyramid, (batch, channels, height / 4, width / 4) and so on down to / 64; or `features`
(batch, 8C), the mean over the last stage's tokens, for a model without a head.

The rest of a detector is not in a program: proposals are as many as an image has, and pooling and suppression follow
them, with operators that the runtimes do not share.
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
from swinv2_train.config.tasks import DETECTIONS, FEATURES, LOGITS, PIXEL_LOGITS
from swinv2_train.models.backbone import backbone_of
from swinv2_train.models.heads import pooled_features

_LARGEST_FILE = 1_500_000_000
"""Maximum bytes of weights in one ONNX file (the format ends at 2 GiB); larger ones go into a second file."""


LEVELS = ("p2", "p3", "p4", "p5", "p6")
"""Outputs of the program of a detector."""


class Inference(nn.Module):
    """The exported part of a model: its logits, the feature pyramid of a detector, or the pooled features of the
    backbone.

    Args:
        output: `TaskConfig.OUTPUT` of the model's task; `FEATURES` fits every model.
    """

    def __init__(self, model: nn.Module, output: str) -> None:
        super().__init__()
        self.output = output if output in (LOGITS, PIXEL_LOGITS, DETECTIONS) else FEATURES
        self.model = backbone_of(model) if self.output == FEATURES else model

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the outputs of a program."""
        if self.output == DETECTIONS:
            return LEVELS
        return (FEATURES if self.output == FEATURES else LOGITS,)

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Return the outputs for images (B, in_channels, H, W), or clips (B, in_channels, T, H, W).

        They are logits, (B, num_classes) or (B, num_classes, H, W); the levels of a detector, each
        (B, channels, H_i, W_i); or the features (B, 8C).
        """
        if self.output == DETECTIONS:
            return tuple(self.model.levels(images))
        if self.output == PIXEL_LOGITS:
            return self.model.scores(images)
        return self.model(images) if self.output == LOGITS else pooled_features(self.model, images)


def trace(inference: Inference, config: ModelConfig, images: Tensor) -> torch.export.ExportedProgram:
    """Return the model as a program for images of this size.

    `inference` loses the modules that compute its position tables, so it can only be used at this size afterward.

    Args:
        images: (2 or more, in_channels, H, W), or clips (2 or more, in_channels, T, H, W), an example.
    """
    fix_tables(inference.model, config, tuple(images.shape[2:]))
    with torch.no_grad():
        inference(images)  # fills the mask caches, so that masks become constants
        batch = torch.export.Dim("batch", min=1)
        return torch.export.export(inference, (images,), dynamic_shapes={"images": {0: batch}}, strict=False)


def fix_tables(model: nn.Module, config: ModelConfig, size: tuple[int, ...]) -> None:
    """Replace the modules that compute the position bias by the tables of the windows at one size of the input.

    Args:
        size: (height, width) in pixels, or (frames, height, width).
    """
    *frames, height, width = size
    for stage, geometry in zip(backbone_of(model).layers, stage_geometry(config, height, width, *frames), strict=True):
        window = (geometry.time_window, *geometry.window) if frames else geometry.window
        for block in stage.blocks:
            attention = block.attn
            with torch.no_grad():
                table = attention.position_table(window).contiguous().clone()
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

    def __call__(self, window: tuple[int, ...]) -> Tensor:
        return self.attention.fixed_table


def write_program(program: torch.export.ExportedProgram, path: Path) -> None:
    """Save for `torch.export.load`. Raises OSError if it cannot be written."""
    with _quiet():
        # Inlines wrappers of contexts (autocast) and nothing else; not every consumer of a program supports them.
        torch.export.save(program.run_decompositions({}), path)


def write_onnx(
    program: torch.export.ExportedProgram, path: Path, outputs: Sequence[str], metadata: Mapping[str, str]
) -> list[Path]:
    """Write an ONNX file; weights beyond its limit go into a second file next to it.

    Args:
        outputs: names of the results.
        metadata: stored in the file's own metadata.

    Returns:
        The files. Raises OSError if they cannot be written.
    """
    with _quiet():
        converted = torch.onnx.export(
            program,
            input_names=["images"],
            output_names=list(outputs),
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
    """Return the outputs of a saved program, each (B, ...); several of them as `joined`."""
    with _quiet(), torch.no_grad():
        program = torch.export.load(path).module()
        return [joined(program(images)) for images in batches]


def run_onnx(path: Path, batches: Sequence[Tensor]) -> list[Tensor]:
    """Return the outputs that onnxruntime computes on the CPU, each (B, ...); several of them as `joined`."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    runs = [session.run(None, {"images": images.numpy()}) for images in batches]
    return [joined([torch.from_numpy(output) for output in outputs]) for outputs in runs]


def joined(outputs: Tensor | Sequence[Tensor]) -> Tensor:
    """Return several outputs, each (B, ...), end to end as (B, numbers), for comparisons; a single one as it is."""
    if isinstance(outputs, Tensor):
        return outputs
    return outputs[0] if len(outputs) == 1 else torch.cat([output.flatten(1) for output in outputs], dim=1)


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
