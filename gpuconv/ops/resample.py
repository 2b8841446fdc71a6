"""Changing the spatial size of images: nearest, linear, averaging; and pixel shuffling.

All of the resampling is one Function. Along each axis an output pixel is a weighted sum of a few
input pixels, given by a table (`Taps`); the gradient is the same operation with the table
transposed. So gradients are sums in a fixed order, an infinite pixel stays where it is, and no
matrix of in x out numbers is made, which for sound or large images would not fit.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

import numpy as np

from gpuconv.autograd import Function
from gpuconv.backends import Array, Backend
from gpuconv.errors import ArgumentError
from gpuconv.ops.dtypes import check_dtypes
from gpuconv.ops.shape import reshape, transpose
from gpuconv.reference.conv import is_channels_last
from gpuconv.shapes import ints

MODES = {1: ("nearest", "linear"), 2: ("nearest", "bilinear"), 3: ("nearest", "trilinear")}


@dataclass(frozen=True, eq=False)
class Taps:
    """One axis of a resampling: y[i] is the sum over t of weight[i, t] * x[index[i, t]].

    `index` (out, taps) int64 and `weight` (out, taps) float64 are NumPy arrays; `size` is the
    length of x. A weight of 0 reads nothing: it fills up rows that have fewer taps than others.
    """

    index: np.ndarray
    weight: np.ndarray
    size: int

    def transposed(self) -> "Taps":
        """The gradient's table: which outputs each input went to."""
        rows, taps = np.nonzero(self.weight)
        cols = self.index[rows, taps]
        order = np.argsort(cols, kind="stable")
        rows, taps, cols = rows[order], taps[order], cols[order]
        place = np.arange(len(cols)) - np.searchsorted(cols, cols)
        index = np.zeros((self.size, int(place.max()) + 1), dtype=np.int64)
        weight = np.zeros(index.shape)
        index[cols, place] = rows
        weight[cols, place] = self.weight[rows, taps]
        return Taps(index, weight, len(self.index))


class Resample(Function):
    """Each spatial axis of (N, C, *in) resampled by its `Taps`; None leaves that axis as it is."""

    def __init__(self, op: str, taps: Sequence[Taps | None]) -> None:
        self.op, self.taps = op, taps

    def forward(self, be: Backend, x: Array) -> Array:
        check_dtypes(self.op, x=x)
        return _resample(be, x, self.taps)

    def backward(self, be: Backend, gy: Array) -> Array:
        return _resample(be, gy, [t if t is None else t.transposed() for t in self.taps])


def _resample(be: Backend, x: Array, taps: Sequence[Taps | None]) -> Array:
    xp, nd = be.xp, len(taps)
    # `take` lays its result out in the order of the axes, so that the format is kept by permuting.
    last = is_channels_last(x)
    y = x.transpose(0, *range(2, nd + 2), 1) if last else x
    for axis in reversed(range(nd)):
        table, at = taps[axis], axis + (1 if last else 2)
        if table is None:
            continue
        total = None
        for index, weight in zip(table.index.T, table.weight.T, strict=True):
            term = xp.take(y, be.asarray(np.ascontiguousarray(index)), axis=at)
            if not (weight == 1).all():
                column = be.asarray(weight.astype(x.dtype)).reshape(-1, *(1,) * (nd + 1 - at))
                if not weight.all():
                    # 0 * term is NaN if a pixel that does not belong here is infinite.
                    term = xp.where(column != 0, term, xp.zeros_like(term))
                term = term * column
            total = term if total is None else total + term
        y = total
    if all(table is None for table in taps):
        y = y.copy()
    return y.transpose(0, nd + 1, *range(1, nd + 1)) if last else y


def nearest_taps(size: int, out: int, scale: float, several_axes: bool) -> Taps:
    """Output i is input floor(i * scale), the product rounded to float32 as PyTorch has it.

    On two or more axes, sizes that are equal or exactly doubled are taken for scales of 1 and 2,
    whatever factor led to them: so does PyTorch for small images and in its gradients, while its
    forward pass on large ones does not.
    """
    if several_axes and out in (size, 2 * size):
        scale = size / out
    source = np.floor(np.arange(out, dtype=np.float32) * np.float32(scale)).astype(np.int64)
    return Taps(np.minimum(source, size - 1)[:, None], np.ones((out, 1)), size)


def linear_taps(size: int, out: int, scale: float, align_corners: bool) -> Taps | None:
    """Output i lies at input (i + 1/2) * scale - 1/2, or ends on ends with `align_corners`.

    An axis that keeps its size is kept as it is, whatever the scale (PyTorch's rule).
    """
    if out == size:
        return None
    if align_corners:
        at = np.arange(out) * ((size - 1) / (out - 1) if out > 1 else 0.0)
    else:
        at = np.maximum((np.arange(out) + 0.5) * scale - 0.5, 0.0)
    low = np.minimum(at.astype(np.int64), size - 1)
    part = np.clip(at - low, 0.0, 1.0)
    part[low == size - 1] = 0.0
    index = np.stack((low, np.minimum(low + 1, size - 1)), axis=1)
    return Taps(index, np.stack((1 - part, part), axis=1), size)


def mean_taps(size: int, out: int) -> Taps:
    """Output i is the mean of bin i of `bins`."""
    starts, stops = bins(size, out)
    index = starts[:, None] + np.arange((stops - starts).max())
    inside = index < stops[:, None]
    return Taps(np.where(inside, index, 0), inside / (stops - starts)[:, None], size)


def bins(size: int, out: int) -> tuple[np.ndarray, np.ndarray]:
    """The starts and stops of PyTorch's adaptive bins: floor(i * size / out), ceil((i+1) * ...)."""
    i = np.arange(out)
    return i * size // out, -(-(i + 1) * size // out)


def interpolate(
    x: Any,
    size: int | Sequence[int] | None = None,
    scale_factor: float | Sequence[float] | None = None,
    mode: str = "nearest",
    align_corners: bool = False,
) -> Any:
    """x (N, C, *in), one to three spatial axes, resized to `size` or by `scale_factor`.

    One of the two is given, one number for all axes or one an axis; floor(in * scale_factor) pixels
    result. `mode` is "nearest", or "linear", "bilinear", "trilinear" for one, two, three axes.
    `align_corners` puts the outermost pixels of the result on those of the input. Numbers as
    torch.nn.functional.interpolate: a `scale_factor` is itself the ratio, where out / in differs.
    Raises ArgumentError for anything else, DtypeError for integers.
    """
    op, shape = "interpolate", tuple(x.shape)
    nd = len(shape) - 2
    if nd not in MODES or min(shape[1:]) < 1:
        raise ArgumentError(
            f"{op}: the input {shape} must be (N, C, *in) with one to three spatial axes, none of "
            f"them empty; add a missing batch axis with x[None]"
        )
    if mode not in MODES[nd]:
        raise ArgumentError(
            f"{op}: mode={mode!r} is unknown for {nd} spatial axes; use one of {MODES[nd]}"
        )
    if align_corners and mode == "nearest":
        raise ArgumentError(f"{op}: align_corners has no meaning for mode='nearest'; leave it out")
    outs, scales = _sizes(op, shape[2:], size, scale_factor)
    taps = [
        nearest_taps(n, out, scale, len(outs) > 1)
        if mode == "nearest"
        else linear_taps(n, out, scale, align_corners)
        for n, out, scale in zip(shape[2:], outs, scales, strict=True)
    ]
    return Resample(op, taps).apply(x)


upsample = interpolate  # torch.nn's name for it


def pixel_shuffle(x: Any, upscale_factor: int) -> Any:
    """(N, C * r * r, H, W) to (N, C, H * r, W * r): channels become pixels.

    Source: Shi et al., "Real-Time Single Image and Video Super-Resolution Using an Efficient
    Sub-Pixel Convolutional Neural Network", arXiv 1609.05158.
    """
    (r,) = ints("pixel_shuffle", "upscale_factor", upscale_factor, 1, least=1)
    n, c, h, w = _image("pixel_shuffle", x)
    if c % (r * r):
        raise ArgumentError(
            f"pixel_shuffle: {c} channels do not divide by upscale_factor squared ({r * r}); give "
            f"it a multiple of {r * r} channels"
        )
    y = reshape(x, (n, c // (r * r), r, r, h, w))
    return reshape(transpose(y, 0, 1, 4, 2, 5, 3), (n, c // (r * r), h * r, w * r))


def pixel_unshuffle(x: Any, downscale_factor: int) -> Any:
    """(N, C, H * r, W * r) to (N, C * r * r, H, W): the inverse of `pixel_shuffle`."""
    (r,) = ints("pixel_unshuffle", "downscale_factor", downscale_factor, 1, least=1)
    n, c, h, w = _image("pixel_unshuffle", x)
    if h % r or w % r:
        raise ArgumentError(
            f"pixel_unshuffle: {h} x {w} pixels do not divide by downscale_factor {r}; crop or pad "
            f"them to multiples of {r}"
        )
    y = reshape(x, (n, c, h // r, r, w // r, r))
    return reshape(transpose(y, 0, 1, 3, 5, 2, 4), (n, c * r * r, h // r, w // r))


def _sizes(
    op: str, shape: tuple[int, ...], size: Any, scale_factor: Any
) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """The spatial sizes of the result, and the step in the input that one output pixel is."""
    nd = len(shape)
    if (size is None) == (scale_factor is None):
        raise ArgumentError(
            f"{op}: give one of size and scale_factor, not size={size} and "
            f"scale_factor={scale_factor}"
        )
    if size is not None:
        outs = ints(op, "size", size, nd, least=1)
        return outs, tuple(n / out for n, out in zip(shape, outs, strict=True))
    many = isinstance(scale_factor, Sequence)
    factors = tuple(scale_factor) if many else (scale_factor,) * nd
    if len(factors) != nd or not all(isinstance(f, (int, float)) and 0 < f < inf for f in factors):
        raise ArgumentError(
            f"{op}: scale_factor={scale_factor!r} must be one number above 0 or {nd}, one an axis"
        )
    outs = tuple(int(n * f) for n, f in zip(shape, factors, strict=True))
    if min(outs) < 1:
        raise ArgumentError(
            f"{op}: scale_factor={scale_factor!r} leaves no pixel of {shape}; use a larger one"
        )
    return outs, tuple(1 / f for f in factors)


def _image(op: str, x: Any) -> tuple[int, ...]:
    if len(x.shape) != 4:
        raise ArgumentError(f"{op}: the input {tuple(x.shape)} must be (N, C, H, W)")
    return tuple(x.shape)
