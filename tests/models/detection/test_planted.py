"""Planted weights: layers that copy channels turn maps with the objects painted in into exactly these objects."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from swinv2_train.models.detection.boxes import encode, overlaps
from swinv2_train.models.detection.pooler import BoxFeatures
from swinv2_train.models.detection.proposals import Predicted, ProposalNetwork
from swinv2_train.models.detection.roi_heads import DEVIATIONS, RoiHeads, Step
from swinv2_train.models.detection.semantic import SemanticBranch
from tests.models.detection.made import KINDS, objects, section

CLASSES, CHANNELS, SIDE = 3, 8, 512
BOXES = [[32.0, 48.0, 144.0, 160.0], [256.0, 64.0, 368.0, 176.0], [128.0, 304.0, 352.0, 472.0]]
LABELS = [1, 0, 2]
SURE = 30.0
"""Logit of a sure answer."""


@pytest.fixture(autouse=True)
def _large_canvas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.models.detection.made.CANVAS", (SIDE, SIDE))


def painted() -> tuple[list[Tensor], Tensor]:
    """Maps with 1 in channel k in the left five sevenths of every object of class k, and the masks of the objects."""
    masks = torch.zeros(len(BOXES), SIDE, SIDE, dtype=torch.bool)
    for mask, (left, top, right, bottom) in zip(masks, BOXES, strict=True):
        mask[int(top) : int(bottom), int(left) : round(left + (right - left) * 5 / 7)] = True
    pixels = torch.zeros(1, CHANNELS, SIDE, SIDE)
    for mask, label in zip(masks, LABELS, strict=True):
        pixels[0, label][mask] = 1
    return [nn.functional.avg_pool2d(pixels, 4 * 2**number) for number in range(4)], masks


@torch.no_grad()
def copy_channels(model: nn.Module) -> None:
    """Make every convolution and linear layer copy its inputs, as far as it has outputs."""
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            module.weight.zero_()
            assert module.bias is not None
            module.bias.zero_()
        if isinstance(module, nn.Conv2d):
            middle = module.kernel_size[0] // 2
            for channel in range(min(module.in_channels, module.out_channels)):
                module.weight[channel, channel, middle, middle] = 1
        elif isinstance(module, nn.ConvTranspose2d):
            for channel in range(module.in_channels):
                module.weight[channel, channel] = 1
        elif isinstance(module, nn.Linear):
            cells = max(1, module.in_features // CHANNELS) if module.in_features == CHANNELS * 49 else 1
            for channel in range(min(module.in_features // cells, module.out_features)):
                module.weight[channel, channel * cells : (channel + 1) * cells] = 1 / cells


@torch.no_grad()
def planted(kind: str, **task: Any) -> RoiHeads:
    """Heads that read classes and masks from the channels, and leave boxes where they are."""
    task = {"channels": CHANNELS, "mask_channels": CHANNELS, "head_norm": "none", "semantic_classes": 0, **task}
    heads = RoiHeads(section(kind, **{"box_head": "4conv1fc", "score_threshold": 0.5, **task}), CLASSES)
    copy_channels(heads)
    for head in heads.box_heads:
        head.classes.weight.mul_(4 * SURE)
        head.background.weight.zero_()
        head.background.bias.fill_(2 * SURE)  # between an object and nothing
        for offsets in (head.boxes, head.class_boxes):
            if offsets is not None:
                offsets.weight.zero_()
                offsets.bias.zero_()
    for head in heads.mask_heads or []:
        if head.former is not None:
            head.former.weight.zero_()
        head.classes.weight.mul_(2 * SURE)
        head.classes.bias.fill_(-SURE)
    return heads.eval()


@pytest.mark.parametrize("box_head", ["4conv1fc", "2fc"])
@pytest.mark.parametrize("kind", KINDS)
def test_heads_find_objects_and_masks_exactly(kind: str, box_head: str) -> None:
    """Perfect proposals among others: each object is found once, with its class, box, and mask to the pixel."""
    levels, masks = painted()
    empty = torch.tensor([[400.0, 16.0, 496.0, 112.0], [0.0, 200.0, 100.0, 280.0]])
    proposals = torch.cat([empty, torch.tensor(BOXES)])
    (found,) = planted(kind, box_head=box_head).detections(
        BoxFeatures(levels, 4), [proposals], torch.tensor([[SIDE, SIDE]])
    )
    order = found.boxes[:, 0].argsort()
    expected = sorted(range(3), key=lambda number: BOXES[number][0])
    torch.testing.assert_close(found.boxes[order], torch.tensor(BOXES)[expected])
    assert found.classes[order].tolist() == [LABELS[number] for number in expected]
    assert (found.scores > 0.99).all()
    assert found.masks is not None
    assert found.masks.shape == (3, 28, 28)
    for mask, number in zip(found.masks[order], expected, strict=True):
        assert torch.equal(pasted(mask, BOXES[number], (SIDE, SIDE)), masks[number])


@pytest.mark.parametrize("kind", KINDS)
def test_perfect_heads_have_no_loss(kind: str) -> None:
    """And heads that are wrong about the masks or the classes have one, in these terms."""
    levels, masks = painted()
    targets = objects(BOXES, LABELS)
    targets.masks = masks_of(masks)
    heads = planted(kind)
    step = Step([targets], torch.tensor([[SIDE, SIDE]]), torch.tensor([5]), (SIDE, SIDE))
    proposals = [torch.tensor([[400.0, 16.0, 496.0, 112.0]])]
    with torch.no_grad():
        terms = heads.losses(BoxFeatures(levels, 4), proposals, step)
        assert len(terms) == 3 * heads.task.stages
        assert {name: term.item() for name, term in terms.items()} == pytest.approx(dict.fromkeys(terms, 0), abs=1e-4)
        targets.masks.bits = 255 - targets.masks.bits
        wrong = heads.losses(BoxFeatures(levels, 4), proposals, step)
        assert all((wrong[name] > 1) == name.startswith("mask") for name in wrong)
        targets.classes = targets.classes.flip(0)
        wrong = heads.losses(BoxFeatures(levels, 4), proposals, step)
        assert wrong["class_1"] > 1


def pasted(mask: Tensor, box: list[float], size: tuple[int, int]) -> Tensor:
    """A predicted mask at the size of the image, interpolated at the centers of the pixels in its box."""
    y, x = (torch.arange(side) + 0.5 for side in size)
    x = (x - box[0]) / (box[2] - box[0]) * 2 - 1
    y = (y - box[1]) / (box[3] - box[1]) * 2 - 1
    grid = torch.stack([x.expand(size), y[:, None].expand(size)], dim=2)
    found = nn.functional.grid_sample(mask[None, None], grid[None], padding_mode="border", align_corners=False)[0, 0]
    return (found >= 0.5) & (grid.abs().amax(dim=2) <= 1)


def masks_of(masks: Tensor) -> Any:
    from tests.models.detection.made import packed

    return packed(list(masks.numpy()), [[0, 0, SIDE, SIDE]] * len(masks))


@pytest.mark.parametrize("kind", KINDS)
def test_boxes_move_to_the_objects_stage_by_stage(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Heads that see a fraction of the way to the nearest object: the last boxes are the objects."""
    heads, goals, labels = planted(kind, masks=False), torch.tensor(BOXES), torch.tensor(LABELS)
    seen: list[float] = []

    def predict(features: BoxFeatures, boxes: list[Tensor], stage: int) -> tuple[Tensor, Tensor]:
        overlap, nearest = overlaps(boxes[0], goals).max(dim=1)
        seen.append(overlap.min().item())
        logits = torch.zeros(len(nearest), CLASSES + 1)
        logits[torch.arange(len(nearest)), labels[nearest]] = SURE
        last = stage == heads.task.stages - 1
        way = boxes[0] + (goals[nearest] - boxes[0]) * (1.0 if last else 0.5)
        offsets = torch.full((len(nearest), 1 if heads.task.class_agnostic else CLASSES, 4), 9.0)
        rows = 0 if heads.task.class_agnostic else labels[nearest]
        offsets[torch.arange(len(nearest)), rows] = encode(boxes[0], way, DEVIATIONS[stage])
        return logits, offsets

    monkeypatch.setattr(heads, "_predict", predict)
    shifted = torch.cat([goals + 24, goals - 20, goals + torch.tensor([0.0, -30, 30, 0])])
    (found,) = heads.detections(BoxFeatures(painted()[0], 4), [shifted], torch.tensor([[SIDE, SIDE]]))
    order = found.classes.argsort()
    torch.testing.assert_close(found.boxes[order], goals[labels.argsort()], rtol=0, atol=1e-3)
    assert found.classes[order].tolist() == [0, 1, 2]
    assert len(seen) == heads.task.stages
    assert all(before < after for before, after in pairwise(seen))
    assert found.masks is None


@pytest.mark.parametrize("kind", ["cascade", "htc"])
def test_a_stage_trains_on_the_boxes_of_the_one_before(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    heads, goals, drawn = planted(kind), torch.tensor(BOXES), []
    original = RoiHeads._samples

    def samples(self: RoiHeads, boxes: list[Tensor], step: Step, stage: int, draw: int) -> Any:
        drawn.append((stage, draw, boxes[0]))
        return original(self, boxes, step, stage, draw)

    monkeypatch.setattr(RoiHeads, "_samples", samples)
    for head in heads.box_heads:
        for offsets in (head.boxes, head.class_boxes):
            if offsets is not None:
                with torch.no_grad():
                    offsets.bias.view(-1, 4)[:, 0] = 1  # a step to the right
    levels, masks = painted()
    targets = objects(BOXES, LABELS)
    targets.masks = masks_of(masks)
    step = Step([targets], torch.tensor([[SIDE, SIDE]]), torch.tensor([5]), (SIDE, SIDE))
    heads.losses(BoxFeatures(levels, 4), [goals - 40], step)
    stages = [0, 1, 2] if kind == "cascade" else [0, 0, 1, 1, 2, 2]
    assert [stage for stage, _, _ in drawn] == stages
    assert len({draw for _, draw, _ in drawn}) == len(drawn), "each draw has its own numbers"
    moves = [0.1, 0.05, 0.033]
    expected = goals - 40
    for number, (_, _, boxes) in enumerate(drawn):
        if number and (kind == "cascade" or number % 2):
            stage = drawn[number - 1][0]
            expected = expected + moves[stage] * (expected[:, 2:3] - expected[:, :1]) * torch.tensor([1.0, 0, 1, 0])
        if number == 0:
            assert torch.equal(boxes, expected)
        else:  # clipped to the image, and without the objects' own boxes
            torch.testing.assert_close(boxes, expected.clamp(0, SIDE), rtol=1e-5, atol=1e-3)
            expected = expected.clamp(0, SIDE)


def test_perfect_scores_make_the_objects_the_best_proposals() -> None:
    task = section("cascade", channels=CHANNELS)
    network = ProposalNetwork(task, 4).eval()
    levels = [torch.zeros(1, CHANNELS, SIDE // 4 // 2**number, SIDE // 4 // 2**number) for number in range(5)]
    blank = network(levels)
    goals = torch.tensor(BOXES)
    overlap, nearest = overlaps(blank.anchors, goals).max(dim=1)
    found = Predicted(
        blank.anchors, blank.counts, (overlap * 2 * SURE - SURE)[None],
        encode(blank.anchors, goals[nearest], (1.0,) * 4)[None],
    )  # fmt: skip
    boxes, scores = network.proposals(found, torch.tensor([[SIDE, SIDE]]))[0]
    for goal in goals:
        assert (boxes[:9] - goal).abs().amax(dim=1).min() < 1e-2
    assert scores.tolist() == sorted(scores.tolist(), reverse=True)
    losses = network.losses(found, [objects(BOXES, LABELS)], torch.tensor([[SIDE, SIDE]]), torch.tensor([1]))
    assert losses["rpn_box"] == pytest.approx(0, abs=1e-5)


def test_a_network_that_copies_a_channel_proposes_the_anchors_of_its_positions() -> None:
    task = section("cascade", channels=CHANNELS, anchor_ratios=[1.0])
    network = ProposalNetwork(task, 4).eval()
    copy_channels(network)
    with torch.no_grad():
        network.offsets.weight.zero_()
    levels = [torch.zeros(1, CHANNELS, SIDE // 4 // 2**number, SIDE // 4 // 2**number) for number in range(5)]
    levels[1][0, 0, 20, 30], levels[3][0, 0, 7, 6] = 5.0, 4.0
    boxes, _ = network.proposals(network(levels), torch.tensor([[SIDE, SIDE]]))[0]
    assert boxes[:2].tolist() == [[240 - 16, 160 - 16, 240 + 16, 160 + 16], [192 - 64, 224 - 64, 192 + 64, 224 + 64]]


@torch.no_grad()
def test_the_semantic_branch_reads_classes_from_the_channels() -> None:
    branch = SemanticBranch(section("htc", channels=CHANNELS, semantic_classes=5), 5, 8)
    copy_channels(branch)
    for number in (0, 2, 3, 4):
        branch.laterals[number].weight.zero_()
    branch.classifier.weight.mul_(SURE)
    labels = torch.randint(0, 5, (2, 40, 56), generator=torch.Generator().manual_seed(1))
    pixels = labels.repeat_interleave(8, 1).repeat_interleave(8, 2)
    levels = [torch.zeros(2, CHANNELS, 80 // 2**number, 112 // 2**number) for number in range(5)]
    levels[1] = nn.functional.one_hot(labels, CHANNELS).permute(0, 3, 1, 2).float()
    features, logits = branch(levels)
    assert torch.equal(logits.argmax(dim=1), labels)
    torch.testing.assert_close(features, levels[1])
    assert branch.loss(logits, pixels) == pytest.approx(0, abs=1e-5)
    assert branch.loss(logits, (pixels + 1) % 5) == pytest.approx(2 * SURE, rel=1e-4)
    pixels[0, :, 100:], pixels[1] = 255, 255
    assert branch.loss(logits, pixels) == pytest.approx(0, abs=1e-5)
    assert branch.loss(logits[:, :, :, :3], pixels[:, :, :19].to(torch.uint8)) == pytest.approx(0, abs=1e-5)
