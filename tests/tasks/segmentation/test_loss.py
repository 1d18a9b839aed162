"""Loss of a segmenter: values and gradients of torch's plain formulas at full size, without logits of that size."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from swinv2_train.tasks.segmentation.loss import PixelLoss

K, IGNORE = 5, 255


def labels_of(size: tuple[int, int], *, ignored: float = 0.2, classes: int = K, batch: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(0, classes, (batch, *size), generator=generator, dtype=torch.uint8)
    labels[torch.rand(labels.shape, generator=generator) < ignored] = IGNORE
    return labels


def logits_of(size: tuple[int, int], stride: int = 4, batch: int = 2) -> Tensor:
    cells = [-(-side // stride) for side in size]
    return 3 * torch.randn(batch, K, *cells, generator=torch.Generator().manual_seed(2))


def enlarged(logits: Tensor, size: tuple[int, int], stride: int) -> Tensor:
    whole = F.interpolate(logits, scale_factor=stride, mode="bilinear", align_corners=False)
    return whole[:, :, : size[0], : size[1]]


def by_definition(logits: Tensor, labels: Tensor, rule: PixelLoss, stride: int) -> tuple[Tensor, Tensor]:
    """Cross-entropy and Dice with everything at full size, in float64."""
    scores = enlarged(logits, tuple(labels.shape[1:]), stride)
    targets = labels.long()
    counted = targets != rule.ignore
    plain = F.cross_entropy(scores, targets, ignore_index=rule.ignore, reduction="none")
    weights = torch.ones(K) if rule.class_weights is None else rule.class_weights
    factors = weights.double()[targets * counted] * (1 - (-plain).exp()) ** rule.focal_gamma
    dice = []
    for image, truth, valid in zip(scores.softmax(dim=1), targets, counted, strict=True):
        losses = []
        for k in truth[valid].unique():
            p, g = image[k][valid], (truth[valid] == k).double()
            losses.append(1 - 2 * (p * g).sum() / (p.square().sum() + g.square().sum()))
        dice.append(torch.stack(losses).mean() if losses else image.sum() * 0)
    return (plain * factors)[counted].sum(), torch.stack(dice).sum()


CASES = {
    "plain": ((32, 32), 4, {}),
    "odd": ((29, 35), 4, {}),
    "auxiliary": ((29, 35), 16, {}),
    "one row": ((1, 7), 4, {}),
    "weights": ((23, 20), 4, {"class_weights": torch.tensor([0.5, 2, 0, 1, 3.0])}),
    "focal": ((23, 20), 4, {"focal_gamma": 2.0}),
    "an ignored class": ((23, 20), 4, {"ignore": 0}),
    "root focal": ((23, 20), 4, {"focal_gamma": 0.5, "class_weights": torch.arange(5.0)}),
}


@pytest.mark.parametrize("rows", [1, 5, 64])
@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_are_those_of_the_formulas_at_full_size(name: str, rows: int) -> None:
    size, stride, settings = CASES[name]
    rule = PixelLoss(**{"ignore": IGNORE} | settings, strip_bytes=4 * 2 * K * size[1] * rows)
    labels, logits = labels_of(size), logits_of(size, stride)
    labels[labels == IGNORE] = rule.ignore
    ours, plain = logits.clone().requires_grad_(), logits.double().requires_grad_()
    found = rule.cross_entropy_and_dice(ours, labels, stride)
    expected = by_definition(plain, labels, rule, stride)
    for one, other in zip(found, expected, strict=True):
        assert float(one.detach()) == pytest.approx(float(other.detach()), rel=2e-6)
    # Different factors, so that no term can stand in for another.
    (0.7 * found[0] - 3 * found[1]).backward()
    (0.7 * expected[0] - 3 * expected[1]).backward()
    torch.testing.assert_close(ours.grad.double(), plain.grad, rtol=1e-4, atol=2e-5)
    assert torch.equal(rule.cross_entropy(logits, labels, stride), found[0])


def test_a_batch_without_labeled_pixels_has_no_loss_and_no_gradient() -> None:
    logits = logits_of((16, 16)).requires_grad_()
    rule = PixelLoss(IGNORE, focal_gamma=0.5)
    entropy, dice = rule.cross_entropy_and_dice(logits, labels_of((16, 16), ignored=2), 4)
    (entropy + dice).backward()
    found = (entropy.detach(), dice.detach(), logits.grad.abs().max())
    assert list(map(float, found)) == [0, 0, 0]


def test_certain_logits_keep_their_gradients_finite() -> None:
    labels = labels_of((8, 8), classes=2)
    logits = torch.full((2, K, 2, 2), -1e4)
    logits[:, 0] = 1e4
    logits.requires_grad_()
    entropy, dice = PixelLoss(IGNORE, focal_gamma=0.5).cross_entropy_and_dice(logits, labels, 4)
    (entropy + dice).backward()
    assert logits.grad.isfinite().all()
    assert entropy > 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_measured_in_single(dtype: torch.dtype) -> None:
    labels, logits = labels_of((29, 35)), logits_of((29, 35)).to(dtype)
    half, single = logits.clone().requires_grad_(), logits.float().requires_grad_()
    rule = PixelLoss(IGNORE)
    found, expected = (rule.cross_entropy(each, labels, 4) for each in (half, single))
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)
    for value in (found, expected):
        (value / labels.numel()).backward()
    assert half.grad.dtype == dtype
    assert torch.equal(half.grad, single.grad.to(dtype))


def test_sixteen_bit_labels() -> None:
    labels = labels_of((16, 16)).int()
    wide = torch.where(labels == IGNORE, 65535, labels)
    logits = logits_of((16, 16))
    assert torch.equal(
        PixelLoss(65535).cross_entropy(logits, wide, 4), PixelLoss(IGNORE).cross_entropy(logits, labels.byte(), 4)
    )


class LargestTensor(TorchDispatchMode):
    """Records the bytes of the largest memory that an operation returns; views count for nothing."""

    largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        found = function(*args, **(kwargs or {}))
        for each in found if isinstance(found, (tuple, list)) else [found]:
            if isinstance(each, Tensor):
                self.largest = max(self.largest, each.untyped_storage().nbytes())
        return found


def test_nothing_of_the_size_of_the_enlarged_logits_is_made() -> None:
    size = (128, 96)
    labels, logits = labels_of(size), logits_of(size).requires_grad_()
    rows = 4 * 2 * K * size[1] * 16
    seen = []
    for rule in (PixelLoss(IGNORE, strip_bytes=rows), PixelLoss(IGNORE)):
        with LargestTensor() as mode:
            sum(rule.cross_entropy_and_dice(logits, labels, 4)).backward()
        seen.append(mode.largest)
    assert seen == [rows, rows * 128 // 16]
