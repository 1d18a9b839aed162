"""Numbers that are not finite in any part of a detector: training ends in its loss, prediction in an error."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from swinv2_train.models.detection import Detector
from swinv2_train.models.detection.roi_align import RepeatableRoiAlign
from tests.models.detection.made import KINDS, detector, scenes, section
from tests.models.detection.test_detector import inputs, step

PLANTED = [
    *((f"heads.box_heads.{stage}", output, value) for stage, output, value in
      ((0, 1, math.nan), (0, 1, math.inf), (0, 1, -math.inf), (0, 0, math.nan), (1, 1, math.nan), (1, 1, math.inf),
       (1, 0, math.nan), (2, 1, math.nan), (2, 0, -math.inf))),
    ("heads.mask_heads.0.classes", None, math.nan), ("heads.mask_heads.2.upsampling", None, math.inf),
    ("rpn.objectness", None, math.nan), ("rpn.offsets", None, math.nan), ("rpn.offsets", None, math.inf),
    ("pyramid.outputs.1", None, math.nan), ("semantic.embedding", None, math.nan),
]  # fmt: skip
"""A part, which of its outputs, or None for the only one, and the number that this is made of."""


@contextlib.contextmanager
def planted(model: Detector, part: str, output: int | None, value: float) -> Iterator[None]:
    """Multiply an output of a part by a number that is not finite."""

    def multiplied(_: nn.Module, __: Any, found: Any) -> Any:
        if output is None:
            return found * value
        return tuple(each * value if number == output else each for number, each in enumerate(found))

    hook = model.get_submodule(part).register_forward_hook(multiplied)
    yield
    hook.remove()


@pytest.mark.parametrize("repeatable", [False, True], ids=["torchvision", "as on CUDA"])
@pytest.mark.parametrize("kind", KINDS)
def test_numbers_that_are_not_finite_reach_the_loss(
    kind: str, repeatable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From every part, and also if an image without objects is alone: a step that ended in an error would never reach
    the guard. `repeatable`: with the gradients of RoIAlign on CUDA, and backward."""
    if repeatable:
        monkeypatch.setattr("swinv2_train.models.detection.pooler.roi_align", RepeatableRoiAlign.apply)
    model = detector(kind, roi_samples=4, rpn_samples=8, proposals=8).train()
    parts = [each for each in PLANTED if each[0] in dict(model.named_modules())]
    assert len(parts) == {"mask_rcnn": 9, "cascade": 15, "htc": 16}[kind]
    for part, output, value in parts[repeatable::2]:
        with planted(model, part, output, value), torch.set_grad_enabled(repeatable):
            total = sum(step(model, [scenes()[0], scenes()[4]]).values())
            assert not total.isfinite(), (part, output, value)
            if repeatable:
                total.backward()
            assert step(model, [scenes()[4]]).keys() == section(kind).terms().keys()


@pytest.mark.parametrize("kind", KINDS)
def test_numbers_that_are_not_finite_end_a_prediction(kind: str) -> None:
    model = detector(kind, test_proposals=8, max_detections=4).eval()
    images, sizes, _, _ = inputs(1)
    for part, output, value in PLANTED:
        if part in dict(model.named_modules()):
            expected = pytest.raises(FloatingPointError, match=r"^the outputs of the model are not finite$")
            with planted(model, part, output, value), torch.no_grad(), expected:
                model(images, sizes)
    with torch.no_grad():
        assert len(model(images, sizes)) == 1
