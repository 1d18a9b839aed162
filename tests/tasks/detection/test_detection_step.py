"""The step that `scripts/bench/detection_step.py` measures, on a tiny model, for all of its detectors."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.detected import TINY_DETECTOR

BENCH = Path(__file__).parents[3] / "scripts/bench"


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    sys.path.insert(0, str(BENCH))
    try:
        import detection_step as module
    finally:
        sys.path.remove(str(BENCH))
    return module


@pytest.mark.parametrize("name", ["mask_rcnn", "cascade", "htc", "htc++"])
def test_every_detector_takes_a_step(bench: ModuleType, name: str) -> None:
    """New heads give all classes nearly the same score, so the loss is near the logarithms of their numbers."""
    assert name in bench.DETECTORS
    found = bench.detector_step(name, [*TINY_DETECTOR, "task.num_classes=20", "task.masks=true"], 2)
    terms, stages = found["terms"], 1 if name == "mask_rcnn" else 3
    expected = {"rpn_class": math.log(2)}
    for stage in range(1, stages + 1):
        expected |= {f"class_{stage}": math.log(21), f"mask_{stage}": math.log(2)}
    if name.startswith("htc"):
        expected["semantic"] = math.log(183)
    assert {key: terms[key] for key in expected} == pytest.approx(expected, rel=0.1)
    assert set(terms) - set(expected) == {"rpn_box", *(f"box_{stage}" for stage in range(1, stages + 1))}
    assert found["loss"] > expected["rpn_class"] + expected["class_1"]
    assert 0 < found["gradient_norm"] < math.inf
    assert found["memory_gib"]["peak"] >= found["memory_gib"]["before"] > 0
