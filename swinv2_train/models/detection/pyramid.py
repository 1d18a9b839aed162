"""Feature pyramid of detectors (arXiv 1612.03144), without norms and activations, as in Mask R-CNN."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from swinv2_train.models.detection.layers import PyramidConvolution


class BoxPyramid(nn.Module):
    """Feature pyramid over the maps of all stages, and a smaller level for the largest anchors.

    Each map has half the size of the one before, rounded up.

    Args:
        dims: channels of the maps, from the largest map on.
    """

    def __init__(self, dims: Sequence[int], channels: int) -> None:
        super().__init__()
        self.laterals = nn.ModuleList(PyramidConvolution(dim, channels, 1) for dim in dims)
        self.outputs = nn.ModuleList(PyramidConvolution(channels, channels, 3) for _ in dims)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Return a level (B, channels, H_i, W_i) per map (B, C_i, H_i, W_i), and every second position of the last."""
        sums: list[Tensor] = []
        for lateral, x in zip(reversed(self.laterals), reversed(maps), strict=True):
            x = lateral(x)
            sums.insert(0, x + _doubled(sums[0], x) if sums else x)
        levels = [output(x) for output, x in zip(self.outputs, sums, strict=True)]
        return [*levels, levels[-1][:, :, ::2, ::2]]


def _doubled(x: Tensor, like: Tensor) -> Tensor:
    """Repeat every position twice along each side, up to the size of another map."""
    batch, channels, height, width = x.shape
    wide = x[:, :, :, None, :, None].expand(-1, -1, -1, 2, -1, 2).reshape(batch, channels, 2 * height, 2 * width)
    return wide[:, :, : like.shape[2], : like.shape[3]]
