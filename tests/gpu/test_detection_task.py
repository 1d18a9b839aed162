"""The task of detection moves everything that its model needs to a GPU, and results back to the host."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from swinv2_train.data.batch import to_device
from tests.tasks.detection.test_task import SEMANTIC, SHORT, held_out, make, trained

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]


def test_loss_and_records_on_a_gpu() -> None:
    task, device = make(test_flip=True, **SHORT | SEMANTIC), torch.device("cuda")
    model = task.build_model().train()
    expected = task.loss(model, trained(task)).terms
    terms = task.loss(model.to(device), to_device(trained(task), device)).terms
    assert all(term.isfinite() for term in terms.values())
    # Other terms depend on the proposals that are chosen, which rounding may change.
    assert terms["rpn_class"].item() == pytest.approx(expected["rpn_class"].item(), rel=1e-2)
    found = task.measure(model.eval(), to_device(held_out(task), device))
    assert sorted(found.records) == [0, 1, 2, 3]
    assert all(isinstance(record.found.boxes, np.ndarray) for record in found.records.values())
    assert task.metrics(found)["samples"] == 4
    assert task.figure(model, to_device(trained(task), device)).width > 300
