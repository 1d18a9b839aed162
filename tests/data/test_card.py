from __future__ import annotations

import json

import numpy as np
import pytest

from swinv2_train.data.card import Card, ImageFacts


def facts(rng: np.random.Generator, channels: int) -> tuple[ImageFacts, np.ndarray]:
    image = rng.random((channels, 4, 4)) * rng.random()
    side = int(rng.integers(10, 3000))
    return ImageFacts("jpeg", 8, side, side + 5, tuple(image.mean((1, 2))), tuple((image**2).mean((1, 2)))), image


def test_cards_add_up_and_survive_json() -> None:
    rng = np.random.default_rng(0)
    images = [facts(rng, channels) for channels in (3, 3, 1, 3, 13, 1)]
    whole, parts = Card(), [Card(split="train", class_names=["a", "b"]), Card(broken=2)]
    for i, (fact, _) in enumerate(images):
        for card in (whole, parts[i % 2]):
            card.add_image(fact, 100 + i, (i % 2,))
    merged = Card.merged(Card.from_json(json.loads(json.dumps(part.to_json()))) for part in parts)
    assert merged.num_samples == 6
    assert merged.bytes == whole.bytes == 615
    assert (merged.broken, merged.split, merged.class_names) == (2, "train", ["a", "b"])
    assert merged.channels == whole.channels == {3: 3, 1: 2, 13: 1}
    assert merged.class_counts == {0: 3, 1: 3}
    assert merged.short_sides == whole.short_sides
    assert sum(merged.short_sides.values()) == 6


def test_statistics_are_those_of_the_pixels() -> None:
    rng = np.random.default_rng(1)
    images = [facts(rng, channels) for channels in (3, 3, 1)]
    card = Card()
    for fact, _ in images:
        card.add_image(fact, 1, None)
    stacked = np.stack([np.broadcast_to(image, (3, 4, 4)) for _, image in images])
    mean, std = card.statistics(3) or ([], [])
    assert mean == pytest.approx(stacked.mean((0, 2, 3)))
    assert std == pytest.approx(stacked.std((0, 2, 3)))
    grey_mean, grey_std = card.statistics(1) or ([], [])
    assert grey_mean == pytest.approx([images[2][1].mean()])
    assert grey_std == pytest.approx([images[2][1].std()])
    assert card.statistics(5) is None


def test_the_table_names_what_counts() -> None:
    card = Card(split="eval")
    card.add_image(ImageFacts("tiff", 16, 300, 200, (0.5,) * 5, (0.3,) * 5), 2**20, (3,))
    rows = dict(card.rows())
    assert rows["samples"] == "1"
    assert rows["channels"] == "5: 1"
    assert rows["bits per channel"] == "16: 1"
    assert rows["shorter side"] == "192-223: 1"
    assert rows["mean, 5 channels"] == ", ".join(["0.5000"] * 5)
    assert rows["classes"] == "1, with 1 to 1 samples each"
    assert rows["split"] == "eval"


def test_classes_are_counted_once_for_each_label_of_an_image() -> None:
    fact = ImageFacts("jpeg", 8, 64, 64, (0.5,) * 3, (0.3,) * 3)
    card = Card()
    for labels in ((0, 4), (4,), (), None):
        card.add_image(fact, 10, labels)
    assert card.class_counts == {0: 1, 4: 2}
    assert card.num_classes == 5
    assert Card(class_names=["a", "b"]).num_classes == 2
    assert Card().num_classes is None
    card.add_image(fact, 10, (1, 2, 3))
    assert dict(card.rows())["classes per sample"] == "1.20"


def test_cards_with_different_class_numbers_are_reported() -> None:
    one, same, other = Card(class_names=["a", "b"]), Card(class_names=["a", "b"]), Card(class_names=["b", "a"])
    assert not Card.merged([one, same, Card()]).class_lists_differ
    assert Card.merged([one, same, other]).class_lists_differ
    assert Card.merged([Card(), Card.merged([one, other])]).class_lists_differ
