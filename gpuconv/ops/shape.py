"""Operations that move numbers and change none: reshape, transpose, index, pad, join."""

from collections.abc import Sequence
from math import prod
from typing import Any

from gpuconv.autograd import Function, Tensor
from gpuconv.backends import Array, Backend
from gpuconv.errors import ArgumentError, DtypeError
from gpuconv.ops.elementwise import Like, unbroadcast
from gpuconv.shapes import PADDING_MODES, Pads, axes as axes_of, ints


class Reshape(Function):
    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape

    def forward(self, be: Backend, x: Array) -> Array:
        self.was = x.shape
        try:
            return x.reshape(self.shape)
        except ValueError:
            raise ArgumentError(
                f"reshape: {x.size} values of shape {x.shape} do not fit {self.shape}"
            ) from None

    def backward(self, be: Backend, gy: Array) -> Array:
        return gy.reshape(self.was)


class Transpose(Function):
    def __init__(self, axes: tuple[int, ...] | None) -> None:
        self.axes = axes

    def forward(self, be: Backend, x: Array) -> Array:
        axes = tuple(reversed(range(x.ndim))) if self.axes is None else self.axes
        if sorted(a % x.ndim if x.ndim else a for a in axes) != list(range(x.ndim)):
            raise ArgumentError(f"transpose: {axes} is no order of the axes of shape {x.shape}")
        self.inverse = [0] * x.ndim
        for to, came in enumerate(axes):
            self.inverse[came % x.ndim] = to
        return x.transpose(axes)

    def backward(self, be: Backend, gy: Array) -> Array:
        return gy.transpose(self.inverse)


class BroadcastTo(Function):
    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape

    def forward(self, be: Backend, x: Array) -> Array:
        self.like = Like(x)
        return be.xp.broadcast_to(x, self.shape)

    def backward(self, be: Backend, gy: Array) -> Array:
        return unbroadcast(gy, self.like)


class GetItem(Function):
    """Indexing as NumPy's; an element taken several times gets the sum of its gradients."""

    def __init__(self, index: Any) -> None:
        self.index = index

    def forward(self, be: Backend, x: Array) -> Array:
        self.like = Like(x)
        return x[self.index]

    def backward(self, be: Backend, gy: Array) -> Array:
        xp = be.xp
        parts = self.index if isinstance(self.index, tuple) else (self.index,)
        if all(p is None or p is Ellipsis or isinstance(p, (int, slice)) for p in parts):
            gx = xp.zeros(self.like.shape, dtype=self.like.dtype)
            gx[self.index] = gy  # basic indexing takes every element at most once
            return gx
        size = prod(self.like.shape)
        taken = xp.arange(size).reshape(self.like.shape)[self.index].reshape(-1)
        return sums_by_place(xp, taken, gy.reshape(-1), size).reshape(self.like.shape)


def sums_by_place(xp: Any, places: Array, values: Array, size: int) -> Array:
    """(size,): the sum of the values (n,) of each place (n,); the same bits on every device.

    xp.add.at would add in any order on a GPU. Here equal places are sorted to lie together, and
    each value gets the sum of the 2, 4, 8, ... of its place up to itself: the last has them all.
    """
    order = xp.argsort(places, kind="stable")
    places, values = xp.take(places, order), xp.take(values, order)
    step, n = 1, len(places)
    while step < n:
        same = places[step:] == places[:-step]
        added = xp.where(same, values[:-step], xp.zeros_like(values[:-step]))
        values = xp.concatenate((values[:step], values[step:] + added))
        step *= 2
    last = xp.ones(places.shape, dtype=bool)
    last[:-1] = places[1:] != places[:-1]
    # The others go to a place of their own at the end: which of them stays there does not matter.
    sums = xp.zeros(size + 1, dtype=values.dtype)
    sums[xp.where(last, places, size)] = values
    return sums[:size]


class Pad(Function):
    """Padding of the last axes; `pads` one (before, after) pair a spatial axis of (N, C, *in)."""

    def __init__(self, pads: Pads, mode: str, value: float) -> None:
        self.pads, self.mode, self.value = pads, mode, value

    def forward(self, be: Backend, x: Array) -> Array:
        return be.pad(x, self.pads, self.mode, self.value)

    def backward(self, be: Backend, gy: Array) -> Array:
        return be.pad_grad(gy, self.pads, self.mode)


class Concatenate(Function):
    def __init__(self, axis: int) -> None:
        self.axis = axis

    def forward(self, be: Backend, *arrays: Array) -> Array:
        self.sizes = [a.shape[self.axis] for a in arrays]
        return be.xp.concatenate(arrays, axis=self.axis)

    def backward(self, be: Backend, gy: Array) -> tuple[Array | None, ...]:
        before = (slice(None),) * (self.axis % gy.ndim)
        grads, start = [], 0
        for size, needed in zip(self.sizes, self.needs, strict=True):
            grads.append(gy[(*before, slice(start, start + size))] if needed else None)
            start += size
        return tuple(grads)


class Stack(Function):
    def __init__(self, axis: int) -> None:
        self.axis = axis

    def forward(self, be: Backend, *arrays: Array) -> Array:
        return be.xp.stack(arrays, axis=self.axis)

    def backward(self, be: Backend, gy: Array) -> tuple[Array | None, ...]:
        before = (slice(None),) * (self.axis % gy.ndim)
        return tuple(gy[(*before, i)] if needed else None for i, needed in enumerate(self.needs))


class Flip(Function):
    def __init__(self, axis: int | tuple[int, ...]) -> None:
        self.axis = axis

    def forward(self, be: Backend, x: Array) -> Array:
        return be.xp.flip(x, self.axis)

    def backward(self, be: Backend, gy: Array) -> Array:
        return be.xp.flip(gy, self.axis)


def reshape(x: Any, shape: int | Sequence[int]) -> Any:
    """The same values in another shape; one size may be -1."""
    return Reshape((shape,) if isinstance(shape, int) else tuple(shape)).apply(x)


def flatten(x: Any, start: int = 0, end: int = -1) -> Any:
    """Axes `start` to `end`, both included, made one."""
    shape, nd = x.shape, len(x.shape)
    if nd == 0:
        return reshape(x, 1)
    if not (-nd <= start < nd and -nd <= end < nd) or start % nd > end % nd:
        raise ArgumentError(f"flatten: axes {start} to {end} are no range of shape {shape}")
    start, end = start % nd, end % nd
    return reshape(x, (*shape[:start], prod(shape[start : end + 1]), *shape[end + 1 :]))


def transpose(x: Any, *axes: Any) -> Any:
    """The axes in the order given, reversed if none is."""
    if len(axes) == 1 and (axes[0] is None or isinstance(axes[0], Sequence)):
        axes = tuple(axes[0] or ())
    return Transpose(tuple(axes) if axes else None).apply(x)


def squeeze(x: Any, axis: int | Sequence[int] | None = None) -> Any:
    """Without the axes of size 1 (those named, or all)."""
    shape, nd = x.shape, len(x.shape)
    axes = axes_of("squeeze", range(nd) if axis is None else axis, nd)
    gone = {a for a in axes if shape[a] == 1}
    if axis is not None and len(gone) != len(axes):
        raise ArgumentError(f"squeeze: axis {axis} of shape {shape} is not of size 1")
    return reshape(x, tuple(n for i, n in enumerate(shape) if i not in gone))


def unsqueeze(x: Any, axis: int) -> Any:
    """With an axis of size 1 more, at `axis`."""
    nd = len(x.shape) + 1
    if not -nd <= axis < nd:
        raise ArgumentError(f"unsqueeze: axis {axis} is out of range for shape {tuple(x.shape)}")
    shape = list(x.shape)
    shape.insert(axis % nd, 1)
    return reshape(x, shape)


def broadcast_to(x: Any, shape: Sequence[int]) -> Any:
    """x repeated to `shape` without a copy."""
    return BroadcastTo(tuple(shape)).apply(x)


def getitem(x: Any, index: Any) -> Any:
    """x[index], with NumPy's rules; Tensors in the index count as their arrays."""
    if isinstance(index, tuple):
        index = tuple(i.data if isinstance(i, Tensor) else i for i in index)
    elif isinstance(index, Tensor):
        index = index.data
    return GetItem(index).apply(x)


def pad(x: Any, padding: Sequence[int], mode: str = "zeros", value: float = 0.0) -> Any:
    """x (N, C, *in) padded, `padding` in PyTorch's order: last axis first, before and after.

    `mode` one of "zeros" (or "constant", filled with `value`), "reflect", "replicate", "circular".
    Negative numbers crop, with zeros only.
    """
    mode = "zeros" if mode == "constant" else mode
    nd = len(x.shape) - 2
    given = ints("pad", "padding", padding, len(padding), least=-(1 << 40))
    if mode not in PADDING_MODES:
        raise ArgumentError(f"pad: mode={mode!r} is unknown; use one of {PADDING_MODES}")
    if len(given) % 2 or len(given) > 2 * nd:
        raise ArgumentError(
            f"pad: {given} must be pairs for at most the {nd} spatial axes of "
            f"shape {tuple(x.shape)}"
        )
    pairs = [given[i : i + 2] for i in range(0, len(given), 2)]
    pairs += [(0, 0)] * (nd - len(pairs))
    pads = tuple((lo, hi) for lo, hi in reversed(pairs))
    for axis, (n, (lo, hi)) in enumerate(zip(x.shape[2:], pads, strict=True)):
        limit = {"reflect": n - 1, "circular": n}.get(mode)
        if n + lo + hi < 1 or (mode != "zeros" and min(lo, hi) < 0):
            raise ArgumentError(f"pad: {(lo, hi)} on spatial axis {axis} of {n} with mode={mode!r}")
        if limit is not None and max(lo, hi) > limit:
            raise ArgumentError(
                f"pad: {(lo, hi)} on spatial axis {axis} of {n} pixels is too large for {mode!r}; "
                f"use at most {limit}"
            )
    return Pad(pads, mode, value).apply(x)


def concat(arrays: Sequence[Any], axis: int = 0) -> Any:
    """Arrays joined along an existing axis; all other sizes must agree."""
    _check_joined("concat", arrays)
    shapes = [tuple(a.shape) for a in arrays]
    nd = len(shapes[0])
    if not -nd <= axis < nd:
        raise ArgumentError(f"concat: axis {axis} is out of range for shape {shapes[0]}")
    rest = {(*s[: axis % nd], *s[axis % nd + 1 :]) for s in shapes}
    if len({len(s) for s in shapes}) > 1 or len(rest) > 1:
        raise ArgumentError(f"concat: shapes {shapes} differ beyond axis {axis}")
    return Concatenate(axis).apply(*arrays)


def stack(arrays: Sequence[Any], axis: int = 0) -> Any:
    """Arrays of one shape joined along a new axis."""
    _check_joined("stack", arrays)
    if len({tuple(a.shape) for a in arrays}) > 1:
        raise ArgumentError(f"stack: shapes {[tuple(a.shape) for a in arrays]} differ")
    (axis,) = axes_of("stack", axis, len(arrays[0].shape) + 1)
    return Stack(axis).apply(*arrays)


def flip(x: Any, axis: int | tuple[int, ...]) -> Any:
    """x with the order along `axis` reversed."""
    return Flip(axes_of("flip", axis, len(x.shape))).apply(x)


def _check_joined(op: str, arrays: Sequence[Any]) -> None:
    if not arrays:
        raise ArgumentError(f"{op}: nothing to join; give at least one array")
    dtypes = {str(a.dtype) for a in arrays}
    if len(dtypes) > 1:
        raise DtypeError(f"{op}: dtypes {sorted(dtypes)} are mixed; convert with .astype first")
