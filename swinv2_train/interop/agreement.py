"""Numerical comparison of this package with timm, Hugging Face, or torchvision at one geometry.

They implement the same paper but differ in corner cases: if a shifted window extends over the edge of a map, if a map
is not square or not larger than a window, and by their own options. A narrow model of the same geometry with random
weights is built on both sides and processes the same images. Export and import use the same check.
"""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from swinv2_train.config.model import NUM_STAGES, ModelConfig, StageGeometry, stage_geometry, windows
from swinv2_train.interop import peers
from swinv2_train.interop.names import FORMATS, HEAD

if TYPE_CHECKING:
    from torch import Tensor, nn

TIMM, HUGGINGFACE, TORCHVISION = "timm", "huggingface", "torchvision"
PACKAGES = {TIMM: "timm", HUGGINGFACE: "transformers", TORCHVISION: "torchvision"}
TOLERANCE = 1e-4
"""Largest allowed difference of an output, relative to the largest output. Rounding changes outputs by about 1e-6,
another algorithm by 1e-2 or more."""
_NARROW: dict[str, Any] = {
    "in_channels": 1,
    "embed_dim": 16,
    "num_heads": [1, 1, 1, 1],
    "drop_path": 0.0,
    "attention": "reference",
    "checkpointing": 0,
}
_HUGGINGFACE_KEYS = (
    "image_size",
    "patch_size",
    "window_size",
    "pretrained_window_sizes",
    "mlp_ratio",
    "qkv_bias",
    "hidden_act",
    "use_absolute_embeddings",
    "layer_norm_eps",
)
"""Options of the Hugging Face config that affect the computation, other than width and depth."""


def is_installed(layout: str) -> bool:
    """Return whether the library of a layout is available."""
    return importlib.util.find_spec(PACKAGES[layout]) is not None


def disagreement(
    layout: str,
    model: ModelConfig,
    resolution: tuple[int, int],
    config: Mapping[str, Any] | None = None,
    *,
    own_windows: bool = False,
) -> str | None:
    """Compare this package with another library at the geometry of a model.

    Args:
        layout: a key of `PACKAGES`; the library must be installed.
        resolution: input (height, width) in pixels.
        config: the `config.json` that the other side builds its model from; None: the one that an export would write.
        own_windows: take size, windows, and pretraining windows from `model`, and the rest from `config`.

    Returns:
        A description of the difference, as a sentence without a period; None if they agree.
    """
    narrow = dataclasses.replace(model, **_NARROW, depths=[min(depth, 2) for depth in model.depths])
    version = peers.version_of(PACKAGES[layout])
    if layout == TORCHVISION:  # it has no other number of channels
        narrow.in_channels = 3
    try:
        peer = _BUILDERS[layout](narrow, resolution, config, own_windows)
        expected, computed = _outputs(peer, narrow, resolution, layout)
    except Exception as error:  # other libraries may raise anything here
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        return f"{version} cannot build a model of this geometry: {reason}"
    if computed.shape != expected.shape:
        return f"{version} returns outputs of {tuple(computed.shape)} instead of {tuple(expected.shape)}"
    share = float((computed - expected).abs().max() / expected.abs().max())
    if share <= TOLERANCE:
        return None
    where = _suspect(layout, stage_geometry(model, *resolution))
    return f"{version} computes this geometry differently: outputs are up to {share:.2g} of the largest apart{where}"


def _suspect(layout: str, stages: list[StageGeometry]) -> str:
    """Return the stage that most likely causes the difference, for display."""
    for number, stage in enumerate(stages, 1):
        sides = list(zip(stage.shift, stage.padded, (stage.height, stage.width), stage.window, strict=True))
        place = f"the {stage.height}x{stage.width} map of stage {number}"
        window = f"{stage.window[0]}x{stage.window[1]}"
        # timm pads after the roll, which is equivalent if it pads by the amount of the roll.
        padding = any(shift and padded - side not in (0, shift) for shift, padded, side, _ in sides)
        if layout == TIMM and stage.depth > 1 and padding:
            return f" (windows of {window} do not divide {place})"
        if layout == HUGGINGFACE and number < len(stages) and (stage.height % 2 or stage.width % 2):
            return f" ({place} does not halve evenly)"
        if stage.height != stage.width and any(window == side for _, _, side, window in sides):
            return f" (windows of {window} cover one side of {place}, which is not square)"
    return ""


def _outputs(peer: nn.Module, narrow: ModelConfig, resolution: tuple[int, int], layout: str) -> tuple[Tensor, Tensor]:
    """Return the pooled features of both sides, (2, 8C), from the same random weights and images."""
    import torch

    from swinv2_train.models import ImageClassifier
    from swinv2_train.models.heads import pooled_features

    generator = torch.Generator().manual_seed(0)
    own = ImageClassifier(narrow, 1, resolution).eval()
    with torch.no_grad():
        for name, parameter in own.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1 and not name.endswith("logit_scale"):
                parameter.copy_(1.5 * noise / parameter[0].numel() ** 0.5)
            else:
                usual = 2.0 if name.endswith("logit_scale") else float("norm" in name and name.endswith("weight"))
                parameter.copy_(usual + 0.3 * noise)
        tensors = FORMATS["swinv2-train"].read(dict(own.named_parameters()))
        named = FORMATS[layout].write({name: tensor for name, tensor in tensors.items() if name not in HEAD}, narrow)
        missing, unexpected = peer.load_state_dict(named, strict=False)
        parameters = dict(peer.named_parameters())
        wrong = [*unexpected, *(name for name in missing if name in parameters)]
        if wrong:
            raise ValueError(f"its weights are others: {wrong[0]}")
        images = torch.randn(2, narrow.in_channels, *resolution, generator=generator)
        computed = peer.eval()(images)
        return pooled_features(own.backbone, images), getattr(computed, "pooler_output", computed)


def _timm_model(
    narrow: ModelConfig, resolution: tuple[int, int], config: Mapping[str, Any] | None, own_windows: bool
) -> nn.Module:
    import inspect

    import timm
    from timm.models.swin_transformer_v2 import SwinTransformerV2

    own = peers.timm_model_args(narrow, resolution)
    name, arguments = peers.TIMM_ARCHITECTURE, own
    if config is not None:
        name = str(config.get("architecture", name))
        saved = config.get("model_args") or {}
        # Pass only the arguments of the model itself: others of `create_model` may name files.
        known = inspect.signature(SwinTransformerV2.__init__).parameters
        arguments = {key: value for key, value in saved.items() if key in known and not key.endswith("drop_rate")}
        narrowed = ("embed_dim", "depths", "num_heads", "in_chans", "img_size")
        for key in (*narrowed, *(("window_size", "pretrained_window_sizes") if own_windows else ())):
            arguments[key] = own[key]
    arguments = {**arguments, "num_classes": 0}
    if not timm.is_model(name) or not name.startswith("swinv2_") or name.startswith("swinv2_cr_"):
        raise ValueError(f"it has no SwinV2 named {name}")
    return timm.create_model(name, pretrained=False, **arguments)


def _huggingface_model(
    narrow: ModelConfig, resolution: tuple[int, int], config: Mapping[str, Any] | None, own_windows: bool
) -> nn.Module:
    from transformers import Swinv2Config, Swinv2Model

    own = peers.huggingface_model_args(narrow, resolution)
    if config is not None:
        kept = ("image_size", "window_size", "pretrained_window_sizes") if own_windows else ()
        taken = [key for key in _HUGGINGFACE_KEYS if key not in kept]
        own = {key: value for key, value in own.items() if key not in taken}
        own |= {key: config[key] for key in taken if key in config}
        own.setdefault("window_size", Swinv2Config().window_size)
    if own["window_size"] is None:
        raise ValueError("it has one square window for all stages")
    return Swinv2Model(Swinv2Config(**own))


def _torchvision_model(
    narrow: ModelConfig, resolution: tuple[int, int], config: Mapping[str, Any] | None, own_windows: bool
) -> nn.Module:
    from torch import nn
    from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformer, SwinTransformerBlockV2

    window = windows(narrow)[0]
    if windows(narrow) != [window] * NUM_STAGES or any(map(any, peers.earlier_windows(narrow, resolution))):
        raise ValueError("it has one window for all stages, and no windows of a pretraining")
    model = SwinTransformer(
        patch_size=[narrow.patch_size] * 2,
        embed_dim=narrow.embed_dim,
        depths=list(narrow.depths),
        num_heads=list(narrow.num_heads),
        window_size=list(window),
        mlp_ratio=narrow.mlp_ratio,
        block=SwinTransformerBlockV2,
        downsample_layer=PatchMergingV2,
    )
    model.head = nn.Identity()
    return model


_BUILDERS = {TIMM: _timm_model, HUGGINGFACE: _huggingface_model, TORCHVISION: _torchvision_model}
