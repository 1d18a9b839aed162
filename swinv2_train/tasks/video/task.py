"""Classification of videos: a linear head on the pooled features of a clip (Video Swin: arXiv 2106.13230).

A training sample is one random clip. An evaluation averages the probabilities of several views of each video, which are
clips times crops; each video counts once, whatever the number of its views.
"""

from __future__ import annotations

import copy
import math

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from swinv2_train.config.schema import Config
from swinv2_train.config.tasks import VideoConfig
from swinv2_train.config.tasks.video import CLIP_TOP1
from swinv2_train.data.augment import normalise_clips
from swinv2_train.data.batch import TOGETHER, Batch
from swinv2_train.data.transform import Transform
from swinv2_train.models.channel_dropout import channel_noise
from swinv2_train.models.heads import ImageClassifier
from swinv2_train.tasks.class_report import ClassReport
from swinv2_train.tasks.classification import Classification, unpack_labels
from swinv2_train.tasks.measured import Measured
from swinv2_train.tasks.metrics import classification_sums, correct_samples
from swinv2_train.tasks.pictures import prediction_sheet
from swinv2_train.tasks.task import sample_seeds
from swinv2_train.tasks.video.predictor import VideoPredictor
from swinv2_train.tasks.video.transform import VideoTransform
from swinv2_train.tracking.figures import film_strip

HEAD_STD = 0.01
"""Standard deviation of the initial weights of the head (Video Swin)."""
_CLIP, _VIEWS = 5, 6
"""Axes of a batch of clips, and of one of views of videos."""


class VideoReport(ClassReport):
    """Report of a classification of videos."""

    UNIT = "videos"


class Video(Classification):
    """The task of video classification; for arguments see `Classification`."""

    PREDICTOR = VideoPredictor
    REPORT = VideoReport
    task: VideoConfig

    def transform(self, *, training: bool) -> Transform:
        return VideoTransform(self.config, self.mean, self.std, training=training, names=self.class_names)

    @property
    def figure_transform(self) -> Transform:
        """Transform to one view of each video: the center of the clip in its middle."""
        transform = copy.copy(self.eval_transform)
        assert isinstance(transform, VideoTransform)
        transform.view_counts = (1, 1)
        return transform

    @staticmethod
    def model_of(config: Config, size: tuple[int, int]) -> nn.Module:
        assert isinstance(config.task, VideoConfig)
        classes = max(1, config.task.num_classes)
        return ImageClassifier(config.model, classes, size, dropout=config.task.dropout, head_std=HEAD_STD)

    def images(self, batch: Batch) -> Tensor:
        """(B, 3, T, H, W) fp32 on the device, normalized: the clips of training, or the first view of each video."""
        clips = batch["image"]
        return self._input(clips[:, 0] if clips.ndim == _VIEWS else clips, batch)

    def _input(self, clips: Tensor, batch: Batch) -> Tensor:
        """(..., 3, T, H, W) uint8 -> fp32 on the device of the batch, where the images need not be."""
        return normalise_clips(clips.to(batch["position"].device, non_blocking=True), self.mean, self.std)

    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return those of the clips of training, or of views together: of the mean of their probabilities."""
        if batch["image"].ndim == _VIEWS:
            return self._averaged(self._view_logits(model, batch))
        noise = self.noise(model, batch)
        dropout = None
        if model.training and self.task.dropout:
            width = 8 * self.config.model.embed_dim
            dropout = channel_noise(sample_seeds(self.config, batch["position"]), width)
        return model(self.images(batch), noise=noise, dropout_noise=dropout).float()

    def _view_logits(self, model: nn.Module, batch: Batch) -> Tensor:
        """(views, B, num_classes) of a model in eval mode; of clips of training, which are one view.

        The views of all videos are computed together, in passes of a micro-batch. Only that part is moved to the
        device, so its memory does not grow with their number. Batches of equal size have the same number of passes:
        under ZeRO-3, a forward pass is a collective.
        """
        images = batch["image"]
        images = images.unsqueeze(1) if images.ndim == _CLIP else images
        count, views = images.shape[:2]
        parts = images.flatten(0, 1).split(batch.get(TOGETHER, count))
        found = torch.cat([model(self._input(part, batch)).float() for part in parts])
        return found.unflatten(0, (count, views)).transpose(0, 1)

    def _averaged(self, logits: Tensor) -> Tensor:
        """(views, B, K) -> the logits (B, K) of the mean of their probabilities."""
        if self.task.multi_label:
            return F.logsigmoid(logits).logsumexp(dim=0) - F.logsigmoid(-logits).logsumexp(dim=0)
        return logits.log_softmax(dim=2).logsumexp(dim=0) - math.log(len(logits))

    def measure(self, model: nn.Module, batch: Batch) -> Measured:
        """Return the sums of classification over videos; with one class per video also the correct views."""
        targets, valid = batch["label"], batch["valid"]
        if self.task.multi_label:
            targets = unpack_labels(targets, self.task.num_classes)
        views = self._view_logits(model, batch)
        sums = classification_sums(self._averaged(views), targets, valid, self.task.multi_label)
        if not self.task.multi_label:
            sums["correct_views"] = sum(correct_samples(logits, targets, valid) for logits in views)
            sums["views"] = float(len(views) * valid.sum())
        return Measured(sums)

    def metrics(self, found: Measured) -> dict[str, float]:
        metrics = super().metrics(found)
        if "views" in found.sums:
            views = float(found.sums["views"])
            metrics[CLIP_TOP1] = float(found.sums["correct_views"]) / views if views else math.nan
        return metrics

    @torch.no_grad()
    def figure(self, model: nn.Module, batch: Batch) -> Image.Image:
        """Draw a film strip of each video, or of its first view, with true and predicted classes, framed in green if
        correct and in red if not."""
        predictions, truths = self.predicted(model, batch), self.truths(batch)
        clips = batch["image"][:, 0] if batch["image"].ndim == _VIEWS else batch["image"]
        strips = [film_strip(clip) for clip in clips.cpu().numpy()]
        exact = self.task.multi_label
        return prediction_sheet(strips, truths, predictions, self.class_names, exact=exact, strips=True)
