"""Config section of detection and instance segmentation."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

from swinv2_train.config.checks import at_least, resolution, share
from swinv2_train.config.data import DataConfig
from swinv2_train.config.errors import ConfigError
from swinv2_train.config.model import count_parameters, stage_geometry
from swinv2_train.config.tasks.base import DETECTIONS, Description, Metric, TaskConfig
from swinv2_train.config.tasks.detection_checks import CASCADE, HTC, MASK_RCNN, MOST_STAGES, check_training
from swinv2_train.config.tasks.detection_doubts import JITTER, SHORT, doubts_of, doubts_of_data
from swinv2_train.config.tasks.detection_head import head_bytes, head_macs, head_parameters, head_transient
from swinv2_train.config.tasks.detection_metrics import BOX, MASK, METRICS
from swinv2_train.config.tasks.detection_sizes import enlarged, fitted, within

if TYPE_CHECKING:
    from swinv2_train.config.schema import Config

RPN_CLASS, RPN_BOX, SEMANTIC = "rpn_class", "rpn_box", "semantic"
"""Names of the terms of the loss that exist once; those of a stage end in its number, from 1."""
_LOWEST_OF_VIEWS = 1e-3
_TESTED = (
    "test_proposals", "score_threshold", "nms", "soft_nms", "max_detections", "test_short", "test_long", "test_scales",
    "test_flip",
)  # fmt: skip
"""Fields that only evaluations and predictions use."""
_PREDICTED = ("tile", "tile_overlap", "shown_score")
"""Fields that only swinv2-predict uses."""


@dataclass
class DetectionConfig(TaskConfig):
    """Boxes and masks of objects. Defaults follow Cascade Mask R-CNN on Swin (Swin-Transformer-Object-Detection)."""

    IMPLEMENTATION = "swinv2_train.tasks.detection.task:Detection"
    METRICS: ClassVar[dict[str, Metric]] = METRICS
    HEAD = tuple(
        f"heads.{part}_heads.{stage}.{layer}.{kind}"
        for part, layers in (("box", ("classes", "class_boxes")), ("mask", ("classes",)))
        for stage in range(MOST_STAGES)
        for layer in layers
        for kind in ("weight", "bias")
    )
    OUTPUT = DETECTIONS
    SIZES_DIFFER = True
    TITLE = "object detection"
    PURPOSE = "for object detection and instance segmentation"
    EXTRA_PARTS = "the detector"
    PREDICT_OPTIONS: ClassVar[dict[str, str]] = {
        "tile": "tile",
        "overlap": "tile_overlap",
        "threshold": "shown_score",
        "scales": "test_scales",
        "flip": "test_flip",
    }
    PREDICT_FOLDERS: ClassVar[dict[str, tuple[str, ...]]] = {"pictures": (".jpg",)}
    FREE = ("module", "category_ids", *_TESTED, *_PREDICTED)

    name: str = "detection"
    """Name of the task."""
    num_classes: int = 0
    """Classes of the objects; 0: the number in the dataset card of `data.shards`."""
    category_ids: list[int] | None = None
    """Original ids of the classes, for the files of predictions; null: those in the dataset card, if it has numbers."""
    label: str = "objects.json"
    """Member with the objects of a sample."""
    detector: str = "cascade"
    """mask_rcnn (arXiv 1703.06870, one stage), cascade (arXiv 1906.09756, each stage starts from the boxes of the one
    before), or htc (arXiv 1901.07518, in which a mask head also reads the features of the one before)."""
    masks: bool | None = None
    """Predict a mask for every object; null: true if the dataset card says that every object has one."""
    global_attention: bool = False
    """A transformer block over all tokens of the last stage, before the feature pyramid: the layer of HTC++."""
    semantic_classes: int = 0
    """Classes of a semantic branch of htc, which learns from label maps and adds its features to those of the heads;
    0: none. COCO has 183, things and stuff."""
    semantic_label: str = "seg.png"
    """With `semantic_classes`: member with the label map of a sample; 255 marks pixels without a class."""
    semantic_weight: float = 0.2
    """Weight of the semantic branch in the loss."""
    channels: int = 256
    """Channels of the feature pyramid and of the region proposal network."""
    box_head: str = "4conv1fc"
    """Layers of a box head: 4conv1fc (four convolutions and a linear layer) or 2fc (two linear layers)."""
    box_hidden: int = 1024
    """Width of the linear layers of a box head."""
    head_norm: str = "group"
    """Norm of the convolutions of a 4conv1fc head: group (GroupNorm) or none."""
    class_agnostic: bool = False
    """Regress one box for all classes instead of one per class, as HTC does."""
    box_loss: str = "giou"
    """Loss of the boxes of a stage: giou (arXiv 1902.09630, of the boxes) or smooth_l1 (of the offsets, as in HTC)."""
    box_weight: float = 10.0
    """Factor of that loss: 10 with giou, 1 with smooth_l1."""
    mask_channels: int = 256
    """Channels of the mask heads."""
    anchor_scale: float = 8.0
    """Side of a square anchor, as a multiple of the stride of its level: 32 to 512 pixels for strides of 4 to 64."""
    anchor_ratios: list[float] = field(default_factory=lambda: [0.5, 1.0, 2.0])
    """Height of an anchor divided by its width, for each anchor of a position."""
    outside_anchors: bool = False
    """Also train on anchors that reach beyond the image, if their center is in it. Small images need them."""
    rpn_samples: int = 256
    """Anchors of an image that the loss of the region proposal network counts, up to half of them objects."""
    roi_samples: int = 512
    """Proposals of an image that a stage trains on, up to a quarter of them objects."""
    ignore_crowd: bool = False
    """Do not use candidates as background if more than half of their area is in a crowd region. By default they are
    background, as in the sources."""
    proposals: int = 2000
    """Proposals of an image in training; also those of each level before suppression."""
    test_proposals: int = 1000
    """The same in evaluation and prediction."""
    stage_ious: list[float] = field(default_factory=lambda: [0.5, 0.6, 0.7])
    """Smallest overlap (IoU) with an object that makes a proposal positive, for each stage; mask_rcnn has the first."""
    stage_weights: list[float] = field(default_factory=lambda: [1.0, 0.5, 0.25])
    """Weight of each stage in the loss."""
    max_objects: int = 1000
    """Objects of a training image at most; of more, the largest remain, with a warning."""
    scaling: str = "jitter"
    """Size of a training image: jitter (a random factor, on a canvas of `data.resolution`, as in arXiv 2012.07177) or
    short (a short side from `short_sides`, drawn for every step)."""
    scale: list[float] = field(default_factory=lambda: [0.1, 2.0])
    """With `scaling=jitter`: random factor, as [low, high], of the largest size that fits in `data.resolution`."""
    short_sides: list[int] = field(default_factory=lambda: [480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800])
    """With `scaling=short`: short sides in pixels."""
    long_side: int = 1333
    """With `scaling=short`: longest side in pixels."""
    crop_sides: list[int] = field(default_factory=list)
    """With `scaling=short`: half of the images are first scaled to a short side from `crop_short_sides` and cropped to
    random sides from this [low, high], such as [384,600] (arXiv 2005.12872); empty: none."""
    crop_short_sides: list[int] = field(default_factory=lambda: [400, 500, 600])
    """With `crop_sides`: short sides before the crop."""
    copy_paste: float = 0.0
    """Fraction of the training images that get objects of another image of the same step pasted in, by their masks
    (arXiv 2012.07177)."""
    score_threshold: float = 0.05
    """Lowest score of a detection, before `soft_nms` lowers it in an image of one view, or after the views of
    `test_scales` and `test_flip` are merged; HTC has 0.001."""
    nms: float = 0.5
    """Overlap (IoU) above which the lower of two detections of a class is suppressed."""
    soft_nms: bool = False
    """Lower the score of such a detection by its overlap, instead of removing it (arXiv 1704.04503, linear)."""
    max_detections: int = 100
    """Detections of an image at most."""
    test_short: int | None = None
    """Short side of an image in evaluation and prediction, lying or upright. null: with `scaling=jitter` and without
    `test_long`, the largest size that fits in `data.resolution`, as with a factor of 1 in training; else the shorter
    side of `data.resolution`, or with `scaling=short` the largest of `short_sides`."""
    test_long: int | None = None
    """Longest side of such an image; null: the longer side of `data.resolution`, or with `scaling=short`
    `long_side`."""
    test_scales: list[float] = field(default_factory=lambda: [1.0])
    """Factors of the image size in evaluation and prediction; the detections of several are averaged, or with
    `soft_nms` suppressed together, once."""
    test_flip: bool = False
    """Also detect in the mirrored image in evaluation and prediction, merged in the same way."""
    tile: int | None = None
    """In prediction: side in pixels of the tiles of an image, each of which is predicted like an image; their
    detections are merged. For large images: the side of the training images. null: the entire image."""
    tile_overlap: float = 0.25
    """With `tile`: fraction of a tile that neighbors share at least. An object should fit into it."""
    shown_score: float = 0.5
    """In prediction: lowest score of the detections in pictures and tables; detections.json has all of them."""

    @property
    def stages(self) -> int:
        """Number of stages after the region proposals."""
        return 1 if self.detector == MASK_RCNN else len(self.stage_ious)

    @property
    def view_threshold(self) -> float:
        """Lowest score of a detection in one view. Of several views it is low, because it counts in their mean."""
        return min(self.score_threshold, _LOWEST_OF_VIEWS) if self.several_views else self.score_threshold

    @property
    def several_views(self) -> bool:
        """True if the detections of an image are merged from those of several views."""
        return self.test_flip or len(self.test_scales) > 1

    @property
    def with_masks(self) -> bool:
        """True if the model predicts masks; also while the data decides it."""
        return self.masks is not False

    @property
    def object_member(self) -> str:
        return self.label

    def metrics(self) -> tuple[str, ...]:
        """Return the metrics of the boxes, and those of the masks if there are any."""
        return (*BOX, *(MASK if self.with_masks else ()))

    @property
    def label_member(self) -> str | None:
        """Member with the label map of the semantic branch, which is never the image; None without the branch."""
        return self.semantic_label if self.semantic_classes else None

    def maps_remedy(self, *, training: bool) -> str | None:
        """Return the remedy if no training sample has a label map; an evaluation needs none."""
        if not training:
            return None
        return (
            "set task.semantic_label to the one with the label maps, add them to the objects with swinv2-data pack "
            "--labels, or set task.semantic_classes=0"
        )

    def terms(self) -> dict[str, float]:
        """Return the terms of the loss by name, each with its factor in the sum."""
        factors = {RPN_CLASS: 1.0, RPN_BOX: 1.0}
        for stage in range(self.stages):
            weight, number = self.stage_weights[stage], stage + 1
            factors |= {f"class_{number}": weight, f"box_{number}": weight * self.box_weight}
            if self.with_masks:
                factors[f"mask_{number}"] = weight
        if self.semantic_classes:
            factors[SEMANTIC] = self.semantic_weight
        return factors

    def validate(self, config: Config) -> None:
        """Check classes, members, detector, samples, augmentation, and inference."""
        check_training(self, config)
        self.check_prediction()

    def check_prediction(self, given: Collection[str] = ()) -> None:
        """Check the options of evaluation and prediction, see `TaskConfig.check_prediction`."""
        for key in ("score_threshold", "nms"):
            share(f"task.{key}", getattr(self, key))
        for key in ("test_proposals", "max_detections"):
            at_least(f"task.{key}", getattr(self, key), 1)
        for key in ("test_short", "test_long"):
            if getattr(self, key) is not None:
                at_least(f"task.{key}", getattr(self, key), 1)
        if self.test_short and self.test_long and self.test_long < self.test_short:
            fix = f"must be at least task.test_short={self.test_short}"
            raise ConfigError("task.test_long", self.test_long, fix)
        if not self.test_scales or not all(0 < scale < math.inf for scale in self.test_scales):
            raise ConfigError("task.test_scales", self.test_scales, "must be factors above 0, such as [0.75,1.0,1.25]")
        share("task.shown_score", self.shown_score)
        if self.tile is not None:
            at_least("task.tile", self.tile, 1)
        if not 0 <= self.tile_overlap < 1:
            raise ConfigError("task.tile_overlap", self.tile_overlap, "must be at least 0 and below 1")
        if "overlap" in given and self.tile is None:
            raise ConfigError("overlap", self.tile_overlap, "applies to tiles only; set tile as well")

    def doubts(self, config: Config) -> list[str]:
        """Return a warning for every setting that was probably not intended."""
        return doubts_of(self, config)

    def describe(self, config: Config) -> Description:
        """Return classes, detector, and augmentation, and the parameters with all heads."""
        kind = {MASK_RCNN: "Mask R-CNN", CASCADE: "Cascade R-CNN", HTC: "HTC"}[self.detector]
        kind += "++" if self.detector == HTC and self.global_attention else ""
        parts = [f"{self.num_classes} classes" if self.num_classes else "number of classes from the data"]
        stages = "1 stage" if self.stages == 1 else f"{self.stages} stages"
        parts.append(f"{kind} of {stages} with {self.box_head} heads of {self.channels} channels")
        parts.append({True: "masks", False: "boxes only", None: "masks if the data has them"}[self.masks])
        if self.semantic_classes:
            parts.append(f"semantic branch of {self.semantic_classes} classes")
        if self.global_attention and self.detector != HTC:
            parts.append("global attention")
        if self.scaling == JITTER:
            parts.append(f"scaled by {self.scale[0]:g} to {self.scale[1]:g}")
        else:
            parts.append(f"short side {min(self.short_sides)} to {max(self.short_sides)}, at most {self.long_side}")
        if self.copy_paste:
            parts.append(f"objects pasted into {self.copy_paste:.0%} of the images")
        size = resolution(config)
        head = head_parameters(stage_geometry(config.model, *size), self)
        return Description(", ".join(parts), "the detector", count_parameters(config.model, size) + head)

    def head_macs(self, config: Config) -> int:
        """Return those of the feature pyramid and of all heads, in training with all samples."""
        return head_macs(stage_geometry(config.model, *resolution(config)), self)

    def head_bytes(self, config: Config, element: int) -> int:
        """Return those of the feature pyramid, all heads, and the loss, in training with all samples."""
        return head_bytes(stage_geometry(config.model, *resolution(config)), self, element)

    def head_transient(self, config: Config, element: int, images: int) -> int:
        """Return those of the widest layer of a head, and of the levels that all heads pool from."""
        return images * head_transient(stage_geometry(config.model, *resolution(config)), self, element)

    def open_fields(self) -> tuple[str, ...]:
        """Return the fields that the data still decides."""
        return (*super().open_fields(), *(("masks",) if self.masks is None else ()))

    def in_data(self, key: str, value: Any) -> str:
        """Return words for data that decide an open field."""
        if key != "masks":
            return super().in_data(key, value)
        return "a mask for every object" if value else "objects without a mask"

    def data_doubts(self, card: Any) -> list[str]:
        """Return warnings about objects that are not learned, or only in part."""
        facts = card.objects if card is not None and self.label == DetectionConfig.label else None
        return [] if facts is None else doubts_of_data(self, facts)

    def complete(self, saved: Mapping[str, Any], card: Any) -> None:
        """Set the number of classes with their original ids, and whether there are masks."""
        if self.semantic_label == DetectionConfig.semantic_label and card is not None:
            self._check_label_maps(card.label_maps)
        if self.label != DetectionConfig.label:
            card = None  # it describes the objects that swinv2-data packs, not another member
        super().complete(saved, card)
        facts = card.objects if card is not None else None
        if self.category_ids is None:
            ids = [category.id for category in facts.categories] if facts is not None else saved.get("category_ids")
            known = ids and len(ids) == self.num_classes and all(isinstance(each, int) for each in ids)
            self.category_ids = list(ids) if known else None
        if self.masks is None:
            stored = saved.get("masks") if facts is None else facts.all_masks
            self.masks = bool(stored)

    def _check_label_maps(self, facts: Any) -> None:
        """Check that the semantic branch has the classes of the label maps on the card, if there are any."""
        found = facts.num_classes if facts is not None and self.semantic_classes else None
        if found is not None and found > self.semantic_classes:
            hint = f"the label maps of data.shards have {found} classes; set it to their number, at most 255"
            raise ConfigError("task.semantic_classes", self.semantic_classes, hint)

    def for_evaluation(self, classes: int | None) -> DetectionConfig:
        """Return this section with this number of classes."""
        if classes in (None, self.num_classes):
            return self
        return replace(self, num_classes=classes, category_ids=None)

    def test_sides(self, config: Config) -> tuple[int, int] | None:
        """Return the short side of images in evaluation and prediction, and their longest side; None if they have the
        largest size that fits in `data.resolution`."""
        if self.scaling == SHORT:
            short, long = max(self.short_sides), self.long_side
        elif self.test_short is None and self.test_long is None:
            return None
        else:
            short, long = min(resolution(config)), max(resolution(config))
        short = self.test_short or min(short, self.test_long or short)
        return short, self.test_long or max(short, long)

    def test_size(self, config: Config, source: tuple[int, int], scale: float = 1.0) -> tuple[int, int]:
        """Return the height and width that an image has in evaluation and prediction.

        Args:
            source: those of the original.
            scale: factor of `test_scales`.
        """
        sides = self.test_sides(config)
        if sides is None:
            return within(source, enlarged(resolution(config), scale))
        return fitted(source, *enlarged(sides, scale))

    def fixed_crop(self, data: DataConfig) -> tuple[float, str]:
        """Return the crop of the center that keeps the aspect."""
        return 1.0, "center"

    def scaled_images(self, config: Config, factor: float) -> list[str] | None:
        """Return the sides of the images times a factor, unless they follow `data.resolution`."""
        sides = self.test_sides(config)
        if sides is None:
            return None
        short, long = enlarged(sides, factor)
        return [f"task.test_short={short}", f"task.test_long={long}"]

    def preparation(self, config: Config) -> str:
        """Return the size of an image, and the scales and flips that are merged."""
        sides, (height, width) = self.test_sides(config), resolution(config)
        parts = [
            f"largest size within {height} x {width} pixels"
            if sides is None
            else f"short side {sides[0]} pixels, longer side at most {sides[1]}"
        ]
        if self.test_scales != [1.0]:
            parts.append(f"scales {', '.join(f'{scale:g}' for scale in self.test_scales)}")
        if self.test_flip:
            parts.append("with mirrored images")
        return ", ".join(parts)

    def evaluation_settings(self) -> dict[str, Any]:
        """Return the settings of inference."""
        return {name: getattr(self, name) for name in _TESTED}

    def worker_modules(self) -> list[str]:
        """Return the module of the transforms, which does not import the model."""
        return ["swinv2_train.tasks.detection.transform"]
