"""Convolution and its gradients in array code, in one, two or three dimensions.

The input's windows are a strided view; a tile of output pixels at a time is copied out of it into
columns of C*R*S numbers (im2col) and multiplied with the weight as a matrix. The gradient by input
is the same backwards: columns, then each kernel tap added to the pixels it came from. No tile's
columns exceed `workspace` bytes (or one column, where that is larger), so the memory beyond input,
padded input and output is bounded by twice that, whatever the problem.
"""

from collections.abc import Iterator, Sequence
from itertools import product
from math import prod
from typing import Any

from gpuconv.errors import ArgumentError
from gpuconv.shapes import ConvSpec, Ints, Pads

Array = Any
_NUMPY_MODE = {"reflect": "reflect", "replicate": "edge", "circular": "wrap"}


def is_channels_last(x: Array) -> bool:
    """True if (N, C, *in) lies in memory as (N, *in, C) and not also as (N, C, *in)."""
    return not x.flags.c_contiguous and bool(
        x.transpose(0, *range(2, x.ndim), 1).flags.c_contiguous
    )


def tiles(extents: Sequence[int], budget: int) -> Iterator[tuple[slice, ...]]:
    """Boxes that cover a grid of `extents`, each of at most `budget` points (but at least one)."""
    size, room = [1] * len(extents), max(budget, 1)
    for axis in reversed(range(len(extents))):
        size[axis] = max(min(extents[axis], room), 1)
        room //= size[axis]
    steps = [range(0, n, step) for n, step in zip(extents, size, strict=True)]
    for starts in product(*steps):
        yield tuple(
            slice(a, min(a + step, n)) for a, step, n in zip(starts, size, extents, strict=True)
        )


def row_sums(rows: Array) -> Array:
    """(K,): rows (M, K) summed over M in two stages, which keeps float32's rounding small.

    Along a leading axis NumPy adds row after row, and the error of such a sum grows with M.
    """
    whole = rows.shape[0] // 128 * 128
    blocks = rows[:whole].reshape(-1, 128, rows.shape[1]).sum(axis=1)
    return blocks.sum(axis=0) + rows[whole:].sum(axis=0)


def check_algo(algo: str) -> None:
    """ArgumentError unless array code can do it."""
    if algo not in ("auto", "im2col"):
        raise ArgumentError(
            f"algo={algo!r} is unknown here; array code computes by 'im2col', or 'auto'; kernels "
            f"take NumPy arrays inside `with gpuconv.backend('cpu')`"
        )


class Conv:
    """The convolution part of `Backend`; letters as in `gpuconv.shapes`."""

    xp: Any
    workspace = 4 << 20  # bytes of columns a tile; speed hardly depends on it from 1 to 32 MiB

    def conv(
        self,
        spec: ConvSpec,
        x: Array,
        w: Array,
        b: Array | None = None,
        *,
        algo: str = "auto",
        add: Array | None = None,
        relu: bool = False,
    ) -> Array:
        """y (N, K, *out) of x (N, C, *in), w (K, C/groups, *kernel) and b (K,) or None.

        `add`, an array like y, is added, then negative numbers become 0 if `relu`.
        """
        check_algo(algo)
        g = spec.groups
        y = self.empty_like_format(x, spec.y_shape, x.dtype)
        windows = self._windows(spec, self.pad(x, spec.padding, spec.padding_mode))
        w_rows = w.reshape(g, w.shape[0] // g, -1)
        for tile in self._tiles(spec, x.itemsize):
            rows = self.xp.matmul(w_rows, self._columns(windows, spec, tile))
            if b is not None:
                rows += b.reshape(g, -1, 1)
            place = y.swapaxes(0, 1)[(slice(None), *tile)]
            place[...] = rows.reshape(place.shape)
        if add is not None:
            y += add
        return self.xp.maximum(y, 0, out=y) if relu else y

    def conv_grad_input(self, spec: ConvSpec, gy: Array, w: Array, *, algo: str = "auto") -> Array:
        """gx (N, C, *in) of gy (N, K, *out) and w; also the forward pass of a transposed one."""
        check_algo(algo)
        gx = self.empty_like_format(gy, (*spec.x_shape[:2], *spec.padded), gy.dtype)
        gx[...] = 0
        w_columns = w.reshape(spec.groups, w.shape[0] // spec.groups, -1).swapaxes(1, 2)
        for tile in self._tiles(spec, gy.itemsize):
            size = [s.stop - s.start for s in tile]
            columns = self.xp.matmul(w_columns, self._rows(gy, spec, tile))
            columns = columns.reshape(spec.x_shape[1], *spec.kernel, *size)
            for tap in product(*map(range, spec.kernel)):
                pixels = [
                    slice(
                        out.start * stride + t * dilation,
                        (out.stop - 1) * stride + t * dilation + 1,
                        stride,
                    )
                    for out, stride, t, dilation in zip(
                        tile[1:], spec.stride, tap, spec.dilation, strict=True
                    )
                ]
                place = gx.swapaxes(0, 1)[(slice(None), tile[0], *pixels)]
                place += columns[(slice(None), *tap)]
        return self.pad_grad(gx, spec.padding, spec.padding_mode)

    def conv_grad_weight(self, spec: ConvSpec, gy: Array, x: Array, *, algo: str = "auto") -> Array:
        """gw (K, C/groups, *kernel) of gy (N, K, *out) and x; tiles summed in a fixed order."""
        check_algo(algo)
        g, k = spec.groups, spec.w_shape[0]
        gw = self.xp.zeros((g, k // g, prod(spec.w_shape[1:])), dtype=x.dtype)
        windows = self._windows(spec, self.pad(x, spec.padding, spec.padding_mode))
        for tile in self._tiles(spec, x.itemsize):
            columns = self._columns(windows, spec, tile)
            gw += self.xp.matmul(self._rows(gy, spec, tile), columns.swapaxes(1, 2))
        return gw.reshape(spec.w_shape)

    def bias_gradient(self, gy: Array) -> Array:
        """gb (K,): gy (N, K, *out) summed over all but the channels."""
        if gy.ndim == 2 or is_channels_last(gy):
            return row_sums(gy.transpose(0, *range(2, gy.ndim), 1).reshape(-1, gy.shape[1]))
        return gy.sum(axis=(0, *range(2, gy.ndim)))

    def pad(self, x: Array, pads: Pads, mode: str = "zeros", value: float = 0.0) -> Array:
        """x with (before, after) elements more on each spatial axis; negative numbers cut off."""
        if not any(lo or hi for lo, hi in pads):
            return x
        if mode != "zeros":
            padded = self.xp.pad(x, ((0, 0), (0, 0), *pads), mode=_NUMPY_MODE[mode])
            y = self.empty_like_format(x, padded.shape, x.dtype)
            if y.strides == padded.strides:
                return padded
            y[...] = padded
            return y
        size = tuple(n + lo + hi for n, (lo, hi) in zip(x.shape[2:], pads, strict=True))
        y = self.empty_like_format(x, (*x.shape[:2], *size), x.dtype)
        y[...] = value
        inside, kept = _overlap(x.shape[2:], pads)
        y[inside] = x[kept]
        return y

    def pad_grad(self, gy: Array, pads: Pads, mode: str = "zeros") -> Array:
        """The gradient of `pad`: every padded element's gradient goes to the pixel it copied."""
        if not any(lo or hi for lo, hi in pads):
            return gy
        size = tuple(n - lo - hi for n, (lo, hi) in zip(gy.shape[2:], pads, strict=True))
        if mode == "zeros":
            gx = self.empty_like_format(gy, (*gy.shape[:2], *size), gy.dtype)
            inside, kept = _overlap(size, pads)
            if any(min(pad) < 0 for pad in pads):
                gx[...] = 0
            gx[kept] = gy[inside]
            return gx
        for axis, (lo, hi) in enumerate(pads, start=2):
            n, before = size[axis - 2], (slice(None),) * axis
            head, tail = gy[(*before, slice(0, lo))], gy[(*before, slice(lo + n, lo + n + hi))]
            middle = gy[(*before, slice(lo, lo + n))]
            gx = self.empty_like_format(gy, middle.shape, gy.dtype)
            gx[...] = middle
            if mode == "circular":
                gx[(*before, slice(n - lo, n))] += head
                gx[(*before, slice(0, hi))] += tail
            elif mode == "reflect":
                gx[(*before, slice(1, lo + 1))] += self.xp.flip(head, axis)
                gx[(*before, slice(n - 1 - hi, n - 1))] += self.xp.flip(tail, axis)
            else:
                gx[(*before, slice(0, 1))] += head.sum(axis=axis, keepdims=True)
                gx[(*before, slice(n - 1, n))] += tail.sum(axis=axis, keepdims=True)
            gy = gx
        return gy

    def empty_like_format(self, x: Array, shape: Ints, dtype: Any) -> Array:
        """An uninitialised array of `shape` (N, C, *in) in the memory format of `x`."""
        if not is_channels_last(x):
            return self.xp.empty(shape, dtype=dtype)
        y = self.xp.empty((shape[0], *shape[2:], shape[1]), dtype=dtype)
        return y.transpose(0, len(shape) - 1, *range(1, len(shape) - 1))

    def _windows(self, spec: ConvSpec, x: Array) -> Array:
        """The view (C, *kernel, N, *out) of the padded input: no copy."""
        steps = x.strides[2:]
        return self.xp.lib.stride_tricks.as_strided(
            x,
            (x.shape[1], *spec.kernel, x.shape[0], *spec.y_shape[2:]),
            (
                x.strides[1],
                *(step * d for step, d in zip(steps, spec.dilation, strict=True)),
                x.strides[0],
                *(step * s for step, s in zip(steps, spec.stride, strict=True)),
            ),
        )

    def _columns(self, windows: Array, spec: ConvSpec, tile: tuple[slice, ...]) -> Array:
        """The tile's windows as (groups, C/groups * kernel, images * pixels): a copy."""
        part = windows[(*(slice(None),) * (1 + spec.nd), *tile)]
        return part.reshape(spec.groups, prod(spec.w_shape[1:]), -1)

    def _rows(self, gy: Array, spec: ConvSpec, tile: tuple[slice, ...]) -> Array:
        """The tile of gy as (groups, K/groups, images * pixels): a copy."""
        part = gy.swapaxes(0, 1)[(slice(None), *tile)]
        return part.reshape(spec.groups, spec.w_shape[0] // spec.groups, -1)

    def _tiles(self, spec: ConvSpec, itemsize: int) -> Iterator[tuple[slice, ...]]:
        column = spec.x_shape[1] * prod(spec.kernel) * itemsize
        return tiles((spec.y_shape[0], *spec.y_shape[2:]), self.workspace // column)


def _overlap(size: Ints, pads: Pads) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Where the kept part of an array of `size` lies: in the padded array, and in itself."""
    inside, kept = [slice(None)] * 2, [slice(None)] * 2
    for n, (lo, hi) in zip(size, pads, strict=True):
        length = max(n + min(lo, 0) + min(hi, 0), 0)  # a crop may leave nothing
        inside.append(slice(max(lo, 0), max(lo, 0) + length))
        kept.append(slice(max(-lo, 0), max(-lo, 0) + length))
    return tuple(inside), tuple(kept)
