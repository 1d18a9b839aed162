"""Features are those of the backbone; neighbors are those of a definition pair by pair."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from swinv2_train.analysis import features
from swinv2_train.analysis.features import features_of, nearest
from swinv2_train.analysis.neighbors import _thumbnail, neighbor_rows
from swinv2_train.config.model import ModelConfig
from swinv2_train.models import ImageClassifier, MaskedImageModel
from tests.evaluated import SIZE, TINY, lively


@pytest.mark.parametrize("kind", [ImageClassifier, MaskedImageModel])
def test_features_of_any_model_are_those_of_its_backbone(kind: type) -> None:
    config = ModelConfig(**TINY)
    model = lively(kind(config, 3) if kind is ImageClassifier else kind(config))
    backbone = model.backbone if kind is ImageClassifier else model.encoder
    images = torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    found = features_of(model, images, (1, 4))
    with torch.no_grad():
        maps = backbone(images)
    assert list(found) == ["features", "stage1", "stage4"]
    assert torch.equal(found["features"], maps[3].mean(dim=(1, 2)))
    assert torch.equal(found["stage1"], maps[0].permute(0, 3, 1, 2))
    assert found["stage1"].is_contiguous()
    with pytest.raises(ValueError, match="stage 5 does not exist; use 1 to 4"):
        features_of(model, images, (5,))


def test_neighbors_are_the_closest_by_angle(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = np.random.default_rng(0).normal(size=(9, 5))
    lengths = np.linalg.norm(vectors, axis=1)
    cosines = vectors @ vectors.T / lengths / lengths[:, None]
    monkeypatch.setattr(features, "_SIMILARITIES", 18)  # two queries at a time
    groups = list(nearest(torch.from_numpy(vectors), torch.from_numpy(vectors), 3))
    assert [len(rows) for rows, *_ in groups] == [2, 2, 2, 2, 1]
    for rows, similarity, indices in groups:
        expected = np.sort(cosines[rows.numpy()], axis=1)[:, ::-1][:, :3]
        assert np.allclose(similarity.numpy(), expected)
        assert np.allclose(np.take_along_axis(cosines[rows.numpy()], indices.numpy(), 1), expected)
    found = neighbor_rows(vectors, queries=3, neighbors=2)
    assert [row[0] for row in found] == [(0, 1.0), (4, 1.0), (8, 1.0)]
    for (query, _), *others in found:
        best = [number for number in np.argsort(-cosines[query]) if number != query][:2]
        assert [number for number, _ in others] == best


def test_a_twin_of_the_query_is_its_neighbor_and_the_query_itself_is_not() -> None:
    vectors = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    for (query, _), *others in neighbor_rows(vectors, queries=3, neighbors=2):
        assert sorted([query, *(number for number, _ in others)]) == [0, 1, 2]
    assert len(neighbor_rows(vectors, queries=99, neighbors=99)[0]) == 3


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.float32])
def test_thumbnails_show_images_of_any_type(dtype: torch.dtype) -> None:
    largest = {torch.uint8: 255, torch.uint16: 65535, torch.float32: 1}[dtype]
    image = torch.full((3, 8, 8), 0.6 * largest, dtype=torch.float32).to(dtype)
    assert set(_thumbnail(image).getdata()) == {(153, 153, 153)}
