"""Size of one convolution of a dense head by formula: parameters, multiply-accumulates, bytes saved for backward."""

from __future__ import annotations

from dataclasses import dataclass

_WIDE = 4
"""Bytes of an element that a GroupNorm saves: its input in fp32."""


@dataclass(frozen=True)
class Convolution:
    """One convolution, or a linear layer on every position."""

    positions: int
    """Positions of its map, for one image."""
    inputs: int
    outputs: int
    side: int = 1
    """Side of the kernel."""
    normed: bool = False
    """True if GroupNorm and ReLU follow."""
    biased: bool = False
    shared: bool = False
    """True if its input is saved for backward by another operation as well."""

    @property
    def parameters(self) -> int:
        return self.inputs * self.outputs * self.side**2 + self.outputs * (2 * self.normed + self.biased)

    @property
    def macs(self) -> int:
        return self.positions * self.inputs * self.outputs * self.side**2

    def saved(self, element: int) -> int:
        """Return the bytes that it saves for backward, with its norm and ReLU, for one image."""
        after = (_WIDE + element) * self.outputs if self.normed else 0
        return self.positions * (after + (0 if self.shared else element * self.inputs))
