"""Valid labels of a sample, and the errors for others."""

from __future__ import annotations

import pytest

from swinv2_train.data.errors import BrokenSample
from swinv2_train.data.labels import checked_labels, known_labels, read_labels
from swinv2_train.data.raw_sample import RawSample


def sample(**texts: bytes) -> RawSample:
    return RawSample("key", "jpg", texts)


@pytest.mark.parametrize(
    ("texts", "labels"),
    [
        ({"cls": b"7"}, (7,)),
        ({"cls": b" 7\n"}, (7,)),
        ({"cls": b"3,1, 3"}, (3, 1)),
        ({"cls": b""}, ()),
        ({"json": b'{"labels": [4, 2, 4]}', "cls": b"9"}, (4, 2)),
        ({"json": b'{"labels": []}'}, ()),
        ({"json": b'{"width": 3}', "cls": b"9"}, (9,)),
    ],
)
def test_labels_are_read(texts: dict[str, bytes], labels: tuple[int, ...]) -> None:
    assert read_labels(sample(**texts)) == labels
    assert known_labels(sample(**texts)) == (labels, None)


@pytest.mark.parametrize(
    ("texts", "reason"),
    [
        ({}, "it has no label"),
        ({"json": b'{"width": 3}'}, "it has no label"),
        ({"cls": b"cat"}, "its label 'cat' is not a class number"),
        ({"cls": b"\xff\xfe"}, "is not a class number"),
        ({"json": b'{"labels": ["cat"]}'}, "are not a list of class numbers"),
        ({"json": b'{"labels": [true]}'}, "are not a list of class numbers"),
        ({"json": b'{"labels": 3}'}, "its labels 3 are not a list"),
        ({"json": b'{"labels": [2, -1]}'}, "its label -1 is negative"),
        ({"cls": b"-1"}, "its label -1 is negative"),
        ({"cls": b"1.0"}, "its label '1.0' is not a class number"),
        ({"cls": b"1_0"}, "its label '1_0' is not a class number"),
        ({"cls": b"9" * 5000}, "is not a class number"),
        ({"json": b"{"}, "its member json is not JSON"),
        ({"json": b"[" * 100_000}, "its member json is not JSON"),
    ],
)
def test_an_invalid_label_breaks_the_sample(texts: dict[str, bytes], reason: str) -> None:
    with pytest.raises(BrokenSample, match=reason):
        read_labels(sample(**texts))
    labels, problem = known_labels(sample(**texts))
    assert labels is None
    assert (problem is None) == (reason == "it has no label")
    assert reason in (problem or reason)


def test_a_label_must_be_one_of_the_classes() -> None:
    assert checked_labels(sample(cls=b"2"), 3, multi_label=False) == (2,)
    assert checked_labels(sample(cls=b"2,0"), 3, multi_label=True) == (2, 0)
    assert checked_labels(sample(cls=b""), 3, multi_label=True) == ()
    with pytest.raises(BrokenSample, match="is outside 0 to 2"):
        checked_labels(sample(cls=b"3"), 3, multi_label=False)
    with pytest.raises(BrokenSample, match=r"2 labels where there must be one \(task\.multi_label=true"):
        checked_labels(sample(cls=b"1,2"), 3, multi_label=False)
    with pytest.raises(BrokenSample, match="no label where there must be one"):
        checked_labels(sample(cls=b""), 3, multi_label=False)
