"""Pooling, its gradients and unpooling in array code, in one, two or three dimensions.

Everything loops over the taps of the kernel: tap t of every window at once is a strided slice of
the padded input, so no window is ever copied out, and the memory beyond input, padded input and
output is a few arrays of the output's size. The gradients add to the same slices, in a fixed order.
"""

from functools import lru_cache, reduce
from itertools import product
from math import inf, prod
from typing import Any

import numpy as np

from gpuconv.shapes import Ints, PoolSpec

Array = Any


class Pool:
    """The pooling part of `Backend`; letters as in `gpuconv.shapes`."""

    xp: Any
    pad: Any  # of Conv, which Backend mixes in beside this class
    pad_grad: Any
    empty_like_format: Any

    def max_pool(self, spec: PoolSpec, x: Array, taps: bool = True) -> tuple[Array, Array | None]:
        """y (N, C, *out) and, if `taps`, the kernel tap each came from: int32, row-major.

        PyTorch's rule for ties and NaN: a later tap is taken if it is greater, or NaN.
        """
        xp = self.xp
        padded = self.pad(x, spec.window, value=-inf)
        y = self.empty_like_format(x, spec.y_shape, x.dtype)
        if _one_window(spec):
            rows = padded.reshape(*spec.y_shape[:2], prod(spec.kernel))
            taken = _last_nan_else_max(xp, rows)
            y[...] = xp.take_along_axis(rows, taken[..., None], 2).reshape(spec.y_shape)
            return y, taken.reshape(spec.y_shape).astype(xp.int32) if taps else None
        tap = None
        if taps:
            tap = self.empty_like_format(x, spec.y_shape, xp.int32)
            tap[...] = self._first_taps(spec)
        for number, where in enumerate(_tap_slices(spec)):
            values = padded[where]
            if number == 0:
                y[...] = values
                continue
            if tap is not None:
                better = ((values > y) | (values != values)).astype(xp.int32)
                better *= number
                # Numbers grow from tap to tap, so that their maximum is the one taken last.
                xp.maximum(tap, better, out=tap)
            xp.maximum(y, values, out=y)
        return y, tap

    def max_pool_grad(self, spec: PoolSpec, gy: Array, tap: Array) -> Array:
        """gx (N, C, *in): each gy (N, C, *out) goes to the pixel its maximum came from."""
        xp = self.xp
        shape = _padded_shape(spec)
        gx = self.empty_like_format(gy, shape, gy.dtype)
        if _one_window(spec):
            hit = xp.arange(prod(spec.kernel)) == tap.reshape(*shape[:2], 1)
            g = gy.reshape(*shape[:2], 1)
            gx[...] = xp.where(hit, g, xp.zeros_like(g)).reshape(shape)
        else:
            gx[...] = 0
            zero = xp.zeros_like(gy)
            for number, where in enumerate(_tap_slices(spec)):
                gx[where] += xp.where(tap == number, gy, zero)
        return self.pad_grad(gx, spec.window)

    def max_pool_indices(self, spec: PoolSpec, tap: Array) -> Array:
        """int64 (N, C, *out): where in x's plane *in, flattened, each maximum lies (PyTorch's)."""
        xp = self.xp
        rest, index, plane = tap.astype(xp.int64), 0, 1
        for axis in reversed(range(spec.nd)):
            start = xp.arange(spec.y_shape[2 + axis]) * spec.stride[axis] - spec.padding[axis][0]
            at = rest % spec.kernel[axis] * spec.dilation[axis] + _along(start, axis, spec.nd)
            index = index + at * plane
            rest = rest // spec.kernel[axis]
            plane *= spec.x_shape[2 + axis]
        return index

    def avg_pool(self, spec: PoolSpec, x: Array, divisor: Array | float) -> Array:
        """y (N, C, *out): the sum of each window over `divisor`, a number or an array like *out."""
        # A sum over a box is a sum along one axis after the other.
        total = self.pad(x, spec.window)
        for axis in range(spec.nd):
            total = self._axis_sums(spec, total, axis)
        y = self.empty_like_format(x, spec.y_shape, x.dtype)
        self.xp.divide(total, divisor, out=y)
        return y

    def avg_pool_grad(self, spec: PoolSpec, gy: Array, divisor: Array | float) -> Array:
        """gx (N, C, *in): each gy (N, C, *out) over `divisor`, added to all its window's pixels."""
        shape = _padded_shape(spec)
        gx = gy / divisor
        for axis in reversed(range(spec.nd)):
            g = gx
            gx = self.empty_like_format(
                g, (*g.shape[: 2 + axis], shape[2 + axis], *g.shape[3 + axis :]), g.dtype
            )
            if spec.y_shape[2 + axis] == 1:
                gx[...] = g
                continue
            gx[...] = 0
            for t in range(spec.kernel[axis]):
                gx[_axis_slice(spec, axis, t)] += g
        return self.pad_grad(gx, spec.window)

    def unpool(self, x: Array, indices: Array, out_spatial: Ints) -> Array:
        """y (N, C, *out_spatial): zeros, with each x at its index in the flattened plane.

        Where several share an index the last one is taken, on every device.
        """
        xp = self.xp
        owner = self._owners(indices, prod(out_spatial))
        taken = xp.take_along_axis(_planes(x), xp.maximum(owner, 0), 1)
        y = self.empty_like_format(x, (*x.shape[:2], *out_spatial), x.dtype)
        y[...] = xp.where(owner >= 0, taken, xp.zeros_like(taken)).reshape(y.shape)
        return y

    def unpool_grad(self, gy: Array, indices: Array) -> Array:
        """gx like `indices`: gy at each index; 0 for those that `unpool` did not take."""
        xp = self.xp
        flat = _planes(indices)
        owner = self._owners(indices, prod(gy.shape[2:]))
        g = xp.take_along_axis(_planes(gy), flat, 1)
        mine = xp.take_along_axis(owner, flat, 1) == xp.arange(flat.shape[1])
        gx = self.empty_like_format(gy, indices.shape, gy.dtype)
        gx[...] = xp.where(mine, g, xp.zeros_like(g)).reshape(gx.shape)
        return gx

    def _owners(self, indices: Array, plane: int) -> Array:
        """(N*C, plane): the number of the last element with that index, -1 where there is none."""
        xp = self.xp
        flat = _planes(indices)
        order = xp.argsort(flat, axis=1, kind="stable")
        to = xp.take_along_axis(flat, order, 1)
        last = xp.ones(to.shape, dtype=bool)
        last[:, :-1] = to[:, :-1] != to[:, 1:]
        # All but the last of equal indices go to a column of their own: otherwise, on a GPU, which
        # of them stays would be a race.
        owner = xp.full((len(to), plane + 1), -1, dtype=xp.int64)
        owner[xp.arange(len(to))[:, None], xp.where(last, to, plane)] = order
        return owner[:, :plane]

    def _first_taps(self, spec: PoolSpec) -> Array:
        """int32 *out: the first tap of each window that is in the image; -inf alone is its own."""
        xp = self.xp
        first = xp.zeros((), dtype=xp.int32)
        for axis in range(spec.nd):
            start = xp.arange(spec.y_shape[2 + axis], dtype=xp.int32) * spec.stride[axis]
            tap = xp.maximum(-((start - spec.padding[axis][0]) // spec.dilation[axis]), 0)
            first = first * spec.kernel[axis] + _along(tap, axis, spec.nd)
        return first

    def _axis_sums(self, spec: PoolSpec, x: Array, axis: int) -> Array:
        """x with the windows along one spatial axis summed."""
        if spec.y_shape[2 + axis] == 1:
            return x.sum(axis=2 + axis, keepdims=True)
        first = x[_axis_slice(spec, axis, 0)]
        total = self.empty_like_format(x, first.shape, x.dtype)
        total[...] = first
        for t in range(1, spec.kernel[axis]):
            total += x[_axis_slice(spec, axis, t)]
        return total


def _tap_slices(spec: PoolSpec) -> Any:
    """For each kernel tap, row-major, the slices of the padded input that it reads."""
    for taps in product(*map(range, spec.kernel)):
        yield (
            slice(None),
            slice(None),
            *(_steps(spec, axis, tap) for axis, tap in enumerate(taps)),
        )


def _axis_slice(spec: PoolSpec, axis: int, tap: int) -> tuple[slice, ...]:
    return (*(slice(None),) * (2 + axis), _steps(spec, axis, tap))


def _steps(spec: PoolSpec, axis: int, tap: int) -> slice:
    start, stride = tap * spec.dilation[axis], spec.stride[axis]
    return slice(start, start + (spec.y_shape[2 + axis] - 1) * stride + 1, stride)


def _along(row: Array, axis: int, nd: int) -> Array:
    """A vector for one spatial axis, to broadcast with arrays (..., *spatial)."""
    return row.reshape(-1, *(1,) * (nd - 1 - axis))


def _padded_shape(spec: PoolSpec) -> Ints:
    sizes = zip(spec.x_shape[2:], spec.window, strict=True)
    return (*spec.x_shape[:2], *(n + lo + hi for n, (lo, hi) in sizes))


def _one_window(spec: PoolSpec) -> bool:
    """One window, all of it image: pooling of a whole plane, too many taps for a loop."""
    return (
        prod(spec.y_shape[2:]) == prod(spec.dilation) == 1
        and max(max(pad) for pad in spec.window) <= 0
    )


def _last_nan_else_max(xp: Any, rows: Array) -> Array:
    """Along the last axis, where the rule "greater, or NaN" of `max_pool` ends."""
    nan = rows != rows
    last_nan = rows.shape[-1] - 1 - xp.flip(nan, -1).argmax(axis=-1)
    return xp.where(nan.any(axis=-1), last_nan, rows.argmax(axis=-1))


def _planes(x: Array) -> Array:
    """(N, C, *in) as one row a plane."""
    return x.reshape(x.shape[0] * x.shape[1], prod(x.shape[2:]))


@lru_cache(maxsize=256)
def window_sizes(spec: PoolSpec, count_include_pad: bool) -> int | np.ndarray:
    """How many pixels each window of an average counts, on the host: *out, or the one number.

    PyTorch's rule: a window that `ceil_mode` lets reach past the padding is clipped to the padded
    input, and to the input itself where padding does not count.
    """
    counts = []
    for axis in range(spec.nd):
        n, (lo, hi) = spec.x_shape[2 + axis], spec.padding[axis]
        start = np.arange(spec.y_shape[2 + axis]) * spec.stride[axis] - lo
        stop = start + spec.kernel[axis]
        if count_include_pad:
            counts.append(np.minimum(stop, n + hi) - start)
        else:
            counts.append(np.minimum(stop, n) - np.maximum(start, 0))
    sizes = reduce(np.multiply.outer, counts)
    return int(sizes.flat[0]) if (sizes == sizes.flat[0]).all() else sizes
