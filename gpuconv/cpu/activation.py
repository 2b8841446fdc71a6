"""Elementwise operations of `CpuBackend`: the kernels of `kernels.cpu.activation`."""

from typing import Any

import numpy as np

from gpuconv.cpu.device import NAMES
from gpuconv.kernels.cpu.activation import elementwise
from gpuconv.reference.activation import Activation
from gpuconv.reference.conv import is_channels_last

Array = Any
FEW = 1 << 13  # numbers of a sum below which NumPy has done before a kernel begins


class CpuActivation(Activation):
    """For arrays dense in memory, NCHW or channels-last; the rest is array code."""

    device: Any  # of CpuBackend, which mixes this class in
    plan: Any
    empty_like_format: Any

    def relu(self, x: Array) -> Array:
        if not _dense(x):
            return super().relu(x)
        y = self.empty_like_format(x, x.shape, x.dtype)
        self._elementwise("relu", x, None, y)
        return y

    def relu_grad(self, gy: Array, y: Array) -> Array:
        if not _dense(y) or gy.dtype != y.dtype:
            return super().relu_grad(gy, y)
        if not _alike(gy, y):
            turned = self.empty_like_format(y, y.shape, y.dtype)
            turned[...] = gy
            gy = turned
        gx = self.empty_like_format(y, y.shape, y.dtype)
        self._elementwise("relu_grad", gy, y, gx)
        return gx

    def add(self, a: Array, b: Array) -> Array:
        few = a.size < FEW and self.device.tapes.tape is None  # a tape has kernels only
        if few or not _dense(a) or a.dtype != b.dtype or not _alike(b, a):
            return super().add(a, b)
        y = self.empty_like_format(a, a.shape, a.dtype)
        self._elementwise("add", a, b, y)
        return y

    def _elementwise(self, op: str, a: Array, b: Array | None, y: Array) -> None:
        self.plan(elementwise, op, y.size, NAMES[y.dtype], self.device.threads)(a, b, y)


def _dense(x: Array) -> bool:
    """True if the kernels take it: floating point, NCHW or channels-last, not empty."""
    if x.dtype not in NAMES or not x.size or isinstance(x, np.ma.MaskedArray):
        return False
    return bool(x.flags.c_contiguous) or (x.ndim > 2 and is_channels_last(x))


def _alike(a: Array, b: Array) -> bool:
    """True if a lies in memory as b does, which is dense."""
    if b.flags.c_contiguous:
        return bool(a.flags.c_contiguous)
    return is_channels_last(a)
