"""Convolution as plain loops have it in float32: a product at a time, sums in sequence.

The array code sums by matrix products and taps, in shorter sums whose rounding errors are smaller;
a kernel with one sum an output is to be measured by loops with one sum an output.
"""

from collections.abc import Iterator
from itertools import product
from typing import Any

import numpy as np

from gpuconv.shapes import ConvSpec

Array = Any


def conv(spec: ConvSpec, x: Array, w: Array) -> Array:
    """y; the loop over n, k, p, q is NumPy's, those over r, s, c are here."""
    padded = np.pad(x, ((0, 0), (0, 0), *spec.padding))
    y = np.zeros(spec.y_shape, x.dtype)
    for group, tap, pixels in _taps(spec):
        cs, ks = _channels(spec, group)
        for i, c in enumerate(cs):
            y[:, ks] += padded[(slice(None), c, *pixels)][:, None] * _column(w[(ks, i, *tap)])
    return y


def conv_grad_input(spec: ConvSpec, gy: Array, w: Array) -> Array:
    gx = np.zeros((*spec.x_shape[:2], *spec.padded), gy.dtype)
    for group, tap, pixels in _taps(spec):
        cs, ks = _channels(spec, group)
        for k in range(ks.start, ks.stop):
            place = gx[(slice(None), slice(cs.start, cs.stop), *pixels)]
            place += gy[:, k][:, None] * _column(w[(k, slice(None), *tap)])
    inside = (slice(lo, lo + n) for (lo, _), n in zip(spec.padding, spec.x_shape[2:], strict=True))
    return gx[(..., *inside)]


def _taps(spec: ConvSpec) -> Iterator[tuple[int, tuple[int, ...], tuple[slice, ...]]]:
    for group, *tap in product(range(spec.groups), *map(range, spec.kernel)):
        pixels = (
            slice(t * d, t * d + (out - 1) * stride + 1, stride)
            for t, d, out, stride in zip(
                tap, spec.dilation, spec.y_shape[2:], spec.stride, strict=True
            )
        )
        yield group, tuple(tap), tuple(pixels)


def _channels(spec: ConvSpec, group: int) -> tuple[range, slice]:
    c, k = spec.w_shape[1], spec.w_shape[0] // spec.groups
    return range(group * c, group * c + c), slice(group * k, group * k + k)


def _column(v: Array) -> Array:
    return v[:, None, None]
