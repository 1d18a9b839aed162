"""timm and Hugging Face: the configs that they load, what these cannot represent, and their outputs.

`names.py` converts the weights; this module creates the files next to them. A model without a head becomes a feature
extractor.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swinv2_train.config.errors import ConfigError
from swinv2_train.config.model import ModelConfig, fit_window, pretrained_windows, stage_geometry, total_stride
from swinv2_train.config.values import value_settings

if TYPE_CHECKING:
    from torch import Tensor

    from swinv2_train.config.data import DataConfig
    from swinv2_train.interop.load import LoadedModel

TIMM_ARCHITECTURE = "swinv2_tiny_window8_256"
"""Entry point of timm's registry that builds any SwinV2 from the arguments in its config file."""
OWN_INPUT = "swinv2_train_input"
"""Key of exported configs, only for imports into this package: parts of the input that the other library cannot
express."""
_PIL_FILTERS = {"bilinear": 2, "bicubic": 3}


def check_timm(model: ModelConfig, resolution: tuple[int, int]) -> None:
    """Reject what the config of timm's SwinV2 cannot represent.

    Raises:
        ConfigError: naming the field and the remedy.
    """
    if any(side % model.patch_size for side in resolution):
        hint = f"timm does not pad images: use a data.resolution that is a multiple of {model.patch_size}"
        raise ConfigError("data.resolution", list(resolution), hint)


def check_huggingface(model: ModelConfig, resolution: tuple[int, int], crop_mode: str) -> None:
    """Reject what Hugging Face's configs cannot represent: its Swinv2 has one square window for all stages.

    Raises:
        ConfigError: naming the field; the caller adds the formats that support the model.
    """
    if single_window(model, resolution) is None:
        stages = stage_geometry(model, *resolution)
        windows = ", ".join(f"{stage.window[0]}x{stage.window[1]}" for stage in stages)
        hint = f"huggingface has one square window for all stages, and these are {windows}"
        raise ConfigError("model.window", model.window, hint)
    for height, width in earlier_windows(model, resolution):
        if height != width or height == 1:
            hint = "huggingface takes one side above 1 per stage"
            raise ConfigError("model.pretrained_window", model.pretrained_window, hint)
    if resolution[0] != resolution[1] and crop_mode != "squash":
        hint = "the image processors of huggingface crop only squares; set data.crop_mode=squash"
        raise ConfigError("data.resolution", list(resolution), hint)


def single_window(model: ModelConfig, resolution: tuple[int, int]) -> int | None:
    """Return the side of one square window that, clamped to the maps, yields the windows of all stages; else None."""
    stages = stage_geometry(model, *resolution)
    side = max(max(stage.window) for stage in stages)
    for stage in stages:
        window, shift = fit_window((side, side), (stage.height, stage.width), model.window_rule)
        if window != stage.window or shift != stage.shift or window[0] != window[1]:
            return None
    return side


def earlier_windows(model: ModelConfig, resolution: tuple[int, int]) -> list[tuple[int, int]]:
    """Return per stage the window of an earlier training in the notation of both: (0, 0) if the stage still has it."""
    stages = stage_geometry(model, *resolution)
    return [
        (0, 0) if pair in ((0, 0), stage.window) else (pair[0] or stage.window[0], pair[1] or stage.window[1])
        for pair, stage in zip(pretrained_windows(model), stages, strict=True)
    ]


def timm_model_args(model: ModelConfig, resolution: tuple[int, int]) -> dict[str, Any]:
    """Return the arguments that timm's `SwinTransformerV2` builds a model from."""
    window: Any = single_window(model, resolution)
    if window is None:
        window = [list(stage.window) for stage in stage_geometry(model, *resolution)]
    return {
        "img_size": list(resolution),
        "patch_size": model.patch_size,
        "in_chans": model.in_channels,
        "embed_dim": model.embed_dim,
        "depths": list(model.depths),
        "num_heads": list(model.num_heads),
        "window_size": window,
        "mlp_ratio": model.mlp_ratio,
        "pretrained_window_sizes": [_side(pair) for pair in earlier_windows(model, resolution)],
    }


def timm_config(
    loaded: LoadedModel, num_classes: int, resolution: tuple[int, int], bits: Sequence[int]
) -> dict[str, Any]:
    """Return the `config.json` for `timm.create_model("local-dir:...")`; `num_classes` 0 is a feature extractor.

    Args:
        bits: depths of the images that the model is for.
    """
    model, data = loaded.config.model, loaded.config.data
    config: dict[str, Any] = {
        "architecture": TIMM_ARCHITECTURE,
        "num_classes": num_classes,
        "num_features": 8 * model.embed_dim,
        "global_pool": "avg",
        "model_args": timm_model_args(model, resolution),
        "pretrained_cfg": {
            "tag": "swinv2_train",
            "custom_load": False,
            "input_size": [model.in_channels, *resolution],
            "fixed_input_size": True,
            "interpolation": data.augment.interpolation,
            # timm's squash also crops, by this fraction; this package's does not.
            "crop_pct": data.crop_pct if data.crop_mode == "center" else 1.0,
            "crop_mode": "center" if data.crop_mode == "native" else data.crop_mode,
            "mean": loaded.mean,
            "std": loaded.std,
            "num_classes": num_classes,
            "pool_size": None,
            "first_conv": "patch_embed.proj",
            "classifier": "head.fc",
        },
        OWN_INPUT: _own_input(data, bits),
    }
    if num_classes and loaded.class_names:
        config["label_names"] = loaded.class_names
    return config


def _own_input(data: DataConfig, bits: Sequence[int]) -> dict[str, Any]:
    """Return the settings that other libraries have no key for; see `sidecar`."""
    native = {"crop_mode": "native"} if data.crop_mode == "native" else {}
    return {"bits": list(bits), "background": data.background, **native, **value_settings(data)}


def _side(pair: tuple[int, int]) -> int | list[int]:
    return pair[0] if pair[0] == pair[1] else list(pair)


def huggingface_model_args(model: ModelConfig, resolution: tuple[int, int]) -> dict[str, Any]:
    """Return the arguments that `Swinv2Config` builds a model from."""
    return {
        "image_size": resolution[0] if resolution[0] == resolution[1] else list(resolution),
        "patch_size": model.patch_size,
        "num_channels": model.in_channels,
        "embed_dim": model.embed_dim,
        "depths": list(model.depths),
        "num_heads": list(model.num_heads),
        "window_size": single_window(model, resolution),
        "pretrained_window_sizes": [pair[0] for pair in earlier_windows(model, resolution)],
        "mlp_ratio": model.mlp_ratio,
        "qkv_bias": True,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        # The export is the function without stochastic depth; the training rate is not part of the weights.
        "drop_path_rate": 0.0,
        "use_absolute_embeddings": False,
        "layer_norm_eps": 1e-5,
    }


def huggingface_config(
    loaded: LoadedModel, num_classes: int, resolution: tuple[int, int], *, multi_label: bool
) -> dict[str, Any]:
    """Return the `config.json` of a Swinv2 model; `num_classes` 0 is a bare `Swinv2Model`."""
    names = loaded.class_names or [f"LABEL_{number}" for number in range(num_classes)]
    config: dict[str, Any] = {
        "architectures": ["Swinv2ForImageClassification" if num_classes else "Swinv2Model"],
        "model_type": "swinv2",
        **huggingface_model_args(loaded.config.model, resolution),
        "encoder_stride": total_stride(loaded.config.model),
        # Half-precision files are also computed in fp32 unless requested otherwise: coordinates do not survive bf16.
        "torch_dtype": "float32",
    }
    if num_classes:
        config["id2label"] = {str(number): name for number, name in enumerate(names)}
        config["label2id"] = {name: number for number, name in enumerate(names)}
        kind = "multi_label_classification" if multi_label else "single_label_classification"
        config["problem_type"] = kind
    return config


def huggingface_preprocessor(loaded: LoadedModel, resolution: tuple[int, int], depths: Sequence[int]) -> dict[str, Any]:
    """Return the `preprocessor_config.json` that `AutoImageProcessor` reads.

    Args:
        depths: 8, 16, or both: those of the images that the model is for. The processor has one factor for all images,
            that of 8 bits if the model is for both.
    """
    data = loaded.config.data
    bits = 16 if list(depths) == [16] else 8
    height, width = resolution
    config: dict[str, Any] = {
        "do_resize": True,
        "resample": _PIL_FILTERS[data.augment.interpolation],
        "do_rescale": True,
        "rescale_factor": 1 / (2**bits - 1),
        "do_normalize": True,
        "image_mean": loaded.mean,
        "image_std": loaded.std,
        "do_convert_rgb": loaded.config.model.in_channels == 3,
        OWN_INPUT: _own_input(data, depths),
    }
    if data.crop_mode == "squash":
        return {"image_processor_type": "ViTImageProcessor", **config, "size": {"height": height, "width": width}}
    crop_pct = data.crop_pct if data.crop_mode == "center" else 1.0
    return {
        "image_processor_type": "BitImageProcessor",
        **config,
        "size": {"shortest_edge": int(height / crop_pct)},
        "do_center_crop": True,
        "crop_pct": crop_pct,  # for this package; the processor uses the two sizes
        "crop_size": {"height": height, "width": width},
    }


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a config file. Raises OSError if it cannot be written."""
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    path.write_text(text, encoding="utf-8", errors="backslashreplace")  # a lone surrogate becomes a JSON escape


def run_timm(directory: Path, images: Tensor) -> Tensor:
    """Return timm's outputs for a directory: logits (B, classes), or pooled features (B, 8C)."""
    import timm
    import torch

    model = timm.create_model(f"local-dir:{directory}", pretrained=True).float().eval()
    with torch.no_grad():
        return model(images)


def timm_input(directory: Path, pixels: Sequence[Tensor]) -> Tensor:
    """Return the output of timm's transform for images, each (C, H, W) uint8: (B, C, h, w).

    Raises:
        ValueError: for images other than 8-bit PIL images.
    """
    import timm
    import torch
    from PIL import Image

    if any(image.dtype != torch.uint8 or len(image) not in (1, 3) for image in pixels):
        raise ValueError("it supports PIL images of 8 bits and 1 or 3 channels")
    model = timm.create_model(f"local-dir:{directory}", pretrained=False)
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
    arrays = [image.permute(1, 2, 0).numpy() for image in pixels]
    pictures = [Image.fromarray(array[..., 0] if array.shape[2] == 1 else array.copy()) for array in arrays]
    return torch.stack([transform(picture) for picture in pictures])


def huggingface_input(directory: Path, pixels: Sequence[Tensor]) -> Tensor:
    """Return the output of `AutoImageProcessor` for images, each (C, H, W) uint8 or uint16: (B, C, h, w).

    They are passed as the README describes: as PIL images if possible, and with their own factor if the processor is
    for the other depth.
    """
    import torch
    from PIL import Image
    from transformers import AutoImageProcessor

    written = json.loads((directory / "preprocessor_config.json").read_text())["rescale_factor"]
    processor = AutoImageProcessor.from_pretrained(directory)
    made = []
    for image in pixels:
        array, bits = image.contiguous().numpy(), 8 if image.dtype == torch.uint8 else 16
        other = {} if (written < 1 / 4096) == (bits == 16) else {"rescale_factor": 1 / (2**bits - 1)}
        if bits == 8 and len(array) == 3:
            picture = Image.fromarray(array.transpose(1, 2, 0).copy())
            made.append(processor([picture], return_tensors="pt", **other)["pixel_values"])
        else:
            # As float32, because resizing uint16 wraps around where the cubic filter overshoots.
            given = array if bits == 8 else array.astype("float32")
            options = {"input_data_format": "channels_first", "return_tensors": "pt", **other}
            made.append(processor([given], **options)["pixel_values"])
    return torch.cat(made)


def run_huggingface(directory: Path, images: Tensor) -> Tensor:
    """Return transformers' outputs for a directory: logits (B, classes), or pooled features (B, 8C)."""
    import torch
    from transformers import AutoConfig, AutoModel, AutoModelForImageClassification
    from transformers.utils import logging

    logging.disable_progress_bar()
    classifier = "ForImageClassification" in AutoConfig.from_pretrained(directory).architectures[0]
    kind = AutoModelForImageClassification if classifier else AutoModel
    model = kind.from_pretrained(directory).eval()
    with torch.no_grad():
        outputs = model(images)
    return outputs.logits if classifier else outputs.pooler_output


def version_of(package: str) -> str:
    """Return `timm 1.0.31`, for example, or only the name if it is not installed."""
    try:
        return f"{package} {metadata.version(package)}"
    except metadata.PackageNotFoundError:
        return package
