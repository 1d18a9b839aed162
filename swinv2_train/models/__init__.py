"""Models: backbone, window attention, heads. Pure torch."""

from swinv2_train.models.activations import ActivationStatistics, BlockActivations, record_activations
from swinv2_train.models.backbone import SwinTransformerV2, backbone_of
from swinv2_train.models.drop_path import drop_path_noise
from swinv2_train.models.heads import ImageClassifier, MaskedImageModel, pooled_features
from swinv2_train.models.init import init_weights
from swinv2_train.models.layers import InputError
from swinv2_train.models.segmenter import Segmenter

__all__ = [
    "ActivationStatistics",
    "BlockActivations",
    "ImageClassifier",
    "InputError",
    "MaskedImageModel",
    "Segmenter",
    "SwinTransformerV2",
    "backbone_of",
    "drop_path_noise",
    "init_weights",
    "pooled_features",
    "record_activations",
]
