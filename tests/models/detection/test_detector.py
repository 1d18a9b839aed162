"""Detectors: parameters, a step on every kind of image, independence of neighbors, dtypes, and the meta device."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from swinv2_train.config.compose import compose
from swinv2_train.config.errors import ConfigError
from swinv2_train.config.model import ModelConfig, count_parameters, stage_geometry
from swinv2_train.config.tasks import DetectionConfig
from swinv2_train.config.tasks.detection_head import head_parameters
from swinv2_train.models import InputError
from swinv2_train.models.detection import Detector, Targets
from swinv2_train.models.detection.box_heads import BoxHead
from swinv2_train.models.detection.boxes import encode
from swinv2_train.models.detection.global_attention import GlobalAttention
from swinv2_train.models.detection.mask_heads import MaskHead
from swinv2_train.models.detection.pooler import BoxFeatures
from swinv2_train.models.detection.proposals import ProposalNetwork
from swinv2_train.models.detection.pyramid import BoxPyramid
from swinv2_train.models.detection.roi_heads import RoiHeads, Step
from swinv2_train.models.detection.semantic import SemanticBranch
from swinv2_train.models.drop_path import drop_path_noise
from tests.models.detection.made import CANVAS, KINDS, SIZES, detector, objects, scenes, section
from tests.models.detection.test_matching import described


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_heads_have_the_parameters_of_the_published_models() -> None:
    task = DetectionConfig
    with torch.device("meta"):
        assert count(BoxHead(task(box_head="2fc", class_agnostic=True), 80)) == 13_982_805
        assert count(BoxHead(task(box_head="2fc"), 80)) == 14_306_705
        assert count(BoxHead(task(class_agnostic=True), 80)) == 15_294_549
        assert count(BoxHead(task(), 80)) == 15_618_449
        assert count(BoxHead(task(class_agnostic=True), 365)) == 15_586_674
        assert count(MaskHead(task(), 80, reads_former=False)) == 2_643_280
        assert count(MaskHead(task(), 80, reads_former=True)) == 2_709_072
        assert count(ProposalNetwork(task(), 4)) == 593_935
        assert count(SemanticBranch(task(semantic_classes=183), 5, 8)) == 2_802_103
        assert count(GlobalAttention(768, 24)) == 12 * 768**2 + 15 * 768


@pytest.mark.parametrize("masks", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_classes_have_the_names_of_the_section(kind: str, masks: bool) -> None:
    """So that `init_from` takes them by the name of the class; other parameters have no dimension of classes."""
    with torch.device("meta"):
        model = detector(kind, 37, masks=masks)
    named = dict(model.named_parameters())
    rows = {name for name, parameter in named.items() if 37 in parameter.shape or 38 in parameter.shape}
    assert rows == set(DetectionConfig.HEAD) & named.keys()
    assert all(named[name].shape[0] == 37 for name in rows)
    assert DetectionConfig.HEAD[0] in rows, "the first decides the number of classes"
    kinds = {name.split(".")[1] for name in rows}
    assert kinds == ({"box_heads", "mask_heads"} if masks else {"box_heads"})


def step(model: Detector, targets: list[Targets], **options: Any) -> dict[str, Tensor]:
    """The terms of the images with these objects, each made of noise of its own."""
    images, sizes, seeds, labels = inputs(len(targets))
    dtype = next(model.parameters()).dtype
    semantic = labels if model.semantic is not None else None
    noise = drop_path_noise(seeds, 4)
    return model(images.to(dtype), sizes, targets, noise=noise, seeds=seeds, semantic=semantic, **options)


def inputs(number: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(6)
    images = torch.randn(5, 3, *CANVAS, generator=generator)
    for image, (height, width) in zip(images, SIZES.tolist(), strict=True):
        image[:, height:], image[:, :, width:] = 0, 0
    labels = torch.randint(0, 5, (5, *CANVAS), generator=generator)
    seeds = torch.tensor([3, 4, 1 << 45, -7, 11])
    return images[:number], SIZES[:number], seeds[:number], labels[:number]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_image_trains_every_parameter(kind: str) -> None:
    """Each image alone and all together: several objects, one larger than the canvas, only a crowd, none."""
    model, every = detector(kind).train(), scenes()
    for targets in (every, *([each] for each in every)):
        terms = step(model, targets)
        assert terms.keys() == section(kind).terms().keys()
        assert all(term.isfinite() and term.ndim == 0 and term.dtype == torch.float32 for term in terms.values())
        sum(terms.values()).backward()
        gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
        assert [name for name, gradient in gradients.items() if gradient is None] == []
        assert all(gradient.isfinite().all() for gradient in gradients.values())
        assert gradients["rpn.conv.weight"].any()
        assert gradients["heads.box_heads.0.classes.weight"].any()
        has_objects = any(len(each.boxes) for each in targets)
        assert gradients["heads.mask_heads.0.classes.weight"].any() == has_objects
        model.zero_grad()


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_does_not_depend_on_its_neighbors(kind: str) -> None:
    """The terms of a batch are the sums of the terms of its images, and detections are those of each image alone."""
    model, every = detector(kind, model={"drop_path": 0.3}, score_threshold=0.2).double().train(), scenes()
    images, sizes, seeds, labels = inputs(5)
    images = images.double()
    noise = drop_path_noise(seeds, 4)

    def terms(part: slice) -> dict[str, Tensor]:
        return model(
            images[part], sizes[part], every[part], noise=noise[part], seeds=seeds[part],
            semantic=labels[part] if model.semantic is not None else None,
        )  # fmt: skip

    with torch.no_grad():
        whole, parts = terms(slice(0, 5)), [terms(slice(0, 2)), terms(slice(2, 3)), terms(slice(3, 5))]
        for name, term in whole.items():
            assert term.item() == pytest.approx(sum(part[name].item() for part in parts), rel=1e-9), name
        again = step(model, every[:2])
        assert all(torch.equal(term, again[name]) for name, term in parts[0].items()), "not the same samples again"
        other = model(images[:2], sizes[:2], every[:2], noise=noise[:2], seeds=seeds[:2] + 1, semantic=labels[:2])
        assert other["class_1"] != again["class_1"]
        model.eval()
        together = model(images, sizes)
        for number in range(5):
            (alone,) = model(images[number : number + 1], sizes[number : number + 1])
            found = together[number]
            assert torch.equal(found.classes, alone.classes)
            for mine, theirs in zip((found.boxes, found.scores, found.masks),
                                    (alone.boxes, alone.scores, alone.masks), strict=True):  # fmt: skip
                torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)
    assert any(len(found.boxes) for found in together)


@pytest.mark.parametrize("kind", KINDS)
def test_detections_are_inside_of_their_images(kind: str) -> None:
    model = detector(kind, max_detections=15).eval()
    images, sizes, _, _ = inputs(5)
    with torch.no_grad():
        for soft in (False, True):
            model.heads.task.soft_nms = soft
            for found, (height, width) in zip(model(images, sizes), sizes.tolist(), strict=True):
                assert found.boxes.shape == (15, 4)
                assert found.masks is not None
                assert found.masks.shape == (15, 28, 28)
                assert found.boxes.min() >= 0
                assert found.boxes[:, 0::2].max() <= width
                assert found.boxes[:, 1::2].max() <= height
                assert found.scores.tolist() == sorted(found.scores.tolist(), reverse=True)
                assert set(found.classes.tolist()) <= {0, 1, 2}
        model.heads.task.score_threshold = 1.0
        assert [len(found.masks) for found in model(images, sizes)] == [0] * 5
        model.heads.task.test_flip = True  # which is merged before scores are compared
        assert [len(found.masks) for found in model(images, sizes)] == [15] * 5


def test_soft_suppression_of_a_view_chooses_and_of_an_image_lowers_scores() -> None:
    """The views of an image are softened together, so in one of them the scores remain."""
    boxes = torch.tensor([[0.0, 0, 20, 20], [0, 0, 20, 19], [40, 0, 60, 20], [0, 10, 20, 30]])
    scores = torch.tensor([[0.9, 0], [0.8, 0], [0.3, 0], [0.2, 0]])
    found = {}
    for several in (False, True):
        heads = RoiHeads(section("mask_rcnn", soft_nms=True, nms=0.3, max_detections=3, test_flip=several), 2)
        found[several] = heads._select(boxes, scores, torch.zeros(4, 2, 4), torch.tensor([30, 60]))
    assert found[False].scores.tolist() == pytest.approx([0.9, 0.3, 0.2 * (1 - 200 / 600)])
    assert found[True].scores.tolist() == pytest.approx([0.9, 0.3, 0.2])
    assert found[False].boxes.tolist() == found[True].boxes.tolist() == boxes[[0, 2, 3]].tolist()
    heads.task.max_detections = 9
    every = heads._select(boxes, scores, torch.zeros(4, 2, 4), torch.tensor([30, 60]))
    assert every.scores.tolist() == pytest.approx([0.9, 0.8, 0.3, 0.2]), "from the highest to the lowest"


def test_the_threshold_is_the_lowest_score() -> None:
    heads = RoiHeads(section("mask_rcnn", score_threshold=0.25), 2)
    boxes = torch.tensor([[0.0, 0, 20, 20], [40, 0, 60, 20], [20, 0, 40, 20]])
    scores = torch.tensor([[0.25, 0], [0.2499, 0], [0, 0.75]])
    found = heads._select(boxes, scores, torch.zeros(3, 2, 4), torch.tensor([30, 60]))
    assert found.scores.tolist() == [0.75, 0.25]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("autocast", [False, True])
def test_half_precision_keeps_the_terms_in_fp32(kind: str, autocast: bool) -> None:
    model, every = detector(kind).train(), scenes()[:2]
    expected = step(model, every)
    if autocast:
        with torch.autocast("cpu", torch.bfloat16):
            terms = step(model, every)
    else:
        terms = step(model.bfloat16(), every)
    assert all(term.dtype == torch.float32 for term in terms.values())
    for name in ("rpn_class", "class_1", "mask_1"):
        torch.testing.assert_close(terms[name], expected[name], rtol=0.1, atol=0.02)
    sum(terms.values()).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_proposals_are_drawn_to_the_configured_numbers() -> None:
    """Positives are at most half of the anchors and a quarter of the proposals; objects' own boxes are among them."""
    model = detector("cascade", rpn_samples=8, roi_samples=8).train()
    samples: list[Any] = []
    original = RoiHeads._box_losses

    def losses(self: RoiHeads, logits: Tensor, offsets: Tensor, drawn: list[Any], stage: int) -> Any:
        samples.append(drawn)
        return original(self, logits, offsets, drawn, stage)

    RoiHeads._box_losses, saved = losses, RoiHeads._box_losses
    try:
        step(model, scenes())
    finally:
        RoiHeads._box_losses = saved
    assert len(samples) == 3
    for drawn in samples:
        assert [len(each.objects) for each in drawn] == [2, 1, 1, 0, 0]
        for each, target in zip(drawn, scenes(), strict=True):
            number = len(each.objects)
            assert len(each.boxes) <= 8
            assert torch.equal(each.goals, target.boxes[each.objects])
            assert each.classes[:number].tolist() == target.classes[each.objects].tolist()
            assert (each.classes[number:] == 3).all()
            assert not each.is_truth[number:].any()


@torch.no_grad()
def test_the_loss_of_proposals_is_that_of_all_anchors_if_all_are_drawn() -> None:
    """Against the sums over the anchors of one image, by their definition."""
    network = ProposalNetwork(section("cascade", rpn_samples=10_000), 4).double()
    levels = [torch.randn(1, 8, 16 // 2**number, 20 // 2**number, dtype=torch.float64) for number in range(5)]
    levels[4] = levels[4][:, :, :1, :1]
    target, size = scenes()[0], torch.tensor([[58, 70]])
    found = network(levels)
    terms = network.losses(found, [target], size, torch.tensor([1]))
    scored = moved = torch.zeros(())
    kept = [
        number for number, (left, top, right, bottom) in enumerate(found.anchors.tolist())
        if left + right < 140 and top + bottom < 116
    ]  # fmt: skip
    matched = described(found.anchors[kept].tolist(), target.boxes.tolist(), 0.7, 0.3, 0.3)
    for number, index in zip(kept, matched, strict=True):
        logit = found.logits[0, number]
        if index == -1:
            scored = scored + nn.functional.softplus(logit)
        elif index >= 0:
            scored = scored + nn.functional.softplus(-logit)
            goal = encode(found.anchors[number : number + 1], target.boxes[index : index + 1], (1.0,) * 4)[0]
            error = (found.offsets[0, number] - goal).abs()
            moved = moved + torch.where(error < 1 / 9, 4.5 * error**2, error - 1 / 18).sum()
    assert sum(index >= 0 for index in matched) > 3
    assert terms["rpn_class"].item() == pytest.approx(scored.item() / 10_000, rel=1e-6)
    assert terms["rpn_box"].item() == pytest.approx(moved.item() / 10_000, rel=1e-6)


def test_crowd_can_be_left_out_of_the_background() -> None:
    counted, ignored = (
        detector("mask_rcnn", ignore_crowd=value, rpn_samples=9999, roi_samples=400) for value in (False, True)
    )
    image = [objects([[20, 20, 52, 50]], [1], crowd=[[0, 0, 80, 64]])]
    before, after = (step(model.train(), image) for model in (counted, ignored))
    assert after["rpn_class"] < before["rpn_class"]
    assert after["class_1"] < before["class_1"]


def test_objects_without_a_mask_train_boxes_only() -> None:
    model, image = detector("cascade").train(), scenes()[1]
    with_mask = step(model, [image])
    assert image.masks is not None
    image.masks.windows, image.masks.bits = torch.zeros_like(image.masks.windows), image.masks.bits[:0]
    without = step(model, [image])
    assert without["mask_1"] == 0
    assert with_mask["mask_1"] > 0
    assert torch.equal(with_mask["class_1"], without["class_1"])
    image.masks = None
    with pytest.raises(InputError, match="objects without masks"):
        step(model, [image])


def test_the_pyramid_is_that_of_torchvision() -> None:
    own, theirs = BoxPyramid([4, 8, 16, 32], 6), FeaturePyramidNetwork([4, 8, 16, 32], 6, LastLevelMaxPool())
    state = {}
    for number in range(4):
        for kind in ("weight", "bias"):
            state[f"inner_blocks.{number}.0.{kind}"] = getattr(own.laterals[number], kind)
            state[f"layer_blocks.{number}.0.{kind}"] = getattr(own.outputs[number], kind)
    theirs.load_state_dict(state)
    maps = [torch.randn(2, 4 * 2**number, *side) for number, side in enumerate([(25, 37), (13, 19), (7, 10), (4, 5)])]
    for mine, other in zip(own(maps), theirs(dict(enumerate(maps))).values(), strict=True):
        torch.testing.assert_close(mine, other)


def test_initial_weights_are_those_of_mmdetection() -> None:
    model = detector("cascade", 40, channels=64, box_hidden=128, mask_channels=64)
    head, masks = model.heads.box_heads[0], model.heads.mask_heads[0]
    for weight, std in (
        (model.rpn.conv.weight, 0.01), (model.rpn.offsets.weight, 0.01), (head.classes.weight, 0.01),
        (head.class_boxes.weight, 0.001), (masks.convs[0].weight, (2 / (64 * 9)) ** 0.5),
        (masks.upsampling.weight, (2 / (64 * 4)) ** 0.5), (masks.classes.weight, 0.01),
    ):  # fmt: skip
        assert weight.std().item() == pytest.approx(std, rel=0.1)
    for weight in (head.linears[0].weight, model.pyramid.outputs[0].weight):
        cells = weight[0, 0].numel()
        bound = (6 / (cells * (weight.shape[0] + weight.shape[1]))) ** 0.5
        assert 0.9 * bound < weight.abs().max() <= bound
    assert not any(parameter.any() for name, parameter in model.heads.named_parameters() if name.endswith("bias")
                   and "norm" not in name)  # fmt: skip


def test_global_attention_sees_every_token_and_drops_branches_by_seed() -> None:
    layer = GlobalAttention(32, 4).double()
    x = torch.randn(2, 5, 6, 32, dtype=torch.float64)
    whole = layer(x)
    tokens = x.flatten(1, 2)
    layout = nn.TransformerEncoderLayer(32, 4, 128, 0.0, "gelu", batch_first=True, norm_first=True).double()
    names = {
        "self_attn.in_proj_": "qkv.",
        "self_attn.out_proj.": "proj.",
        "linear1.": "mlp.fc1.",
        "linear2.": "mlp.fc2.",
    }
    state = dict(layer.named_parameters())
    for theirs, mine in {**names, "norm1.": "norm1.", "norm2.": "norm2."}.items():
        for kind in ("weight", "bias"):
            parameter = layout.get_parameter(f"{theirs}{kind}")
            parameter.data.copy_(state[f"{mine}{kind}"])
    expected = layer.norm(layout(tokens)).view_as(x)
    torch.testing.assert_close(whole, expected)
    nothing = layer(x, torch.zeros(2, 2, dtype=torch.float64))
    torch.testing.assert_close(nothing, layer.norm(x))
    model = detector("htc", model={"drop_path": 0.5}).train()
    seeds = torch.arange(200)
    kept = model._branches(torch.zeros(200, 2, 2, 128), seeds)
    assert 0.4 < (kept == 0).float().mean() < 0.6
    assert torch.equal(kept[50:], model._branches(torch.zeros(150, 2, 2, 128), seeds[50:]))
    assert model.eval()._branches(torch.zeros(200, 2, 2, 128), seeds) is None


@pytest.mark.slow
def test_htc_on_the_giant_at_1536_is_laid_out_without_memory() -> None:
    """Forward and backward in training on the device meta, from pixels to the outputs of all heads, by the recipe.

    The choice of proposals, of anchors, and of the boxes of the next stage depends on values, which meta tensors do
    not have. So each stage begins with given proposals, from which it draws and pools as usual.
    """
    config = compose(["+experiment=coco_giant"])
    assert isinstance(config.task, DetectionConfig)
    with torch.device("meta"):
        model = Detector(config.model, config.task, config.task.num_classes, (1536, 1536)).bfloat16().train()
        images, labels = torch.empty(1, 3, 1536, 1536, dtype=torch.bfloat16), torch.empty(1, 1536, 1536)
        seeds = torch.empty(1, dtype=torch.int64)
    added = head_parameters(stage_geometry(config.model, 1536, 1536), config.task)
    assert count(model) == count_parameters(config.model) + added == 3_260_907_413
    levels = model.levels(images, seeds=seeds)
    assert [tuple(level.shape[1:]) for level in levels] == [(256, side, side) for side in (384, 192, 96, 48, 24)]
    found = model.rpn(levels)
    assert found.anchors.shape == (589_248, 4)
    assert (found.logits.shape, found.offsets.shape) == ((1, 589_248), (1, 589_248, 4))
    embedding, logits = model.semantic(levels)
    assert (embedding.shape, logits.shape) == ((1, 256, 192, 192), (1, 183, 192, 192))
    outputs = [found.logits, found.offsets, model.semantic.loss(logits, labels)]
    corners = 700 * torch.rand(2000, 2, generator=torch.Generator().manual_seed(1))
    proposals = torch.cat([corners, 1 + 2 * corners], dim=1)
    target = Targets(proposals[:100].clone(), torch.arange(100) % 80, torch.zeros(0, 4))
    drawing = Step([target], torch.tensor([[1536, 1536]]), torch.tensor([3]), (1536, 1536))
    features, heads = BoxFeatures(levels[:-1], 4, embedding), model.heads
    for stage in range(3):
        (drawn,) = heads._samples([proposals], drawing, stage, draw=stage)
        assert (len(drawn.boxes), len(drawn.objects)) == (512, 128)
        scores, offsets = heads._predict(features, [drawn.boxes], stage)
        assert (scores.shape, offsets.shape) == ((512, 81), (512, 1, 4))
        masks = heads.mask_heads.of_stage(features.of_masks([drawn.boxes[:128]]), stage, drawn.classes[:128])
        assert masks.shape == (128, 28, 28)
        outputs += [scores, offsets, masks]
    assert all(output.is_meta and output.dtype == torch.float32 for output in outputs)
    sum(output.sum() for output in outputs).backward()
    assert [name for name, each in model.named_parameters() if each.grad is None] == []
    assert all(parameter.grad.is_meta for parameter in model.parameters())
    with torch.no_grad():  # of the best 100 detections, the mean of all heads
        masks = heads.mask_heads.probabilities(features.of_masks([proposals[:100]]), torch.arange(100) % 80)
    assert (masks.shape, masks.is_meta) == ((100, 28, 28), True)


def test_wrong_arguments_are_named() -> None:
    model = detector("htc").train()
    images, sizes, seeds, labels = inputs(2)
    with pytest.raises(InputError, match="2 images need as many sizes and targets"):
        model(images, sizes, scenes()[:1])
    with pytest.raises(InputError, match="pass semantic"):
        model(images, sizes, scenes()[:2], seeds=seeds)
    assert model(images, sizes, scenes()[:2], semantic=labels).keys() == section("htc").terms().keys()
    with pytest.raises(ConfigError, match="num_classes"):
        Detector(ModelConfig(), DetectionConfig(), 0)


def test_features_are_pooled_in_fp32() -> None:
    features = BoxFeatures([torch.zeros(1, 2, 8, 8, dtype=torch.bfloat16)] * 4, 4)
    assert all(level.dtype == torch.float32 for level in features.levels)
    assert features.of_boxes([torch.tensor([[0.0, 0, 16, 16]])]).dtype == torch.bfloat16
