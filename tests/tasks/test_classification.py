"""Classification: losses against torch and timm, no matter how the batch is cut; evaluation; a run that learns."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from swinv2_train.config.compose import compose
from swinv2_train.config.errors import ConfigError
from swinv2_train.exit_codes import FAILED, FINISHED
from swinv2_train.tasks.class_weights import balanced_weights
from swinv2_train.tasks.classification import Classification, pack_labels, unpack_labels
from swinv2_train.tasks.pictures import RIGHT, WRONG, prediction_sheet
from tests.runs import (
    comparable,
    make_labelled_data,
    make_labelled_shard,
    metrics,
    run_here,
    tiny_classification,
)

TINY = [
    "task=classification", "data.resolution=64", "model.embed_dim=16", "model.num_heads=[1,2,4,8]",
    "model.depths=[1,2,1,1]", "model.window=4",
]  # fmt: skip


def make(*overrides: str, classes: int = 11, **more: Any) -> Classification:
    config = compose([*TINY, f"task.num_classes={classes}", *overrides])
    channels = config.model.in_channels
    return Classification(config, [0.5] * channels, [0.25] * channels, **more)


class Given(torch.nn.Module):
    """A model that answers with fixed logits."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, images: torch.Tensor, noise: torch.Tensor | None = None) -> torch.Tensor:
        return self.logits[: len(images)]


def mean_loss(task: Classification, model: torch.nn.Module, batch: dict[str, Any]) -> float:
    return float(task.loss(model, batch).terms["loss"]) / task.weights(batch)["loss"]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_that_of_timms_mixed_dense_targets(smoothing: float) -> None:
    from timm.data.mixup import one_hot
    from timm.loss import SoftTargetCrossEntropy

    task = make(f"task.label_smoothing={smoothing}")
    batch = task.example_batch(6)
    logits = torch.randn(6, 11)
    off = smoothing / 11
    dense = [one_hot(batch[key], 11, 1 - smoothing + off, off) for key in ("label", "partner_label")]
    share = batch["share"][:, None]
    expected = SoftTargetCrossEntropy()(logits, dense[0] * share + dense[1] * (1 - share))
    assert mean_loss(task, Given(logits), batch) == pytest.approx(float(expected), rel=1e-6)


def test_without_mixing_the_loss_is_torchs() -> None:
    task = make("task.mix_prob=0", "task.label_smoothing=0.2")
    batch = task.example_batch(6)
    assert "share" not in batch
    logits = torch.randn(6, 11)
    expected = F.cross_entropy(logits, batch["label"], label_smoothing=0.2)
    assert mean_loss(task, Given(logits), batch) == pytest.approx(float(expected), rel=1e-6)


def test_class_weights_weigh_as_torch_does_over_the_whole_batch() -> None:
    weights = [0.5, 2.0, 1.0]
    task = make("task.mix_prob=0", "task.label_smoothing=0", f"task.class_weights={weights}", classes=3)
    batch = task.example_batch(7)
    logits = torch.randn(7, 3)
    expected = F.cross_entropy(logits, batch["label"], weight=torch.tensor(weights))
    assert mean_loss(task, Given(logits), batch) == pytest.approx(float(expected), rel=1e-6)


def test_balanced_weights_give_every_class_the_same_say() -> None:
    counts = {0: 10, 2: 30}
    weights = balanced_weights(counts, 3)
    assert weights == [2.0, 0.0, pytest.approx(2 / 3)]
    assert sum(weights[k] * n for k, n in counts.items()) == pytest.approx(40)
    task = make("task.class_weights=balanced", classes=3, class_counts=counts)
    assert task.class_weights.tolist() == pytest.approx(weights)
    with pytest.raises(ConfigError, match=r"task\.class_weights=balanced: the shards have no dataset card"):
        make("task.class_weights=balanced")


@pytest.mark.parametrize("weighted", [False, True])
def test_several_labels_take_binary_cross_entropy_with_mixed_targets(weighted: bool) -> None:
    weights = torch.linspace(0.5, 2, 11)
    extra = [f"task.class_weights={weights.tolist()}"] if weighted else []
    task = make("task.multi_label=true", "task.label_smoothing=0.1", *extra)
    batch = task.example_batch(4)
    batch["label"][0] = pack_labels([0, 7, 10], 11)
    logits = torch.randn(4, 11)
    own, other = (unpack_labels(batch[key], 11) for key in ("label", "partner_label"))
    assert own[0].nonzero().flatten().tolist() == [0, 7, 10]
    share = batch["share"][:, None]
    targets = (own * share + other * (1 - share)) * 0.9 + 0.05
    losses = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    expected = (losses * weights).sum(1).mean() / weights.sum() if weighted else losses.mean()
    assert mean_loss(task, Given(logits), batch) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("extra", [[], ["task.multi_label=true"], ["task.class_weights=[1,2,3]"]])
def test_the_loss_does_not_depend_on_how_the_batch_is_split(extra: list[str]) -> None:
    """Drop path, mixing and class weights on."""
    task = make("model.drop_path=0.5", *extra, classes=3)
    torch.manual_seed(0)
    model = task.build_model()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    batch = task.example_batch(6)

    def step(sizes: tuple[int, ...]) -> tuple[float, list[torch.Tensor]]:
        model.zero_grad()
        parts = [
            dict(zip(batch, part, strict=True)) for part in zip(*(v.split(sizes) for v in batch.values()), strict=True)
        ]
        weight, total = sum(task.weights(part)["loss"] for part in parts), 0.0
        for part in parts:
            loss = task.loss(model, part).terms["loss"] / weight
            loss.backward()
            total += loss.item()
        return total, [parameter.grad.clone() for parameter in model.parameters()]

    whole, gradients = step((6,))
    pieces, cut = step((1, 2, 3))
    assert pieces == pytest.approx(whole, rel=1e-5)
    for a, b in zip(gradients, cut, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("num_classes", [1, 7, 8, 9, 100])
def test_labels_survive_packing(num_classes: int) -> None:
    rng = np.random.default_rng(num_classes)
    chosen = np.flatnonzero(rng.random(num_classes) < 0.5).tolist()
    packed = pack_labels(chosen, num_classes)
    assert packed.shape == (-(-num_classes // 8),)
    assert unpack_labels(packed[None], num_classes)[0].nonzero().flatten().tolist() == chosen


def test_the_evaluation_leaves_padding_out_and_smooths_nothing() -> None:
    task = make("task.label_smoothing=0.3")
    batch = task.example_batch(4)
    logits = torch.randn(4, 11)
    padded = dict(batch, valid=torch.tensor([True, True, False, True]))
    kept = padded["valid"]
    found = task.metrics(task.evaluate(Given(logits).eval(), [padded]))
    assert found["samples"] == 3
    assert found["loss"] == pytest.approx(float(F.cross_entropy(logits[kept], batch["label"][kept])), rel=1e-6)
    assert found["top1"] == pytest.approx(float((logits.argmax(1) == batch["label"])[kept].double().mean()))


@pytest.mark.parametrize("extra", [[], ["task.multi_label=true"], ["task.mix_prob=0", "model.in_channels=5"]])
def test_figures_show_right_and_wrong_in_their_colors(extra: list[str]) -> None:
    colours = ["data.mean=[0,0,0,0,0]", "data.std=[1,1,1,1,1]", "task.auto_augment=null", "task.color_jitter=0"]
    task = make(*extra, *(colours if "model.in_channels=5" in extra else []), class_names=["a"] * 11)
    batch = task.example_batch(2)
    logits = torch.full((2, 11), -5.0)
    truth = batch["label"] if batch["label"].ndim == 1 else unpack_labels(batch["label"], 11).argmax(1)
    if "share" in batch:
        batch["share"] = torch.ones(2)
    logits[0, int(truth[0])] = 5.0
    logits[1, (int(truth[1]) + 1) % 11] = 5.0
    drawn = np.asarray(task.figure(Given(logits).eval(), batch)).reshape(-1, 3)
    for colour in (RIGHT, WRONG):
        rgb = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
        assert (drawn == rgb).all(1).sum() > 500, colour


def test_a_figure_shows_dark_images_of_16_bits() -> None:
    task = make()
    batch = task.example_batch(2)
    dark = batch | {"image": batch["image"].to(torch.uint16)}  # up to 255 of 65,535
    logits = torch.zeros(2, task.config.task.num_classes)
    shown = [np.asarray(task.figure(Given(logits).eval(), each).convert("L")) for each in (batch, dark)]
    bright = [((pixels > 150) & (pixels < 240)).mean() for pixels in shown]
    assert bright[1] > 0.5 * bright[0] > 0.01


def test_a_mixed_sample_is_right_if_its_larger_part_is_predicted() -> None:
    image = Image.new("RGB", (8, 8))
    names = ["x" * 100, "y"]
    for predicted, colour in ((1, RIGHT), (0, WRONG)):
        sheet = prediction_sheet([image], [{0: 0.3, 1: 0.7}], [{predicted: 0.9}], names)
        rgb = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
        assert (np.asarray(sheet).reshape(-1, 3) == rgb).all(1).sum() > 500


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_labelled_data(tmp_path_factory.mktemp("labelled"))


@pytest.mark.slow
def test_a_run_learns_tints_and_goes_on_to_the_bit_where_it_stopped(shards: Path, tmp_path: Path) -> None:
    """Repeats, mixup, cutmix, jitter, erasing and drop path on."""
    learning = ["optim.steps=16", "optim.lr=5e-3", "checkpoint.every_steps=8", "eval.every_steps=8", "task.repeats=2"]
    learning += ["task.auto_augment=null", "eval.figure_every_steps=16"]
    assert run_here(tiny_classification(shards, tmp_path / "whole", *learning)) == FINISHED
    last = [row for row in metrics(tmp_path / "whole") if "eval/top1" in row][-1]
    assert last["eval/samples"] == 7
    assert last["eval/top1"] >= 6 / 7
    assert {"eval/loss", "eval/ece", "eval/mean_class_accuracy"} <= last.keys()
    assert (tmp_path / "whole" / "figures" / "classification-step-00000016.png").is_file()

    shutil.copytree(tmp_path / "whole", tmp_path / "split")
    shutil.rmtree(tmp_path / "split" / "checkpoints" / "step-00000016")
    assert run_here(tiny_classification(shards, tmp_path / "split", *learning)) == FINISHED
    assert comparable(tmp_path / "split") == comparable(tmp_path / "whole")


@pytest.mark.slow
def test_labels_that_cannot_be_used_end_the_run_in_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "s"
    folder.mkdir()
    make_labelled_shard(folder / "train-0.tar", 12, 0, {3: b"9", 5: None})
    make_labelled_shard(folder / "eval-0.tar", 4, 0)
    few = ["eval.every_steps=0", "eval.figure_every_steps=0", "task.auto_augment=null", "data.max_broken_share=0.001"]
    assert run_here(tiny_classification(folder, tmp_path / "run", *few)) == FAILED
    assert "samples were broken, more than data.max_broken_share=0.001 allows" in capsys.readouterr().err
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "sample train-0.tar/train-0-0003" in log
    assert "its label 9 is outside 0 to 2" in log

    make_labelled_shard(folder / "train-0.tar", 12, 0, dict.fromkeys(range(12)))
    assert run_here(tiny_classification(folder, tmp_path / "other", *few)) == FAILED
    loading, error = capsys.readouterr().err.splitlines()
    assert loading.startswith("swinv2-train: loading ")
    assert "samples in a row are broken, the last of them train-0.tar/train-0-00" in error
    assert "(it has no label (no member cls" in error
