"""Reductions over axes: sum, mean, variance, maximum, minimum."""

from math import prod
from typing import Any

from gpuconv.autograd import Function
from gpuconv.backends import Array, Backend
from gpuconv.errors import ArgumentError
from gpuconv.shapes import axes

Axis = int | tuple[int, ...] | None


class _Reduction(Function):
    def __init__(self, axis: Axis, keepdims: bool) -> None:
        self.axis, self.keepdims = axis, keepdims

    def axes(self, x: Array) -> tuple[int, ...]:
        """The axes as positive numbers; ArgumentError for one that x does not have."""
        axis = range(x.ndim) if self.axis is None else self.axis
        return axes(type(self).__name__.lower(), axis, x.ndim)

    def expand(self, g: Array) -> Array:
        """`g` with the reduced axes back, each of size 1."""
        return g.reshape(self.kept)

    def remember(self, x: Array) -> tuple[int, ...]:
        over = self.axes(x)
        self.shape = x.shape
        self.kept = tuple(1 if i in over else n for i, n in enumerate(x.shape))
        return over


class Sum(_Reduction):
    def forward(self, be: Backend, x: Array) -> Array:
        return x.sum(axis=self.remember(x), keepdims=self.keepdims)

    def backward(self, be: Backend, gy: Array) -> Array:
        return be.xp.broadcast_to(self.expand(gy), self.shape)


class Mean(_Reduction):
    def forward(self, be: Backend, x: Array) -> Array:
        over = self.remember(x)
        self.count = prod(x.shape[a] for a in over)
        return x.mean(axis=over, keepdims=self.keepdims)

    def backward(self, be: Backend, gy: Array) -> Array:
        return be.xp.broadcast_to(self.expand(gy / self.count), self.shape)


class Var(_Reduction):
    """The mean squared distance from the mean; `correction` is subtracted from the count."""

    def __init__(self, axis: Axis, correction: int, keepdims: bool) -> None:
        super().__init__(axis, keepdims)
        self.correction = correction

    def forward(self, be: Backend, x: Array) -> Array:
        over = self.remember(x)
        self.count = prod(x.shape[a] for a in over) - self.correction
        if self.count < 1:
            raise ArgumentError(
                f"var: {self.count + self.correction} values and correction={self.correction} "
                f"leave nothing to divide by; use a smaller correction"
            )
        self.centred = x - x.mean(axis=over, keepdims=True)
        total = (self.centred * self.centred).sum(axis=over, keepdims=self.keepdims)
        return total / self.count

    def backward(self, be: Backend, gy: Array) -> Array:
        return self.expand(gy) * self.centred * (2 / self.count)


class _Extremum(_Reduction):
    """Equal extrema share the gradient, as PyTorch's amax and amin have it."""

    name = ""

    def forward(self, be: Backend, x: Array) -> Array:
        over = self.remember(x)
        if not x.size:
            raise ArgumentError(f"{self.name}: of no values, in an array of shape {x.shape}")
        y = getattr(x, self.name)(axis=over, keepdims=True)
        self.x, self.y, self.over = x, y, over
        if self.keepdims:
            return y
        return y.reshape(tuple(n for i, n in enumerate(x.shape) if i not in over))

    def backward(self, be: Backend, gy: Array) -> Array:
        hit = self.x == self.y
        share = self.expand(gy) / hit.sum(axis=self.over, keepdims=True).astype(gy.dtype)
        return hit * share


class Max(_Extremum):
    name = "max"


class Min(_Extremum):
    name = "min"


def sum(x: Any, axis: Axis = None, keepdims: bool = False) -> Any:
    """The sum over `axis` (all of them if None)."""
    return Sum(axis, keepdims).apply(x)


def mean(x: Any, axis: Axis = None, keepdims: bool = False) -> Any:
    """The mean over `axis` (all of them if None)."""
    return Mean(axis, keepdims).apply(x)


def var(x: Any, axis: Axis = None, correction: int = 1, keepdims: bool = False) -> Any:
    """The variance over `axis`: squares over count - `correction` (1, as torch)."""
    return Var(axis, correction, keepdims).apply(x)


def max(x: Any, axis: Axis = None, keepdims: bool = False) -> Any:
    """The largest value over `axis`; equal ones share the gradient."""
    return Max(axis, keepdims).apply(x)


def min(x: Any, axis: Axis = None, keepdims: bool = False) -> Any:
    """The smallest value over `axis`; equal ones share the gradient."""
    return Min(axis, keepdims).apply(x)
