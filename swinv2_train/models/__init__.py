"""The models: backbone, window attention, heads. Pure torch."""

from swinv2_train.models.backbone import SwinTransformerV2
from swinv2_train.models.drop_path import drop_path_noise
from swinv2_train.models.heads import ImageClassifier, MaskedImageModel
from swinv2_train.models.init import init_weights
from swinv2_train.models.layers import InputError

__all__ = [
    "ImageClassifier",
    "InputError",
    "MaskedImageModel",
    "SwinTransformerV2",
    "drop_path_noise",
    "init_weights",
]
