from __future__ import annotations

import pytest
import torch

from swinv2_train.config.errors import ConfigError
from swinv2_train.models import (
    ImageClassifier,
    InputError,
    MaskedImageModel,
    SwinTransformerV2,
    backbone_of,
    pooled_features,
)
from tests.models.golden import fill_parameters, golden_config


def test_classifier_averages_the_tokens_of_the_last_stage():
    model = ImageClassifier(golden_config(), 7).eval()
    fill_parameters(model)
    images = torch.randn(2, 3, 70, 50)
    features = model.backbone(images)[-1]
    assert features.shape == (2, 3, 2, 192)
    logits = model(images)
    torch.testing.assert_close(logits, model.head(features.flatten(1, 2).mean(1)))
    with pytest.raises(ConfigError, match="must be at least 1"):
        ImageClassifier(golden_config(), 0)


def test_features_of_any_model_are_what_the_head_of_a_classifier_is_given():
    classifier, simmim = ImageClassifier(golden_config(), 7).eval(), MaskedImageModel(golden_config()).eval()
    fill_parameters(classifier)
    simmim.encoder.load_state_dict(classifier.backbone.state_dict())
    images = torch.randn(2, 3, 70, 50)
    pooled = pooled_features(classifier, images)
    assert pooled.shape == (2, 192)
    assert torch.equal(classifier.head(pooled), classifier(images))
    for other in (simmim, classifier.backbone, torch.nn.Sequential(simmim)):
        assert torch.equal(pooled_features(other, images), pooled)


def test_a_model_without_a_backbone_or_with_two_is_refused():
    backbone = SwinTransformerV2(golden_config())
    assert backbone_of(torch.nn.ModuleDict({"wrapped": backbone})) is backbone
    for model in (torch.nn.Linear(2, 2), torch.nn.ModuleList([backbone, SwinTransformerV2(golden_config())])):
        with pytest.raises(ValueError, match="backbones, not one"):
            pooled_features(model, torch.zeros(1, 3, 8, 8))


def test_reconstruction_has_the_size_of_the_image():
    model = MaskedImageModel(golden_config(in_channels=2)).eval()
    fill_parameters(model)
    images, token_mask = torch.randn(2, 2, 37, 53), torch.rand(2, 10, 14) < 0.5
    out = model(images, token_mask)
    assert out.shape == images.shape
    # A pixel at (r, c) comes from token (r // 32, c // 32) of the last stage.
    features = model.encoder(images, mask_token=model.mask_token.flatten(), token_mask=token_mask)[-1]
    weights, bias = model.decoder[0].weight.flatten(1).view(2, 32, 32, -1), model.decoder[0].bias.view(2, 32, 32)
    expected = features[1, 1, 1] @ weights[1, 34 - 32, 40 - 32] + bias[1, 34 - 32, 40 - 32]
    torch.testing.assert_close(out[1, 1, 34, 40], expected)


def test_masked_pixels_do_not_reach_the_model():
    model = MaskedImageModel(golden_config()).eval()
    fill_parameters(model)
    images, token_mask = torch.randn(1, 3, 64, 64), torch.zeros(1, 16, 16, dtype=torch.bool)
    token_mask[:, :8] = True
    changed = images.clone()
    changed[:, :, :32] += 5
    torch.testing.assert_close(model(images, token_mask), model(changed, token_mask), rtol=0, atol=0)
    nothing_masked = torch.zeros_like(token_mask)
    assert not torch.allclose(model(images, nothing_masked), model(changed, nothing_masked))


def test_mask_token_takes_the_place_of_the_token_before_the_position_embedding():
    config = golden_config(absolute_position=True)
    model = MaskedImageModel(config, resolution=(32, 32)).eval()
    fill_parameters(model)
    seen = []
    model.encoder.layers[0].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    token_mask = torch.zeros(1, 8, 8, dtype=torch.bool)
    token_mask[0, 2, 5] = True
    images = torch.randn(1, 3, 32, 32)
    model(images, token_mask)
    position = model.encoder.absolute_pos_embed.view(8, 8, -1)
    torch.testing.assert_close(seen[0][0, 2, 5], model.mask_token.flatten() + position[2, 5])
    torch.testing.assert_close(seen[0][0, 2, 4], model.encoder.patch_embed(images)[0, 2, 4] + position[2, 4])


@pytest.mark.parametrize("shape", [(1, 15, 16), (2, 16, 16)])
def test_a_mask_of_the_wrong_size_is_refused(shape):
    model = MaskedImageModel(golden_config())
    with pytest.raises(InputError, match="token_mask of shape"):
        model(torch.randn(1, 3, 64, 64), torch.zeros(shape, dtype=torch.bool))
