"""Dropout: in training, numbers are zeroed at random and the rest scaled so that the mean stays."""

from typing import Any

from gpuconv import random
from gpuconv.autograd import Function
from gpuconv.backends import Array, Backend
from gpuconv.errors import ArgumentError
from gpuconv.ops.dtypes import check_dtypes


class Dropout(Function):
    """Each of the first `axes` axes (None: all) gets its own decision, the others share it."""

    def __init__(self, op: str, p: float, training: bool, axes: int | None) -> None:
        self.op, self.p, self.training, self.axes = op, p, training, axes

    def forward(self, be: Backend, x: Array) -> Array:
        check_dtypes(self.op, x=x)
        if not self.training or self.p == 0:
            self.keep = None
            return x
        if self.axes is not None and x.ndim < self.axes:
            raise ArgumentError(f"{self.op}: the input {x.shape} must be (N, C, *in)")
        shape = tuple(n if self.axes is None or a < self.axes else 1 for a, n in enumerate(x.shape))
        self.keep = be.random(shape, random.draw_seed()) >= self.p
        return self.masked(be, x)

    def backward(self, be: Backend, gy: Array) -> Array:
        return gy if self.keep is None else self.masked(be, gy)

    def masked(self, be: Backend, a: Array) -> Array:
        # where, not a product with 0: a dropped infinity is 0, not NaN. With p = 1 nothing is kept.
        kept = a / (1 - self.p) if self.p < 1 else a
        return be.xp.where(self.keep, kept, 0)


def dropout(x: Any, p: float = 0.5, training: bool = True) -> Any:
    """x with each number zeroed with probability `p` and the others divided by 1 - p.

    x itself if not `training` or p is 0. Draws one seed from `gpuconv.random`. Raises ArgumentError
    for p outside 0..1. Source: Srivastava et al., Journal of Machine Learning Research 15 (2014).
    """
    _check_probability("dropout", p)
    return Dropout("dropout", p, training, None).apply(x)


def dropout2d(x: Any, p: float = 0.5, training: bool = True) -> Any:
    """As `dropout`, for whole channels: x (N, C, *in) of any spatial axes.

    Source: Tompson et al., arXiv 1411.4280.
    """
    _check_probability("dropout2d", p)
    return Dropout("dropout2d", p, training, 2).apply(x)


def _check_probability(op: str, p: float) -> None:
    if not 0 <= p <= 1:
        raise ArgumentError(f"{op}: p={p} is no probability; use a number from 0 to 1")
