"""Probes: how well the frozen features of a model separate labeled images, without training the model.

Two cheap measures, both on the mean over the tokens of the last stage:

- k-NN: the nearest training images by cosine similarity vote for their class, each with weight exp(similarity / 0.07)
  (Wu et al. 2018, arXiv 1805.01978; the protocol of DINO, arXiv 2104.14294).
- a linear classifier: multinomial logistic regression on standardized features with an L2 penalty, which is chosen on a
  held-out fifth of the training samples.

Both are exact solutions without randomness: the same features give the same result for any number of ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from swinv2_train.analysis.features import POOLED, EvalImages, features_of, nearest, normalised
from swinv2_train.config.schema import Config
from swinv2_train.data.configured import open_probe_sets
from swinv2_train.data.decode import DecodeOptions
from swinv2_train.data.errors import BrokenSample
from swinv2_train.data.label_source import LabelSource
from swinv2_train.data.loader import EvalLoader, SampleSource, Share
from swinv2_train.data.overlap import overlap_warning
from swinv2_train.data.sample import Sample
from swinv2_train.data.shards import ShardSet
from swinv2_train.data.workers import Workers
from swinv2_train.launch.environment import local_ranks
from swinv2_train.launch.failures import from_main
from swinv2_train.launch.ranks import Ranks
from swinv2_train.models.state import evaluating
from swinv2_train.tasks.classes import check_same_numbers, unnamed_classes

TEMPERATURE = 0.07
PENALTIES = (1.0, 0.1, 0.01, 0.001, 0.0001)
"""L2 penalties that the linear classifier chooses from; the loss they are added to is a mean over samples."""
_ITERATIONS = 200


class LabelledImages(EvalImages):
    """Evaluation crop and class: the entries `image`, see `EvalImages`, and `label` int64."""

    def __init__(self, config: Config, names: Sequence[str] | None = None) -> None:
        """`names` are those of the classes of the data."""
        super().__init__(config)
        self.labels = LabelSource.of(config.data.label, names)
        self.members = (*self.members, *self.labels.members)

    def __call__(self, sample: Sample, rng: np.random.Generator) -> dict[str, Tensor]:
        entries = super().__call__(sample, rng)
        labels = self.labels.read(sample.raw)
        if len(labels) != 1 or labels[0] < 0:
            raise BrokenSample(f"a probe needs one class number, but it has {list(labels)}")
        return entries | {"label": torch.tensor(labels[0])}


def no_check() -> None:
    """Do nothing between two batches of a probe."""


def _open_sets(config: Config) -> tuple[list[ShardSet], list[str]]:
    """Return the two sets of a probe, the one to learn from first, and warnings about them."""
    found = open_probe_sets(config.data, config.probe)
    keys, sets = list(found), [shards for shards in found.values() if shards is not None]
    cards = {key: shards.card for key, shards in zip(keys, sets, strict=True)}
    check_same_numbers(cards)
    return sets, [*overlap_warning(keys[1], sets[1], keys[0], sets[0]), *unnamed_classes(cards)]


class Probe:
    """The probes of a run (`config.probe`). Creating it and its methods are collectives.

    Args:
        mean, std: per-channel statistics that normalize the images.
        micro_batch: images per rank in one forward pass.
        warn: called with a sentence for the user, on every rank.
        check: called before every batch, the same number of times on every rank; an exception ends the probe.

    Raises:
        DataError: if the shards cannot be used.
    """

    def __init__(
        self,
        config: Config,
        ranks: Ranks,
        *,
        mean: list[float],
        std: list[float],
        micro_batch: int,
        warn: Callable[[str], None],
        check: Callable[[], None] = no_check,
    ) -> None:
        self.config, self.ranks = config, ranks
        self.mean, self.std, self.micro_batch = mean, std, micro_batch
        self.warn, self.check = warn, check
        self._warned: set[str] = set()
        self._place = "probe"
        self._sets, lines = from_main(ranks, lambda: _open_sets(config))
        for line in lines:
            self._warn_once(line)

    @torch.no_grad()
    def measure(self, model: nn.Module, step: int | None) -> dict[str, float]:
        """Return `probe/knn_top1` and `probe/linear_top1`, in [0, 1], as far as the config enables them.

        Identical on every rank. The model may be in training, of any task; its mode is restored. Samples without
        exactly one label are skipped with a warning.

        Args:
            step: step of the run, for the warnings.

        Raises:
            DataError: if no sample of a set can be used.
        """
        self._place = "probe" if step is None else f"probe at step {step}"
        with evaluating(model):
            train, test = (self._features(model, shards) for shards in self._sets)
        scores: dict[str, float] = {}
        if self.ranks.is_main:
            scores = self._scores(train, test)
        return self.ranks.broadcast(scores)

    def _scores(self, train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor]) -> dict[str, float]:
        unknown = ~torch.isin(test[1], train[1])
        if unknown.any():
            self._warn_once(
                f"{int(unknown.sum())} of {len(test[1])} samples are of classes that none of the "
                f"{len(train[1])} samples it learns from has: raise probe.max_samples, or shuffle the shards "
                "(swinv2-data pack does)"
            )
        scores = {}
        if self.config.probe.knn:
            scores["probe/knn_top1"] = knn_accuracy(train, test, self.config.probe.knn)
        if self.config.probe.linear:
            with torch.enable_grad():
                scores["probe/linear_top1"] = linear_accuracy(train, test)
        return scores

    def _features(self, model: nn.Module, shards: ShardSet) -> tuple[Tensor, Tensor]:
        """Return features (N, D) float64 and classes (N,) of the first samples of a set, on the device, in their
        order."""
        own = self._own_features(model, shards)
        # The gathered features are in rank order; sort them, because the result must not depend on the number of ranks.
        positions, labels, vectors = (np.concatenate(column) for column in zip(*self.ranks.gather(own), strict=True))
        order = np.argsort(positions)
        device = self.ranks.device
        return torch.from_numpy(vectors[order]).to(device, torch.float64), torch.from_numpy(labels[order]).to(device)

    def _own_features(self, model: nn.Module, shards: ShardSet) -> tuple[np.ndarray, ...]:
        """Return positions, classes, and features (n, D) float32 of this rank's part."""
        count = min(self.config.probe.max_samples, shards.num_samples)
        config, ranks = self.config, self.ranks
        names = shards.card.class_names if shards.card else None
        decoding = DecodeOptions.of(config.data, self.mean)
        size = min(self.micro_batch, -(-count // ranks.world_size))
        loader = EvalLoader(
            SampleSource(shards, LabelledImages(config, names), config.model.in_channels, seed=0, decoding=decoding),
            Share(size, ranks.rank, ranks.world_size, local_ranks(), config.data.connections),
            num_samples=count,
            workers=Workers(config.data.num_workers, config.data.prefetch_batches),
        )
        parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        with closing(loader):
            for batch in loader:
                self.check()
                for _, name, reason in batch["broken"]:
                    self._warn_once(f"sample {name} is skipped: {reason}")
                images = normalised(batch["image"].to(self.ranks.device), self.mean, self.std)
                features = features_of(model, images)[POOLED]
                kept = [part[batch["valid"]].numpy() for part in (batch["position"], batch["label"], features)]
                parts.append((kept[0], kept[1], kept[2]))
        return tuple(np.concatenate(column) for column in zip(*parts, strict=True))

    def _warn_once(self, text: str) -> None:
        if text not in self._warned:
            self._warned.add(text)
            self.warn(f"{self._place}: {text}")


def first_images(config: Config, shards: ShardSet, count: int, mean: Sequence[float]) -> Tensor:
    """Return the evaluation crops of the first `count` usable samples as decoded, see `EvalImages`.

    Args:
        mean: per-channel mean that images are normalized with, for `data.background=mean`.

    Raises:
        DataError: if no sample is usable.
    """
    count = min(count, shards.num_samples)
    decoding = DecodeOptions.of(config.data, mean)
    source = SampleSource(shards, EvalImages(config), config.model.in_channels, seed=0, decoding=decoding)
    loader = EvalLoader(source, Share(count), num_samples=count)
    with closing(loader):
        batch = next(iter(loader))
    return batch["image"][batch["valid"]]


def knn_accuracy(train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], neighbours: int) -> float:
    """Return the fraction of test samples whose class the weighted vote of their nearest training samples finds.

    Args:
        train, test: features (N, D) and classes (N,).
        neighbors: number of votes; limited to the number of training samples.
    """
    (features, labels), (queries, targets) = train, test
    classes, votes_for = labels.unique(return_inverse=True)
    right = 0
    for rows, similarity, indices in nearest(features, queries, neighbours):
        votes = torch.zeros(len(rows), len(classes), dtype=similarity.dtype, device=similarity.device)
        votes.scatter_add_(1, votes_for[indices], ((similarity - 1) / TEMPERATURE).exp())
        right += int((classes[votes.argmax(dim=1)] == targets[rows]).sum())
    return right / len(queries)


def linear_accuracy(train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor]) -> float:
    """Return the fraction of test samples that a linear classifier, fitted to the training samples, classifies
    correctly.

    Args:
        train, test: features (N, D) float64 and classes (N,).
    """
    (features, labels), (queries, targets) = train, test
    mean, deviation = features.mean(dim=0), features.std(dim=0, correction=0)
    deviation = torch.where(deviation > 0, deviation, 1.0)
    features, queries = (features - mean) / deviation, (queries - mean) / deviation
    classes, numbers = labels.unique(return_inverse=True)
    held_back = torch.arange(len(features), device=features.device) % 5 == 4
    penalty = PENALTIES[2]
    if held_back.any() and len(numbers[~held_back].unique()) > 1:
        fits = _fits(features[~held_back], numbers[~held_back], len(classes), PENALTIES)
        right = [int((_predicted(fit, features[held_back]) == numbers[held_back]).sum()) for fit in fits]
        penalty = PENALTIES[right.index(max(right))]  # of equal ones, the strongest
    stronger = [value for value in PENALTIES if value >= penalty]
    found = _fits(features, numbers, len(classes), stronger)[-1]
    return int((classes[_predicted(found, queries)] == targets).sum()) / len(queries)


def _fits(features: Tensor, labels: Tensor, num_classes: int, penalties: Sequence[float]) -> list[Tensor]:
    """Return logistic regressions (D + 1, K), with the bias in the last row, for decreasing penalties with warm
    starts."""
    weights = features.new_zeros(features.shape[1] + 1, num_classes, requires_grad=True)
    found = []
    for penalty in penalties:
        optimizer = torch.optim.LBFGS(
            [weights], max_iter=_ITERATIONS, tolerance_grad=1e-6, tolerance_change=1e-10, line_search_fn="strong_wolfe"
        )

        def loss(optimizer: torch.optim.LBFGS = optimizer, penalty: float = penalty) -> Tensor:
            optimizer.zero_grad()
            logits = torch.addmm(weights[-1], features, weights[:-1])
            value = F.cross_entropy(logits, labels) + 0.5 * penalty * weights[:-1].square().sum()
            value.backward()
            return value

        optimizer.step(loss)
        found.append(weights.detach().clone())
    return found


def _predicted(weights: Tensor, features: Tensor) -> Tensor:
    return torch.addmm(weights[-1], features, weights[:-1]).argmax(dim=1)
