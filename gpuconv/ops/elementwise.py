"""Elementwise arithmetic with NumPy's broadcasting: a broadcast input's gradient is summed back."""

from typing import Any, ClassVar

import numpy as np

from gpuconv.autograd import Function
from gpuconv.backends import Array, Backend, device_of, to_device
from gpuconv.errors import ArgumentError
from gpuconv.shapes import Ints


def unbroadcast(g: Array, like: Any) -> Array:
    """`g` summed over the axes that broadcasting gave or stretched in `like`; in its dtype."""
    extra = g.ndim - like.ndim
    sizes = (1,) * extra + tuple(like.shape)
    stretched = tuple(i for i, n in enumerate(sizes) if n == 1 and g.shape[i] != 1)
    if stretched:
        g = g.sum(axis=stretched, keepdims=True)
    if extra:
        g = g.reshape(like.shape)
    return g.astype(like.dtype, copy=False)


def check_shapes(op: str, *arrays: Any) -> None:
    """ArgumentError unless the arrays (scalars fit always) broadcast together."""
    shapes = [a.shape for a in arrays if hasattr(a, "shape")]
    if len(shapes) > 1 and any(s != shapes[0] for s in shapes):
        try:
            np.broadcast_shapes(*shapes)
        except ValueError:
            raise ArgumentError(
                f"{op}: shapes {' and '.join(map(str, shapes))} do not fit; each axis must be of "
                f"one size, or of size 1 to be repeated"
            ) from None


class Like:
    """Shape and dtype of an array whose values are not needed any more."""

    def __init__(self, array: Any, shape: Ints | None = None) -> None:
        self.shape: Ints = array.shape if shape is None else shape
        self.ndim, self.dtype = len(self.shape), array.dtype


class _Binary(Function):
    """`partial(i, ...)` gives the gradient by input i before unbroadcasting.

    `reads[i]` says which inputs that partial needs to see again: no other is kept in memory.
    """

    reads: ClassVar[tuple[tuple[int, ...], tuple[int, ...]]] = ((0, 1), (0, 1))
    a: Any
    b: Any

    def forward(self, be: Backend, a: Any, b: Any) -> Array:
        check_shapes(type(self).__name__.lower(), a, b)
        kept = {i for j, reads in enumerate(self.reads) if self.needs[j] for i in reads}
        self.a = a if 0 in kept else None
        self.b = b if 1 in kept else None
        self.like = tuple(Like(v) if n else None for v, n in zip((a, b), self.needs, strict=True))
        return self.compute(be.xp, a, b)

    def backward(self, be: Backend, gy: Array) -> tuple[Array | None, ...]:
        return tuple(
            None if like is None else unbroadcast(self.partial(be.xp, i, gy), like)
            for i, like in enumerate(self.like)
        )

    def both(self, i: int) -> tuple[Any, Any]:
        """Input i and the other one."""
        return (self.a, self.b) if i == 0 else (self.b, self.a)

    def compute(self, xp: Any, a: Any, b: Any) -> Array:
        raise NotImplementedError

    def partial(self, xp: Any, i: int, gy: Array) -> Array:
        raise NotImplementedError


class Add(_Binary):
    reads = ((), ())  # a sum does not hold its terms in memory

    def compute(self, xp: Any, a: Any, b: Any) -> Array:
        if all(isinstance(v, xp.ndarray) for v in (a, b)) and a.shape == b.shape:
            return self.be.add(a, b)
        return a + b

    def partial(self, xp: Any, i: int, gy: Array) -> Array:
        return gy


class Subtract(_Binary):
    reads = ((), ())

    def compute(self, xp: Any, a: Any, b: Any) -> Array:
        return a - b

    def partial(self, xp: Any, i: int, gy: Array) -> Array:
        return gy if i == 0 else -gy


class Multiply(_Binary):
    reads = ((1,), (0,))

    def compute(self, xp: Any, a: Any, b: Any) -> Array:
        return a * b

    def partial(self, xp: Any, i: int, gy: Array) -> Array:
        return gy * (self.b if i == 0 else self.a)


class Divide(_Binary):
    reads = ((1,), (0, 1))

    def compute(self, xp: Any, a: Any, b: Any) -> Array:
        return a / b

    def partial(self, xp: Any, i: int, gy: Array) -> Array:
        return gy / self.b if i == 0 else -gy * self.a / (self.b * self.b)


class Power(_Binary):
    def compute(self, xp: Any, a: Any, b: Any) -> Array:
        return a**b

    def partial(self, xp: Any, i: int, gy: Array) -> Array:
        a, b = self.a, self.b
        if i == 0:
            # Where b is 0 the gradient is 0, also where a ** (b - 1) would be infinite.
            some = xp.where(b == 0, xp.ones_like(b), b) if hasattr(b, "shape") else b or 1
            return gy * (b * a ** (some - 1))
        base = xp.asarray(a)
        # d/db a**b = a**b log a; where a is 0 and b is not negative it is 0, as PyTorch has it.
        flat = (base == 0) & (xp.asarray(b) >= 0)
        log = xp.log(xp.where(flat, xp.ones_like(base), base))
        return gy * xp.where(flat, xp.zeros_like(log), a**b * log)


class Maximum(_Binary):
    """Equal inputs share the gradient in halves, as PyTorch has it."""

    def compute(self, xp: Any, a: Any, b: Any) -> Array:
        return xp.maximum(a, b)

    def partial(self, xp: Any, i: int, gy: Array) -> Array:
        mine, other = self.both(i)
        return xp.where(mine == other, gy * 0.5, gy * (mine > other))


class Minimum(_Binary):
    """Equal inputs share the gradient in halves, as PyTorch has it."""

    def compute(self, xp: Any, a: Any, b: Any) -> Array:
        return xp.minimum(a, b)

    def partial(self, xp: Any, i: int, gy: Array) -> Array:
        mine, other = self.both(i)
        return xp.where(mine == other, gy * 0.5, gy * (mine < other))


class Where(Function):
    """`a` where the condition (an array, no gradient) is true, else `b`."""

    def forward(self, be: Backend, condition: Array, a: Any, b: Any) -> Array:
        check_shapes("where", condition, a, b)
        self.condition = condition
        self.like = tuple(
            Like(v) if n else None for v, n in zip((a, b), self.needs[1:], strict=True)
        )
        return be.xp.where(condition, a, b)

    def backward(self, be: Backend, gy: Array) -> tuple[Array | None, ...]:
        a, b = self.like
        zero = be.xp.zeros_like(gy)
        return (
            None,
            None if a is None else unbroadcast(be.xp.where(self.condition, gy, zero), a),
            None if b is None else unbroadcast(be.xp.where(self.condition, zero, gy), b),
        )


class Negative(Function):
    def forward(self, be: Backend, x: Array) -> Array:
        return -x

    def backward(self, be: Backend, gy: Array) -> Array:
        return -gy


class Absolute(Function):
    def forward(self, be: Backend, x: Array) -> Array:
        self.x = x
        return be.xp.abs(x)

    def backward(self, be: Backend, gy: Array) -> Array:
        return gy * be.xp.sign(self.x)


class Exp(Function):
    def forward(self, be: Backend, x: Array) -> Array:
        self.y = be.xp.exp(x)
        return self.y

    def backward(self, be: Backend, gy: Array) -> Array:
        return gy * self.y


class Log(Function):
    def forward(self, be: Backend, x: Array) -> Array:
        self.x = x
        return be.xp.log(x)

    def backward(self, be: Backend, gy: Array) -> Array:
        return gy / self.x


class Sqrt(Function):
    def forward(self, be: Backend, x: Array) -> Array:
        self.y = be.xp.sqrt(x)
        return self.y

    def backward(self, be: Backend, gy: Array) -> Array:
        return gy / (self.y * 2)


class Clip(Function):
    """The gradient passes where low <= x <= high, bounds included, as PyTorch has it."""

    def __init__(self, low: float | None, high: float | None) -> None:
        self.low, self.high = low, high

    def forward(self, be: Backend, x: Array) -> Array:
        if self.needs[0]:
            keep = be.xp.ones(x.shape, dtype=bool)
            if self.low is not None:
                keep &= x >= self.low
            if self.high is not None:
                keep &= x <= self.high
            self.keep = keep
        return be.xp.clip(x, self.low, self.high)

    def backward(self, be: Backend, gy: Array) -> Array:
        return gy * self.keep


class Astype(Function):
    def __init__(self, dtype: Any) -> None:
        self.dtype = dtype

    def forward(self, be: Backend, x: Array) -> Array:
        self.was = x.dtype
        return x.astype(self.dtype)

    def backward(self, be: Backend, gy: Array) -> Array:
        return gy.astype(self.was)


class ToDevice(Function):
    """Moves to a device; the gradient moves back."""

    def __init__(self, device: str) -> None:
        self.device = device

    def forward(self, be: Backend, x: Array) -> Array:
        self.was = device_of(x)
        return to_device(x, self.device)

    def backward(self, be: Backend, gy: Array) -> Array:
        return to_device(gy, self.was)


def add(a: Any, b: Any) -> Any:
    """a + b."""
    return Add().apply(a, b)


def subtract(a: Any, b: Any) -> Any:
    """a - b."""
    return Subtract().apply(a, b)


def multiply(a: Any, b: Any) -> Any:
    """a * b."""
    return Multiply().apply(a, b)


def divide(a: Any, b: Any) -> Any:
    """a / b."""
    return Divide().apply(a, b)


def power(a: Any, b: Any) -> Any:
    """a ** b."""
    return Power().apply(a, b)


def maximum(a: Any, b: Any) -> Any:
    """The larger of each pair."""
    return Maximum().apply(a, b)


def minimum(a: Any, b: Any) -> Any:
    """The smaller of each pair."""
    return Minimum().apply(a, b)


def where(condition: Any, a: Any, b: Any) -> Any:
    """`a` where `condition` is true, else `b`."""
    return Where().apply(condition, a, b)


def negative(x: Any) -> Any:
    """-x."""
    return Negative().apply(x)


def absolute(x: Any) -> Any:
    """|x|; the gradient at 0 is 0."""
    return Absolute().apply(x)


def exp(x: Any) -> Any:
    """e ** x."""
    return Exp().apply(x)


def log(x: Any) -> Any:
    """The natural logarithm."""
    return Log().apply(x)


def sqrt(x: Any) -> Any:
    """The square root."""
    return Sqrt().apply(x)


def clip(x: Any, low: float | None = None, high: float | None = None) -> Any:
    """x limited to low..high; either may be None."""
    return Clip(low, high).apply(x)


def astype(x: Any, dtype: Any) -> Any:
    """x converted to `dtype`."""
    return Astype(dtype).apply(x)
