"""Dropout as layers: active in training mode only."""

from typing import Any

from gpuconv import ops
from gpuconv.errors import ArgumentError
from gpuconv.nn.module import Module


class Dropout(Module):
    """Zeroes each number with probability `p` and divides the others by 1 - p.

    `inplace` is accepted and has no effect.
    """

    def __init__(self, p: float = 0.5, inplace: bool = False) -> None:
        if not 0 <= p <= 1:
            raise ArgumentError(
                f"{type(self).__name__}: p={p} is no probability; use a number from 0 to 1"
            )
        self.p = p

    def forward(self, x: Any) -> Any:
        return ops.dropout(x, self.p, self.training)

    def extra_repr(self) -> str:
        return f"p={self.p}"


class _ChannelDropout(Dropout):
    nd = 0

    def forward(self, x: Any) -> Any:
        if len(x.shape) != self.nd + 2:
            raise ArgumentError(
                f"{type(self).__name__}: the input {tuple(x.shape)} must have {self.nd + 2} axes, "
                f"(N, C, *in) with {self.nd} spatial ones"
            )
        return ops.dropout2d(x, self.p, self.training)


class Dropout1d(_ChannelDropout):
    """As `Dropout`, for whole channels of (N, C, L)."""

    nd = 1


class Dropout2d(_ChannelDropout):
    """As `Dropout`, for whole channels of (N, C, H, W)."""

    nd = 2


class Dropout3d(_ChannelDropout):
    """As `Dropout`, for whole channels of (N, C, D, H, W)."""

    nd = 3
