"""The parts of a run are built from its config, or refused in a sentence."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from swinv2_train.data.inspect import inspect
from swinv2_train.data.pack import pack
from swinv2_train.data.pack_writer import PackOptions
from swinv2_train.data.parallel import ParallelMap
from swinv2_train.data.shards import ShardSet
from swinv2_train.data.workers import WorkerPool
from swinv2_train.exit_codes import FINISHED, WRONG_USE
from swinv2_train.models import ImageClassifier
from swinv2_train.tasks.classification import Classification
from tests.runs import make_images, make_labelled_data, run_here, tiny_classification, tiny_run


@pytest.mark.slow
def test_a_run_without_a_known_number_of_classes_says_what_to_give(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shards = make_labelled_data(tmp_path / "shards")
    assert run_here(tiny_classification(shards, tmp_path / "run", "task.num_classes=0")) == WRONG_USE
    assert "task.num_classes=0: " in capsys.readouterr().err


class Tempered(ImageClassifier):
    """With a parameter that no rule initializes."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.temperature = nn.Parameter(torch.ones(1))


class Normed(ImageClassifier):
    """With a part named like one of the backbone, so that its checkpoints could not be evaluated."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.norm = nn.LayerNorm(4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Tempered, "no rule initializes parameter temperature of the model: give Tempered a"),
        (Normed, "its model has a parameter norm.weight, which is a name used by the backbone"),
    ],
)
def test_a_model_that_cannot_be_used_ends_the_start_with_the_name_of_its_part(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    kind: type[ImageClassifier],
    message: str,
) -> None:
    def build_model(self: Classification) -> nn.Module:
        return kind(self.config.model, self.config.task.num_classes, self.size)

    monkeypatch.setattr(Classification, "build_model", build_model)
    shards = make_labelled_data(tmp_path / "shards")
    assert run_here(tiny_classification(shards, tmp_path / "run")) == WRONG_USE
    assert message in capsys.readouterr().err


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, bytes]]:
    """Objects for workers and parallel maps, each with its pickle from before its use."""
    found: list[tuple[Any, bytes]] = []
    for kind in (WorkerPool, ParallelMap):

        def start(self: Any, work: Any, *arguments: Any, make: Any = kind.__init__, **options: Any) -> None:
            found.append((work, pickle.dumps(work)))
            make(self, work, *arguments, **options)

        monkeypatch.setattr(kind, "__init__", start)
    return found


@pytest.mark.slow
def test_nothing_that_is_sent_to_workers_is_changed_by_use(tmp_path: Path, sent: list[tuple[Any, bytes]]) -> None:
    """The preflight reads a batch in the process that later sends the same objects to its workers."""
    shards = make_labelled_data(tmp_path / "shards")
    probe = (f"probe.shards={shards}/train-*.tar", f"probe.eval_shards={shards}/eval-*.tar", "probe.every_steps=2")
    short = ("optim.steps=2", "optim.warmup_steps=0", "data.num_workers=0", *probe)
    policies = ("rand-m9-mstd0.5-inc1", "3a", "augmix-m5-w4-d2", "original", "null")
    for index, policy in enumerate(policies):
        more = (f"task.auto_augment={policy}", "task.mix_prob=0.75", *short[: 3 if index else None])
        assert run_here(tiny_classification(shards, tmp_path / str(index), *more)) == FINISHED
    assert run_here(tiny_run(shards, tmp_path / "simmim", *short)) == FINISHED
    make_images(tmp_path / "images", 4, 0)
    inspect(ShardSet.open(f"{shards}/eval-*.tar"))
    pack(str(tmp_path / "images"), tmp_path / "packed", PackOptions())
    assert len(sent) >= 2 * (len(policies) + 1) + 4
    for work, before in sent:
        assert pickle.dumps(work) == before, type(work).__name__
