"""The same weights under every name compute the same, and come back as they went."""

from __future__ import annotations

import pytest
import torch

from swinv2_train.config.errors import ConfigError
from swinv2_train.interop.names import FORMATS
from tests.interop.files import canonical, classifier, masked_model
from tests.models.golden import golden_config, golden_images, golden_token_mask

WINDOWS = {"window": 4, "pretrained_window": [3, 3, 3, 2]}
SHAPE = {"embed_dim": 24, "depths": [2, 2, 2, 2], "num_heads": [1, 2, 4, 8]}


@pytest.mark.slow
def test_timm_computes_the_same() -> None:
    swin = pytest.importorskip("timm.models.swin_transformer_v2")
    ours = classifier(**WINDOWS)
    theirs = swin.SwinTransformerV2(
        img_size=64, window_size=4, num_classes=5, pretrained_window_sizes=(3, 3, 3, 2), **SHAPE
    ).eval()
    theirs.load_state_dict(FORMATS["timm"].write(canonical(ours), golden_config(**WINDOWS)))
    images = golden_images(64).float()
    with torch.no_grad():
        torch.testing.assert_close(theirs(images), ours(images), atol=1e-5, rtol=0)


@pytest.mark.parametrize("simmim", [False, True])
def test_hugging_face_computes_the_same(simmim: bool) -> None:
    library = pytest.importorskip("transformers")
    settings = library.Swinv2Config(
        image_size=64, window_size=4, num_labels=5, pretrained_window_sizes=[3, 3, 3, 2], encoder_stride=32, **SHAPE
    )
    images, mask = golden_images(64).float(), golden_token_mask()
    ours = masked_model(**WINDOWS) if simmim else classifier(**WINDOWS)
    kind = library.Swinv2ForMaskedImageModeling if simmim else library.Swinv2ForImageClassification
    theirs = kind(settings).eval()
    theirs.load_state_dict(FORMATS["huggingface"].write(canonical(ours), golden_config(**WINDOWS)))
    with torch.no_grad():
        if simmim:
            actual, expected = theirs(images, bool_masked_pos=mask.flatten(1)).reconstruction, ours(images, mask)
        else:
            actual, expected = theirs(images).logits, ours(images)
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("layout", "simmim"),
    [
        *((layout, False) for layout in ("swinv2-train", "official", "timm", "huggingface", "torchvision")),
        *((layout, True) for layout in ("swinv2-train", "official", "huggingface")),
    ],
)
def test_weights_come_back_from_every_layout(layout: str, simmim: bool) -> None:
    weights = canonical(masked_model() if simmim else classifier())
    written = FORMATS[layout].write(weights, golden_config())
    back = FORMATS[layout].read(written)
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[name], weights[name]) for name in weights)


def test_a_bare_hugging_face_backbone_has_no_prefix() -> None:
    weights = {name: tensor for name, tensor in canonical(classifier()).items() if not name.startswith("head.")}
    written = FORMATS["huggingface"].write(weights, golden_config())
    assert "embeddings.norm.weight" in written
    assert FORMATS["huggingface"].read(written).keys() == weights.keys()


def test_timm_leaves_out_what_only_simmim_has() -> None:
    written = FORMATS["timm"].write(canonical(masked_model()), golden_config())
    assert not [key for key in written if key.startswith(("mask_token", "decoder"))]


@pytest.mark.parametrize("layout", ["timm", "huggingface"])
@pytest.mark.parametrize(
    ("field", "value"), [("extra_norm_period", 2), ("position_bias", "table"), ("temporal_patch", 2)]
)
def test_a_model_that_a_layout_cannot_hold_is_refused(layout: str, field: str, value: object) -> None:
    with pytest.raises(
        ConfigError,
        match=f"model.{field}={value}: the layout of {layout} does not support it; swinv2-train, onnx and torch",
    ):
        FORMATS[layout].check(golden_config(**{field: value}))


def test_a_lost_part_of_a_split_tensor_is_named() -> None:
    written = FORMATS["huggingface"].write(canonical(classifier()), golden_config())
    del written["swinv2.encoder.layers.1.blocks.0.attention.self.key.weight"]
    with pytest.raises(ConfigError, match=r"self.query.weight is present, but its counterpart .*key.weight"):
        FORMATS["huggingface"].locate(written)
